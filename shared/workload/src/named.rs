//! The shapes of load that pipelines are compared on.

use std::{fmt, str::FromStr};

use serde::Serialize;

use crate::{Lengths, lengths};

/// How long prompts and answers are.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Shape {
    /// Tokens of a prompt.
    pub prompt_tokens: Lengths,
    /// Most tokens of an answer.
    pub output_tokens: Lengths,
}

impl Shape {
    /// The same with lengths that are `factor` times as long, at least 1 token.
    pub fn scaled(self, factor: f64) -> Self {
        Self { prompt_tokens: self.prompt_tokens.scaled(factor), output_tokens: self.output_tokens.scaled(factor) }
    }
}

/// A shape of load with a name. They differ in how many prompt tokens there are for each generated one: 1, 4 and 13, which
/// is what two prefill workers for four decode workers, as many of each, and four for two can carry where prefill computes
/// a token about four times as fast as decode generates one (an 8B model on a data-centre GPU, in batches of some 30).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Named {
    /// Short prompts, long generations: 256 and 256 tokens on average.
    Long,
    /// 768 and 192 tokens on average.
    Mixed,
    /// Long prompts, short answers: 2,048 and 160 tokens on average.
    Prompts,
}

impl Named {
    /// From the fewest prompt tokens for a generated one to the most.
    pub const ALL: [Self; 3] = [Self::Long, Self::Mixed, Self::Prompts];

    /// The word that [`FromStr`] reads.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Long => "long",
            Self::Mixed => "mixed",
            Self::Prompts => "prompts",
        }
    }

    /// The distributions of the lengths.
    pub fn shape(self) -> Shape {
        let uniform = |min, max| Lengths::Uniform { min, max };
        let (prompt_tokens, output_tokens) = match self {
            Self::Long => (uniform(64, 448), uniform(128, 384)),
            Self::Mixed => (uniform(256, 1280), uniform(64, 320)),
            Self::Prompts => (uniform(512, 3584), uniform(64, 256)),
        };
        Shape { prompt_tokens, output_tokens }
    }
}

/// A text that names no load.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected long, mixed or prompts, found {0:?}")]
pub struct Error(String);

impl FromStr for Named {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let unknown = || Error(text.chars().take(lengths::QUOTED).collect());
        Self::ALL.into_iter().find(|named| named.as_str() == text).ok_or_else(unknown)
    }
}

impl fmt::Display for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back_and_shapes_scale() {
        for named in Named::ALL {
            assert_eq!(named.to_string().parse(), Ok(named));
        }
        assert_eq!("longest".parse::<Named>(), Err(Error("longest".into())));
        let shape = Named::Prompts.shape().scaled(0.125);
        assert_eq!(shape.prompt_tokens.to_string(), "uniform:64:448");
        assert_eq!(shape.output_tokens.to_string(), "uniform:8:32");
        assert_eq!(Named::Long.shape().scaled(1e-6).prompt_tokens.mean(), 1.0);
    }
}
