//! What a model's configuration consists of.

use super::error::Error;
use crate::checkpoint::Checkpoint;

/// The families of models; how they differ is in the other fields of [`Config`](super::Config).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Architecture {
    /// Llama and Mistral.
    Llama,
    /// Qwen 2 and 2.5.
    Qwen2,
    /// Qwen 3, dense.
    Qwen3,
    /// Gemma 3, text only.
    Gemma3,
}

impl Architecture {
    /// The family that the file names.
    pub(super) fn of(file: &Checkpoint) -> Result<Architecture, Error> {
        match file.string("general.architecture")? {
            "llama" => Ok(Architecture::Llama),
            "qwen2" => Ok(Architecture::Qwen2),
            "qwen3" => Ok(Architecture::Qwen3),
            "gemma3" => Ok(Architecture::Gemma3),
            other => Err(Error::Architecture { found: other.to_owned() }),
        }
    }

    /// The name in model files, which all keys of the architecture begin with.
    pub fn name(self) -> &'static str {
        match self {
            Architecture::Llama => "llama",
            Architecture::Qwen2 => "qwen2",
            Architecture::Qwen3 => "qwen3",
            Architecture::Gemma3 => "gemma3",
        }
    }
}

/// What sets a layer apart from the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layer {
    /// How many positions attention sees at most: the token's own and those right before it. Without, all.
    pub window: Option<usize>,
    /// Index into [`Config::ropes`](super::Config::ropes).
    pub rope: usize,
}

/// Rotary position embedding (Su et al., "RoFormer", 2021): at position `p` the rotated pair `i` of a head turns by
/// `p * frequencies[i]` radians. What lies beyond the pairs stays.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Radians a position, one value a pair.
    pub frequencies: Vec<f64>,
}

/// Which values of a head in the file rotate together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pairs {
    /// `2i` and `2i + 1`.
    Adjacent,
    /// `i` and `i + width / 2`, where `width` is the number of rotated values.
    Halves,
}

/// What the gates of the feed-forward part go through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    /// `x / (1 + e^-x)`.
    Silu,
    /// The tanh approximation of GELU: `x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3)))`.
    Gelu,
}

/// How the values of a row divide into heads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    /// Query heads, a multiple of the KV heads.
    pub queries: usize,
    /// KV heads.
    pub kv: usize,
    /// Values a head, a multiple of 16.
    pub size: usize,
}

impl Heads {
    /// Query heads that share a KV head.
    #[inline]
    pub fn group(self) -> usize {
        self.queries / self.kv
    }

    /// Values of a row of queries.
    #[inline]
    pub fn query_width(self) -> usize {
        self.queries * self.size
    }

    /// Values of a row of keys, and as many of values.
    #[inline]
    pub fn kv_width(self) -> usize {
        self.kv * self.size
    }

    /// Values of a row of queries, keys and values.
    #[inline]
    pub fn row_width(self) -> usize {
        self.query_width() + 2 * self.kv_width()
    }
}
