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
    pub name: String,
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
    Tokens,
    Choices,
    Text,
    Metadata,
}

impl Part {
    /// Those first that a reader misses least.
    pub const ALL: [Self; 5] = [Self::Logprobs, Self::Tokens, Self::Choices, Self::Text, Self::Metadata];
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
    /// One for each of the answer's tokens that its text has, so for fewer where a stop text was found: that one's are left out.
    /// A token that it begins in is told as far as the text goes.
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
    /// Of how many of the answer's tokens, from the first, the log-probabilities are final; of all so far if it is left out.
    /// Those of the others are none of the answer's if a stop text is found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub settled: Option<u32>,
}

fn is_first(choice: &u32) -> bool {
    *choice == 0
}

/// The digest that tells two requests of one id apart, in hex.
pub fn request_digest(body: &[u8]) -> String {
    blake3::hash(body).to_hex().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::{Answer, Job};
    use crate::sampling::Sampling;

    fn outcome(samples: u32) -> Outcome {
        let name = |text| Name::new(text).unwrap();
        let job = Job {
            id: JobId::new("job-1").unwrap(),
            tenant: name("acme"),
            lane: name("batch"),
            model: name("m"),
            prompt: vec![1],
            max_tokens: 3,
            samples,
            sampling: Sampling::GREEDY,
            stop: Vec::new(),
            deadline_ms: None,
            metadata: [("k".into(), "v".into())].into(),
            request_digest: "ab".into(),
        };
        let chosen = Alternative { token: "a".into(), id: 4, logprob: -0.5, bytes: vec![b'a'] };
        let answer = Answer {
            text: "äb".into(),
            tokens: vec![4, 5],
            logprobs: vec![TokenLogprob { chosen, top_logprobs: Vec::new() }; 2],
            finish_reason: Some(FinishReason::Length),
        };
        job.completed(vec![answer; samples as usize], Timings::default())
    }

    #[test]
    fn every_large_part_can_be_left_out() {
        let mut told = outcome(2);
        let bytes = |told: &Outcome| serde_json::to_vec(told).unwrap().len();
        for part in Part::ALL {
            let before = bytes(&told);
            told.leave_out(part);
            assert!(bytes(&told) < before, "{part:?}");
        }
        let bare = Outcome { text: String::new(), metadata: BTreeMap::new(), ..outcome(1) };
        assert_eq!(told.usage.completion_tokens, 4, "what is small stays");
        assert_eq!((told.status, told.finish_reason), (bare.status, bare.finish_reason));
        assert!(told.tokens.is_empty() && told.logprobs.is_none() && told.choices.is_empty());
    }

    #[test]
    fn what_nothing_takes_is_a_failure_with_the_beginning_of_the_text() {
        let cut = outcome(2).too_large(100, 50, 2);
        assert_eq!((cut.status, cut.text.as_str(), cut.finish_reason), (Status::Failed, "ä", None));
        let error = cut.error.unwrap();
        assert_eq!(error.code, Code::ResultTooLarge);
        assert!(error.message.contains("100 bytes") && error.message.contains("50"), "{error}");
        assert_eq!(outcome(1).too_large(100, 50, 1).text, "", "no half character");
    }

    #[test]
    fn what_a_later_release_says_is_read() {
        assert_eq!(serde_json::from_str::<Code>("\"from_the_future\"").unwrap(), Code::Internal);
        assert_eq!(serde_json::to_string(&Code::Internal).unwrap(), "\"internal\"");
        assert_eq!(serde_json::to_string(&Code::NonFinite).unwrap(), "\"non_finite\"");
    }
}
