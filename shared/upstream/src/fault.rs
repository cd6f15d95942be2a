//! Why an engine gave no answer, and whether it is worth asking again.

use std::time::Duration;

use baton_contract::outcome::{Code, Failure};

/// Whether a request is worth another try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// No: the engine refuses the request itself.
    Never,
    /// Yes, after a pause if the engine names one: it is busy, gone or silent, through no fault of the request.
    Later(Option<Duration>),
    /// Yes, but it may be the request's fault: one that fails so again and again fails for good.
    Elsewhere,
    /// Yes, without the KV cache that another instance was to bring.
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
        Self { retry: Retry::Later(None), code: Code::Internal, message: message.into() }
    }

    /// A fault that may be the request's.
    pub fn elsewhere(message: impl Into<String>) -> Self {
        Self { retry: Retry::Elsewhere, code: Code::Internal, message: message.into() }
    }

    /// The end of a job that fails so.
    pub fn failure(&self) -> Failure {
        Failure::new(self.code, self.message.clone())
    }
}
