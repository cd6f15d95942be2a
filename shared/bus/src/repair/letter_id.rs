//! The names of dead letters.

use std::{fmt, str::FromStr};

use baton_contract::{JobId, Name, subject::Stage};

/// Names a dead letter.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum LetterId {
    /// A job's, written `prefill.acme.report-7`.
    Job {
        /// The stage that gave up.
        stage: Stage,
        /// Whose job it was.
        tenant: Name,
        /// The job's id.
        job: JobId,
    },
    /// That of a message that could not be read, by its sequence in the stage's stream: `prefill.1234`.
    Message {
        /// The stage whose queue it was in.
        stage: Stage,
        /// Its place in the queue's stream.
        sequence: u64,
    },
}

/// A text that is no dead letter's id.
#[derive(Debug, thiserror::Error)]
#[error("expected a dead letter such as prefill.acme.report-7 or prefill.1234, found {0:?}; `baton dlq ls` lists them")]
pub struct IdError(String);

impl LetterId {
    /// The stage that gave up.
    pub fn stage(&self) -> Stage {
        match self {
            Self::Job { stage, .. } | Self::Message { stage, .. } => *stage,
        }
    }
}

impl fmt::Display for LetterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Job { stage, tenant, job } => write!(f, "{stage}.{tenant}.{job}"),
            Self::Message { stage, sequence } => write!(f, "{stage}.{sequence}"),
        }
    }
}

impl FromStr for LetterId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let parts: Vec<&str> = text.split('.').collect();
        let stage = |name: &str| Stage::ALL.into_iter().find(|stage| stage.as_str() == name);
        let read = || match parts[..] {
            [first, tenant, job] => {
                Some(Self::Job { stage: stage(first)?, tenant: Name::new(tenant).ok()?, job: JobId::new(job).ok()? })
            }
            [first, sequence] => Some(Self::Message { stage: stage(first)?, sequence: sequence.parse().ok()? }),
            _ => None,
        };
        read().ok_or_else(|| IdError(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_read_back_and_others_are_refused() {
        for text in ["ingest.acme.a", "decode.acme.Run-7_b", "prefill.1234"] {
            assert_eq!(text.parse::<LetterId>().unwrap().to_string(), text);
        }
        for bad in ["", "prefill", "prefill.x", "nowhere.acme.a", "prefill.acme.a.b", "prefill.*.a", "prefill.acme.>"] {
            assert!(bad.parse::<LetterId>().is_err(), "{bad}");
        }
    }
}
