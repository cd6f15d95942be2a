//! Log-probabilities of an answer's tokens.

use serde::{Deserialize, Serialize};

/// Log-probabilities of an answer's tokens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Logprobs {
    /// One for each of the answer's tokens that its text has, so for fewer where a stop text was found: that one's are left out.
    /// A token that it begins in is told as far as the text goes.
    pub content: Vec<TokenLogprob>,
}

/// The log-probability of a token, and of the likeliest tokens in its place: natural logarithms, never below -9999, of
/// the model's own distribution, before penalties, bias, constraint and temperature.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, bincode::Encode, bincode::Decode)]
pub struct TokenLogprob {
    /// The token that was chosen.
    #[serde(flatten)]
    pub chosen: Alternative,
    /// Likeliest first; the chosen token may be among them.
    pub top_logprobs: Vec<Alternative>,
}

/// A token that an answer might have, and its log-probability.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, bincode::Encode, bincode::Decode)]
pub struct Alternative {
    /// The token's text; what is not UTF-8 by itself becomes U+FFFD. Empty for control tokens.
    pub token: String,
    /// The token's id.
    pub id: u32,
    /// Its log-probability.
    pub logprob: f32,
    /// The token's bytes, which are half a character at times.
    pub bytes: Vec<u8>,
}

impl TokenLogprob {
    /// Bytes that this takes in a result, at most.
    pub fn json_bytes(&self) -> usize {
        std::iter::once(&self.chosen).chain(&self.top_logprobs).map(Alternative::json_bytes).sum()
    }
}

impl Alternative {
    /// Names and numbers take less than 90; a byte is one of up to six as text and of up to four as a number.
    fn json_bytes(&self) -> usize {
        90 + 10 * self.bytes.len()
    }
}
