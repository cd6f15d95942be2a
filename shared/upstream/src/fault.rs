//! Why an engine gave no answer, and whether it is worth asking again.

use std::time::Duration;

use baton_contract::outcome::{Code, Failure};

/// Whether a request is worth another try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// No: the engine refuses the request itself.
    Never,
    /// Yes, through no fault of the request: after the pause, if the engine has no room now; else it is gone, silent, or not to be
    /// used as the pipeline says it is.
    Later(Option<Duration>),
    /// Yes, but it may be the request's fault: one that fails so again and again fails for good.
    Elsewhere,
    /// Yes, and from the start: without what it was to build on, which is the KV cache of another instance or the beginning of an
    /// answer.
    Recompute,
}

/// An engine's fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Fault {
    /// Whether it is worth another try.
    pub retry: Retry,
    /// For programs, if it ends the job.
    pub code: Code,
    /// For people: with the engine's own words.
    pub message: String,
}

impl Fault {
    /// A fault of the surroundings that may pass.
    pub fn later(message: impl Into<String>) -> Self {
        Self::new(Retry::Later(None), Code::Internal, message)
    }

    /// The engine has no room now.
    pub fn busy(pause: Duration, message: impl Into<String>) -> Self {
        Self::new(Retry::Later(Some(pause)), Code::Internal, message)
    }

    /// A fault that may be the request's.
    pub fn elsewhere(message: impl Into<String>) -> Self {
        Self::new(Retry::Elsewhere, Code::Internal, message)
    }

    /// A message longer than 2,000 bytes is cut.
    pub(crate) fn new(retry: Retry, code: Code, message: impl Into<String>) -> Self {
        Self { retry, code, message: Failure::new(code, message).message }
    }

    /// The end of a job that fails so.
    pub fn failure(&self) -> Failure {
        Failure::new(self.code, self.message.clone())
    }
}
