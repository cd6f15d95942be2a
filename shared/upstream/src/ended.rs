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
    /// The instance can't be reached, is silent, or says what no engine says.
    Faulty,
    /// Nobody wants it any more.
    Left,
}

impl From<&Fault> for Ended {
    /// An instance that fails one request fails others, too, as far as is known: they are better put elsewhere.
    fn from(fault: &Fault) -> Self {
        match fault.retry {
            Retry::Never | Retry::Recompute => Self::Refused,
            Retry::Later(Some(pause)) => Self::PutOff(Some(pause)),
            Retry::Later(None) | Retry::Elsewhere => Self::Faulty,
        }
    }
}
