//! An admitted job: everything a stage needs to work on it.

use std::collections::BTreeMap;

use crate::{
    JobId, Name,
    outcome::{Failure, FinishReason, Logprobs, Outcome, Status, Timings, TokenLogprob, Usage},
    sampling::Sampling,
};

#[derive(Clone, Debug, PartialEq, bincode::Encode, bincode::Decode)]
pub struct Job {
    pub id: JobId,
    pub tenant: Name,
    pub lane: Name,
    pub model: Name,
    /// Token ids of the prompt, at least one, fewer than the model's context.
    pub prompt: Vec<u32>,
    /// Tokens the answer may have; prompt and answer fit the context.
    pub max_tokens: u32,
    pub sampling: Sampling,
    pub stop: Vec<String>,
    /// Milliseconds since 1970.
    pub deadline_ms: Option<u64>,
    pub metadata: BTreeMap<String, String>,
    pub request_digest: String,
}

/// What an answer came to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answer {
    pub text: String,
    pub tokens: Vec<u32>,
    /// One for each token if the job asks for them, else none.
    pub logprobs: Vec<TokenLogprob>,
}

impl Job {
    /// The result of a job that ran to its end.
    pub fn completed(&self, answer: Answer, reason: FinishReason, timings: Timings) -> Outcome {
        self.outcome(Status::Completed, Some(reason), None, answer, timings)
    }

    /// The result of a job that could not, with what there was of an answer.
    pub fn failed(&self, failure: Failure, answer: Answer, timings: Timings) -> Outcome {
        self.outcome(failure.status(), None, Some(failure), answer, timings)
    }

    fn outcome(
        &self,
        status: Status,
        finish_reason: Option<FinishReason>,
        error: Option<Failure>,
        answer: Answer,
        timings: Timings,
    ) -> Outcome {
        let usage = Usage { prompt_tokens: self.prompt.len() as u32, completion_tokens: answer.tokens.len() as u32 };
        Outcome {
            id: self.id.clone(),
            tenant: self.tenant.clone(),
            lane: self.lane.clone(),
            model: Some(self.model.clone()),
            status,
            finish_reason,
            error,
            text: answer.text,
            tokens: answer.tokens,
            logprobs: (!answer.logprobs.is_empty()).then_some(Logprobs { content: answer.logprobs }),
            usage,
            metadata: self.metadata.clone(),
            timings,
            request_digest: self.request_digest.clone(),
        }
    }
}
