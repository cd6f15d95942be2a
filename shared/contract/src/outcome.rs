//! How a job ended, and what its sender reads: the public result and the live deltas.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{JobId, Name};

/// How a job ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    Completed,
    Failed,
    Cancelled,
    Expired,
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FinishReason {
    /// The model ended it, or a stop string was found.
    Stop,
    /// `max_tokens` or the context was reached.
    Length,
}

/// What went wrong, for programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Code {
    InvalidUtf8,
    InvalidJson,
    UnknownField,
    InvalidValue,
    UnknownModel,
    EmptyPrompt,
    PromptTooLong,
    InvalidTemplateInput,
    DeadlineExceeded,
    AttemptsExhausted,
    /// Its sender wanted no more of it.
    Cancelled,
    /// Its id belongs to another request.
    Conflict,
    Internal,
}

const MAX_MESSAGE_BYTES: usize = 2_000;

/// What went wrong, for programs and people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    pub code: Code,
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
    pub ingest_queue_ms: f64,
    pub ingest_ms: f64,
    pub prefill_queue_ms: f64,
    /// Computing the prompt's KV cache and the first token.
    pub prefill_ms: f64,
    /// Time that prefill spent fetching stored prefixes and did not hide behind computing.
    pub prefix_get_ms: f64,
    /// Putting KV chunks that was not hidden behind computing.
    pub kv_put_ms: f64,
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
    pub kv_raw_bytes: u64,
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
    pub decode_attempt: u32,
    pub prefill_worker: String,
    pub decode_worker: String,
}

/// The final result of a job; exactly one exists for each.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    pub id: JobId,
    pub tenant: Name,
    pub lane: Name,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<Name>,
    pub status: Status,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finish_reason: Option<FinishReason>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<Failure>,
    /// The answer; what there was of it when the job did not complete.
    pub text: String,
    /// The answer's token ids, with the one that ended it.
    pub tokens: Vec<u32>,
    /// If the request asked for them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logprobs: Option<Logprobs>,
    /// All answers, if the request asked for several; the fields above are those of the first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub choices: Vec<Choice>,
    pub usage: Usage,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
    pub timings: Timings,
    /// BLAKE3 of the request's bytes, in hex: whether this answers the request one sent, or an earlier one of that id.
    pub request_digest: String,
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
            choices: Vec::new(),
            usage: Usage::default(),
            metadata: BTreeMap::new(),
            timings: Timings::default(),
            request_digest,
        }
    }
}

/// What becomes of a request whose id belongs to an earlier, different one, as published on
/// `<root>.rej.<tenant>.<job>.<request_digest>`. The job of that id is none of its sender's, and its result neither.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    pub id: JobId,
    pub tenant: Name,
    pub error: Failure,
    /// That of the refused request; see [`request_digest`].
    pub request_digest: String,
}

impl Refusal {
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
    pub text: String,
    /// The answer's token ids, with the one that ended it.
    pub tokens: Vec<u32>,
    /// None if the job did not complete, and this answer had not ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finish_reason: Option<FinishReason>,
    /// If the request asked for them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logprobs: Option<Logprobs>,
}

/// Log-probabilities of an answer's tokens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Logprobs {
    /// One for each of the answer's tokens.
    pub content: Vec<TokenLogprob>,
}

/// The log-probability of a token, and of the likeliest tokens in its place: natural logarithms, never below -9999, of
/// the model's own distribution, before penalties, bias, constraint and temperature.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, bincode::Encode, bincode::Decode)]
pub struct TokenLogprob {
    #[serde(flatten)]
    pub chosen: Alternative,
    /// Likeliest first; the chosen token may be among them.
    pub top_logprobs: Vec<Alternative>,
}

/// A token that an answer might have, and its log-probability.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, bincode::Encode, bincode::Decode)]
pub struct Alternative {
    /// The token's text; what is not UTF-8 by itself becomes U+FFFD. Empty for control tokens.
    pub token: String,
    pub id: u32,
    pub logprob: f32,
    /// The token's bytes, which are half a character at times.
    pub bytes: Vec<u8>,
}

impl TokenLogprob {
    /// Bytes that this takes in a result, at most.
    pub fn json_bytes(&self) -> usize {
        std::iter::once(&self.chosen).chain(&self.top_logprobs).map(Alternative::json_bytes).sum()
    }
}

impl Alternative {
    /// Names and numbers take less than 90; a byte is one of up to six as text and of up to four as a number.
    fn json_bytes(&self) -> usize {
        90 + 10 * self.bytes.len()
    }
}

/// One token of a running job, as published on `<root>.tok.<tenant>.<job>`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Delta {
    /// Which of the job's answers it belongs to, from 0; left out for the first.
    #[serde(default, skip_serializing_if = "is_first")]
    pub choice: u32,
    /// The token's place in the answer, from 0.
    pub index: u32,
    pub token: u32,
    /// Text that became final with this token; may be empty.
    pub text: String,
    /// If the request asked for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logprobs: Option<TokenLogprob>,
}

fn is_first(choice: &u32) -> bool {
    *choice == 0
}

/// The digest that tells two requests of one id apart, in hex.
pub fn request_digest(body: &[u8]) -> String {
    blake3::hash(body).to_hex().to_string()
}
