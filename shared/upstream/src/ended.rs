//! What came of a request, as far as its instance is concerned.

use std::time::Duration;

use crate::{Fault, Retry};

/// What came of a request, as far as the instance is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It was answered.
    Answered,
    /// The engine refused it, through the request's own fault.
    Refused,
    /// The engine has no room (429, 503), and names a pause.
    PutOff(Option<Duration>),
    /// The engine failed it (5xx), or said what no engine says: that may be the request's fault.
    Failed,
    /// The instance can't be reached, or is silent.
    Gone,
    /// Nobody wants it any more.
    Left,
}

impl From<&Fault> for Ended {
    fn from(fault: &Fault) -> Self {
        match fault.retry {
            Retry::Never | Retry::Recompute => Self::Refused,
            Retry::Later(Some(pause)) => Self::PutOff(Some(pause)),
            Retry::Later(None) => Self::Gone,
            Retry::Elsewhere => Self::Failed,
        }
    }
}
