//! Lines of the output and error files.

use baton_contract::{
    JobId,
    batch::{Progress, Usage},
    outcome::{Outcome, Status},
};
use baton_openai::{AnswerLine, ApiError, Endpoint, LineError, LineResponse};
use sha2::{Digest, Sha256};

use super::job_of;

/// Why a request of a batch was not run to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unfinished {
    Expired,
    Cancelled,
}

/// What one line of the input came to.
#[derive(Debug, PartialEq)]
pub(super) struct Answer {
    /// As it stands in its file, with the end of the line.
    pub(super) line: Vec<u8>,
    /// Whether that is the output file, or the error file.
    pub(super) good: bool,
    usage: Usage,
}

impl Answer {
    /// Adds itself to what a run has done.
    pub(super) fn count(&self, progress: &mut Progress) {
        match self.good {
            true => progress.completed += 1,
            false => progress.failed += 1,
        }
        let usage = &mut progress.usage;
        usage.prompt_tokens += self.usage.prompt_tokens;
        usage.cached_tokens += self.usage.cached_tokens;
        usage.completion_tokens += self.usage.completion_tokens;
    }
}

/// Which line of which batch.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place<'a> {
    pub(super) batch: &'a str,
    pub(super) line: u64,
    pub(super) custom_id: &'a str,
}

impl Place<'_> {
    /// What a job came to.
    pub(super) fn ended(&self, endpoint: Endpoint, outcome: &Outcome) -> Answer {
        match outcome.status {
            Status::Expired => return self.unfinished(Unfinished::Expired),
            Status::Cancelled => return self.unfinished(Unfinished::Cancelled),
            Status::Completed | Status::Failed => {}
        }
        match baton_openai::response(endpoint, outcome) {
            Ok(body) => {
                let usage = Usage {
                    prompt_tokens: outcome.usage.prompt_tokens.into(),
                    cached_tokens: outcome.usage.cached_tokens.into(),
                    completion_tokens: outcome.usage.completion_tokens.into(),
                };
                self.answer(true, usage, Some(LineResponse::answer(Some(outcome.id.as_str()), body)), None)
            }
            Err(error) => self.refused(&error),
        }
    }

    /// A request that is none, or that failed.
    pub(super) fn refused(&self, error: &ApiError) -> Answer {
        let job = job_of(self.batch, self.line);
        let job = job.as_ref().map(JobId::as_str);
        self.answer(false, Usage::default(), Some(LineResponse::refused(job, error)), None)
    }

    /// A request that did not come to its end in time.
    pub(super) fn unfinished(&self, why: Unfinished) -> Answer {
        let error = match why {
            Unfinished::Expired => LineError::new(
                "batch_expired",
                "This request could not be executed before the completion window expired.",
            ),
            Unfinished::Cancelled => {
                LineError::new("batch_cancelled", "The batch was cancelled before this request was executed.")
            }
        };
        self.answer(false, Usage::default(), None, Some(error))
    }

    fn answer(
        &self,
        good: bool,
        usage: Usage,
        response: Option<LineResponse<'_>>,
        error: Option<LineError<'_>>,
    ) -> Answer {
        let digest = Sha256::digest(format!("{}-{}", self.batch, self.line).as_bytes());
        let id: String = digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
        let id = format!("batch_req_{id}");
        let line = AnswerLine { id: &id, custom_id: Some(self.custom_id), response, error };
        // Whatever a line holds was JSON before.
        Answer { line: line.bytes().unwrap_or_default(), good, usage }
    }
}
