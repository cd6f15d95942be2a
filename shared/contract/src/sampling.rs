//! How the next token is chosen.

use serde::{Deserialize, Serialize};

/// Sampling parameters of one job, complete: defaults are filled in when a request is admitted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, bincode::Encode, bincode::Decode)]
pub struct Sampling {
    /// 0 picks the most likely token (greedy); higher flattens the distribution. Range 0 to 2.
    pub temperature: f32,
    /// Keeps the smallest set of most likely tokens whose probabilities sum to at least this. Range (0, 1]; 1 keeps all.
    pub top_p: f32,
    /// Keeps this many most likely tokens; 0 keeps all.
    pub top_k: u32,
    /// With the position of a token in the sequence, determines its random number.
    pub seed: u64,
}

impl Sampling {
    pub const GREEDY: Self = Self { temperature: 0.0, top_p: 1.0, top_k: 0, seed: 0 };
}
