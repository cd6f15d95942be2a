//! What an engine says of an answer, whichever engine it is.

use baton_contract::outcome::{FinishReason, TokenLogprob, Usage};
use serde_json::{Map, Value};

/// What comes of a request, in order.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The prompt's token ids.
    Prompt(Vec<u32>),
    /// The next piece of an answer.
    Piece(Piece),
    /// Tokens that it took.
    Usage(Usage),
}

/// A piece of an answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Piece {
    /// Which of the request's answers, from 0.
    pub choice: u32,
    /// Its text; may be empty.
    pub text: String,
    /// What else the message has: parts of `tool_calls`, of `reasoning_content`.
    pub message: Map<String, Value>,
    /// Its token ids, if the engine tells them.
    pub tokens: Vec<u32>,
    /// If the request asks for them.
    pub logprobs: Vec<TokenLogprob>,
    /// Why the answer ends with it, if it does.
    pub finish_reason: Option<FinishReason>,
}
