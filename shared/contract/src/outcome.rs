//! How a job ended, and what its sender reads: the public result and the live deltas.

mod logprobs;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

pub use self::logprobs::{Alternative, Logprobs, TokenLogprob};
use crate::{JobId, Name};

/// How a job ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// With its answer.
    Completed,
    /// With an error.
    Failed,
    /// At its sender's wish.
    Cancelled,
    /// Its deadline passed.
    Expired,
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, bincode::Encode, bincode::Decode)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// The model ended it, or a stop string was found.
    Stop,
    /// `max_tokens` or the context was reached.
    Length,
    /// The answer calls tools; foreign engines only.
    ToolCalls,
    /// The engine's filter ended it; foreign engines only.
    ContentFilter,
}

/// What went wrong, for programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Code {
    /// The request is no UTF-8.
    InvalidUtf8,
    /// The request is no JSON object.
    InvalidJson,
    /// The request has a field that there is not.
    UnknownField,
    /// A field's value is none that it may have.
    InvalidValue,
    /// The pipeline serves no such model.
    UnknownModel,
    /// The prompt has no tokens.
    EmptyPrompt,
    /// The prompt, or its message, is too long.
    PromptTooLong,
    /// The model's chat template refuses the messages.
    InvalidTemplateInput,
    /// The deadline passed.
    DeadlineExceeded,
    /// Workers tried it as often as they may, and none finished it.
    AttemptsExhausted,
    /// Its sender wanted no more of it.
    Cancelled,
    /// Its id belongs to another request.
    Conflict,
    /// The model's numbers became infinite, or none at all.
    NonFinite,
    /// No store takes a result of this size.
    ResultTooLarge,
    /// Also what a later release may have a code for.
    #[serde(other)]
    Internal,
}

const MAX_MESSAGE_BYTES: usize = 2_000;

/// What went wrong, for programs and people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// For programs.
    pub code: Code,
    /// For people.
    pub message: String,
}

impl Failure {
    /// A message longer than 2,000 bytes, as one that quotes a hostile request may be, is cut.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        let mut message = message.into();
        if message.len() > MAX_MESSAGE_BYTES {
            message.truncate(message.floor_char_boundary(MAX_MESSAGE_BYTES));
            message.push_str("...");
        }
        Self { code, message }
    }

    /// How a job ends that failed so.
    pub fn status(&self) -> Status {
        match self.code {
            Code::DeadlineExceeded => Status::Expired,
            Code::Cancelled => Status::Cancelled,
            _ => Status::Failed,
        }
    }
}

/// Tokens that a job has taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Usage {
    /// Counted once, however many answers there are.
    pub prompt_tokens: u32,
    /// Of all answers together.
    pub completion_tokens: u32,
    /// Prompt tokens whose KV cache was there already, and was not computed for this job.
    pub cached_tokens: u32,
}

/// Where a job's time went and what its KV cache weighed. Times in milliseconds. A stage's queue ends when its work on the job
/// begins: the wait for the engine and for memory inside a worker is part of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, bincode::Encode, bincode::Decode)]
#[serde(default)]
pub struct Timings {
    /// When the broker accepted the request, since 1970.
    pub accepted_at_ms: u64,
    /// From acceptance to the beginning of ingest's work.
    pub ingest_queue_ms: f64,
    /// Ingest's work.
    pub ingest_ms: f64,
    /// From prefill's message to the beginning of its work.
    pub prefill_queue_ms: f64,
    /// Computing the prompt's KV cache and the first token.
    pub prefill_ms: f64,
    /// Time that prefill spent fetching stored prefixes and did not hide behind computing.
    pub prefix_get_ms: f64,
    /// Putting KV chunks that was not hidden behind computing.
    pub kv_put_ms: f64,
    /// From decode's message to the beginning of its work.
    pub decode_queue_ms: f64,
    /// From decode's first request for the prompt's KV cache until all of it had come, hidden or not; again each time that
    /// an answer had to leave the batch and comes back.
    pub kv_get_ms: f64,
    /// The part of that in which an answer had its turn and its pages, and could not join the batch because its KV cache
    /// was still on the way: what the fetching added to the job.
    pub kv_wait_ms: f64,
    /// From acceptance to the first token's publication.
    pub first_token_ms: f64,
    /// From the first token to the last.
    pub decode_ms: f64,
    /// From acceptance to the result.
    pub total_ms: f64,
    /// Bytes of the KV cache that was stored, before packing.
    pub kv_raw_bytes: u64,
    /// Bytes that were written to the store.
    pub kv_stored_bytes: u64,
    /// Prompt tokens whose KV cache prefill found in the store and did not compute.
    pub cached_tokens: u32,
    /// Prompt tokens whose KV decode had to compute again because a chunk was missing or damaged.
    pub recomputed_tokens: u32,
    /// Prompt tokens that decode prefilled itself because the pipeline lets it (`stages.decode.prefill_tokens`); then
    /// `prefill_ms` is the time that this took.
    pub decode_prefilled_tokens: u32,
    /// Tokens of all answers that the last decode worker took over from another's checkpoint and did not generate.
    pub resumed_tokens: u32,
    /// Deliveries it took each stage to get through.
    pub prefill_attempt: u32,
    /// The same of decode.
    pub decode_attempt: u32,
    /// The worker that computed the prompt.
    pub prefill_worker: String,
    /// The worker that ended the job.
    pub decode_worker: String,
}

/// The final result of a job; exactly one exists for each.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// The job's id.
    pub id: JobId,
    /// Whose job it was.
    pub tenant: Name,
    /// The lane that it waited in.
    pub lane: Name,
    /// The model that answered; none if none was found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<Name>,
    /// How it ended.
    pub status: Status,
    /// Why the answer ended; none if the job did not complete.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finish_reason: Option<FinishReason>,
    /// What went wrong, if the job did not complete.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<Failure>,
    /// The answer; what there was of it when the job did not complete.
    pub text: String,
    /// The answer's token ids, with the one that ended it.
    pub tokens: Vec<u32>,
    /// If the request asked for them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logprobs: Option<Logprobs>,
    /// What else the message of a foreign engine has: `tool_calls`, `reasoning_content`, `refusal`.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub message: Map<String, Value>,
    /// All answers, if the request asked for several; the fields above are those of the first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub choices: Vec<Choice>,
    /// Tokens that it took.
    pub usage: Usage,
    /// What its sender noted about it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
    /// Where its time went.
    pub timings: Timings,
    /// BLAKE3 of the request's bytes, in hex: whether this answers the request one sent, or an earlier one of that id.
    pub request_digest: String,
    /// Of the model that gave the answer, in hex: all of it, whatever happened on the way. None if there is no answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model_fingerprint: Option<String>,
    /// Set where the broker takes no message of the result's size: what this one lacks lies there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stored: Option<StoredResult>,
}

/// Where a whole result lies that is too large for a message: in an object of JetStream's object store, as JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredResult {
    /// The bucket, and the object's name in it.
    pub bucket: String,
    /// The object's name in the bucket.
    pub name: String,
    /// The object's size.
    pub bytes: u64,
    /// `SHA-256=` and the digest in base64 for URLs, as the object store tells it.
    pub digest: String,
    /// What the message lacks; everything else is in both.
    pub left_out: Vec<Part>,
}

/// A part of a result that may be large.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// Of all answers; so are the tokens.
    Logprobs,
    /// The token ids of all answers.
    Tokens,
    /// All answers but the first.
    Choices,
    /// The first answer's text.
    Text,
    /// What else the messages of all answers have.
    Message,
    /// What the sender noted.
    Metadata,
}

impl Part {
    /// All parts, those first that a reader misses least.
    pub const ALL: [Self; 6] = [Self::Logprobs, Self::Tokens, Self::Choices, Self::Text, Self::Message, Self::Metadata];
}

impl Outcome {
    /// Takes a part out.
    pub fn leave_out(&mut self, part: Part) {
        match part {
            Part::Logprobs => {
                self.logprobs = None;
                self.choices.iter_mut().for_each(|choice| choice.logprobs = None);
            }
            Part::Tokens => {
                self.tokens.clear();
                self.choices.iter_mut().for_each(|choice| choice.tokens.clear());
            }
            Part::Choices => self.choices.clear(),
            Part::Text => self.text.clear(),
            Part::Message => self.message.clear(),
            Part::Metadata => self.metadata.clear(),
        }
    }

    /// The result in place of this one of so many bytes, which nothing takes: failed, with the first `text_bytes` of the text.
    #[must_use]
    pub fn too_large(&self, bytes: usize, most: usize, text_bytes: usize) -> Self {
        let message =
            format!("the result has {bytes} bytes, and results may have {most}; lower max_tokens, n or logprobs");
        let mut text = self.text.clone();
        text.truncate(text.floor_char_boundary(text_bytes));
        Self {
            status: Status::Failed,
            finish_reason: None,
            error: Some(Failure::new(Code::ResultTooLarge, message)),
            text,
            tokens: Vec::new(),
            logprobs: None,
            message: Map::new(),
            choices: Vec::new(),
            ..self.clone()
        }
    }
}

impl Outcome {
    /// The result of a request that never became a job, or of a job whose message nobody can read: all that is known of it.
    pub fn bare(id: JobId, tenant: Name, lane: Name, request_digest: String, failure: Failure) -> Self {
        Self {
            id,
            tenant,
            lane,
            model: None,
            status: failure.status(),
            finish_reason: None,
            error: Some(failure),
            text: String::new(),
            tokens: Vec::new(),
            logprobs: None,
            message: Map::new(),
            choices: Vec::new(),
            usage: Usage::default(),
            metadata: BTreeMap::new(),
            timings: Timings::default(),
            model_fingerprint: None,
            stored: None,
            request_digest,
        }
    }
}

/// What becomes of a request whose id belongs to an earlier, different one, as published on
/// `<root>.rej.<tenant>.<job>.<request_digest>`. The job of that id is none of its sender's, and its result neither.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// The id that the request names.
    pub id: JobId,
    /// Whose request it was.
    pub tenant: Name,
    /// Why it was refused.
    pub error: Failure,
    /// That of the refused request; see [`request_digest`].
    pub request_digest: String,
}

impl Refusal {
    /// A request whose id belongs to another one.
    pub fn conflict(tenant: Name, id: JobId, request_digest: String) -> Self {
        let message = format!("the id {id} belongs to an earlier, different request; choose another");
        Self { id, tenant, error: Failure::new(Code::Conflict, message), request_digest }
    }
}

/// One of several answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Choice {
    /// Its place among the answers, from 0.
    pub index: u32,
    /// The answer's text.
    pub text: String,
    /// The answer's token ids, with the one that ended it.
    pub tokens: Vec<u32>,
    /// None if the job did not complete, and this answer had not ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finish_reason: Option<FinishReason>,
    /// If the request asked for them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logprobs: Option<Logprobs>,
    /// What else the message of a foreign engine has.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub message: Map<String, Value>,
}

/// One token of a running job, as published on `<root>.tok.<tenant>.<job>`; from a foreign engine, a piece of its answer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Delta {
    /// Which of the job's answers it belongs to, from 0; left out for the first.
    #[serde(default, skip_serializing_if = "is_first")]
    pub choice: u32,
    /// The token's place in the answer, from 0; from a foreign engine, the piece's.
    pub index: u32,
    /// The token's id; none from a foreign engine, whose pieces may be of several tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<u32>,
    /// Text that became final with this token; may be empty.
    pub text: String,
    /// What else a piece of a foreign engine's message has: parts of `tool_calls`, of `reasoning_content`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<Box<Map<String, Value>>>,
    /// Whether the answer goes on from this place in other words: what was told of it with this index or a higher one no longer
    /// counts. Such a piece has no text. Only foreign engines' answers may do so, after a crash.
    #[serde(default, skip_serializing_if = "is_false")]
    pub restart: bool,
    /// If the request asked for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logprobs: Option<TokenLogprob>,
    /// Of how many of the answer's tokens, from the first, the log-probabilities are final; of all so far if it is left out.
    /// Those of the others are none of the answer's if a stop text is found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub settled: Option<u32>,
}

fn is_first(choice: &u32) -> bool {
    *choice == 0
}

fn is_false(flag: &bool) -> bool {
    !flag
}

/// The digest that tells two requests of one id apart, in hex.
pub fn request_digest(body: &[u8]) -> String {
    blake3::hash(body).to_hex().to_string()
}

#[cfg(test)]
mod tests;
