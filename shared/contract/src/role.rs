//! What a worker that computes can be.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::subject::Stage;

/// The stage that a computing worker serves; ingest's workers compute nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Computes prompts.
    Prefill,
    /// Generates answers.
    Decode,
}

/// A text that is no role.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected prefill or decode, found {0:?}")]
pub struct RoleError(String);

impl Role {
    /// Both roles, in the order in which a job meets them.
    pub const ALL: [Self; 2] = [Self::Prefill, Self::Decode];

    /// The stage that it serves.
    pub fn stage(self) -> Stage {
        match self {
            Self::Prefill => Stage::Prefill,
            Self::Decode => Stage::Decode,
        }
    }

    /// The role of a stage's workers; nothing for ingest.
    pub fn of(stage: Stage) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.stage() == stage)
    }

    /// The other one.
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Self::Prefill => Self::Decode,
            Self::Decode => Self::Prefill,
        }
    }

    /// Its name in options and subjects.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Prefill => "prefill",
            Self::Decode => "decode",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Role {
    type Err = RoleError;

    fn from_str(text: &str) -> Result<Self, RoleError> {
        Self::ALL.into_iter().find(|role| role.as_str() == text).ok_or_else(|| RoleError(text.to_owned()))
    }
}
