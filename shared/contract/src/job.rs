//! An admitted job: everything a stage needs to work on it.

mod request;

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::{
    JobId, Name,
    outcome::{Choice, Failure, FinishReason, Logprobs, Outcome, Status, Timings, TokenLogprob, Usage},
    sampling::Sampling,
};

/// A request that ingest has admitted.
#[derive(Clone, Debug, PartialEq, bincode::Encode, bincode::Decode)]
pub struct Job {
    /// Its id, unique for its tenant.
    pub id: JobId,
    /// Whose job it is.
    pub tenant: Name,
    /// The lane in which it waits.
    pub lane: Name,
    /// The model that answers it.
    pub model: Name,
    /// Token ids of the prompt, at least one, fewer than the model's context. None where a foreign engine answers.
    pub prompt: Vec<u32>,
    /// Tokens an answer may have; prompt and answer fit the context.
    pub max_tokens: u32,
    /// Answers to the prompt: 1 to [`crate::request::MAX_SAMPLES`].
    pub samples: u32,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Texts that end an answer.
    pub stop: Vec<String>,
    /// Milliseconds since 1970.
    pub deadline_ms: Option<u64>,
    /// What its sender noted about it.
    pub metadata: BTreeMap<String, String>,
    /// See [`crate::outcome::request_digest`].
    pub request_digest: String,
}

/// What an answer came to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answer {
    /// The answer's text.
    pub text: String,
    /// The answer's token ids.
    pub tokens: Vec<u32>,
    /// One for each token if the job asks for them, else none.
    pub logprobs: Vec<TokenLogprob>,
    /// None as long as it has not ended.
    pub finish_reason: Option<FinishReason>,
    /// What else the message of a foreign engine has.
    pub message: Map<String, Value>,
}

impl Job {
    /// The result of a job all of whose answers, in the order of their places, came to their end.
    pub fn completed(&self, answers: Vec<Answer>, timings: Timings) -> Outcome {
        self.outcome(Status::Completed, None, answers, timings)
    }

    /// The result of a job that could not, with what there was of its answers: of all of them, or of none.
    pub fn failed(&self, failure: Failure, answers: Vec<Answer>, timings: Timings) -> Outcome {
        self.outcome(failure.status(), Some(failure), answers, timings)
    }

    fn outcome(&self, status: Status, error: Option<Failure>, answers: Vec<Answer>, timings: Timings) -> Outcome {
        let usage = Usage {
            prompt_tokens: self.prompt.len() as u32,
            completion_tokens: answers.iter().map(|answer| answer.tokens.len() as u32).sum(),
            cached_tokens: timings.cached_tokens,
        };
        let mut choices: Vec<Choice> = (0..).zip(answers).map(|(index, answer)| answer.into_choice(index)).collect();
        if self.sampling.logprobs.is_some() {
            // Also those of an empty text.
            for choice in choices.iter_mut().filter(|choice| !choice.tokens.is_empty()) {
                choice.logprobs.get_or_insert(Logprobs { content: Vec::new() });
            }
        }
        let first = if self.samples > 1 { choices.first().cloned() } else { choices.pop() };
        let first = first.unwrap_or_else(|| Answer::default().into_choice(0));
        Outcome {
            id: self.id.clone(),
            tenant: self.tenant.clone(),
            lane: self.lane.clone(),
            model: Some(self.model.clone()),
            status,
            finish_reason: first.finish_reason.filter(|_| status == Status::Completed),
            error,
            text: first.text,
            tokens: first.tokens,
            logprobs: first.logprobs,
            message: first.message,
            choices,
            usage,
            metadata: self.metadata.clone(),
            timings,
            request_digest: self.request_digest.clone(),
            model_fingerprint: None,
            stored: None,
        }
    }
}

impl Answer {
    fn into_choice(self, index: u32) -> Choice {
        Choice {
            index,
            text: self.text,
            tokens: self.tokens,
            finish_reason: self.finish_reason,
            logprobs: (!self.logprobs.is_empty()).then_some(Logprobs { content: self.logprobs }),
            message: self.message,
        }
    }
}
