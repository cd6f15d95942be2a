//! OpenAI's requests, answers, streams, errors and batch files, and what they are as Baton's. Pure: no I/O, no clock.
//!
//! - [`read`] reads a request; [`response()`] writes an answer, [`Chunks`] one in pieces, [`ApiError`] a refusal.
//! - [`Splitter`] and [`read_line`] read the lines of a batch's input, [`AnswerLine`] writes those of its answers.
//!
//! What must never happen here: a field of a request that is ignored, an answer that is streamed other than it is whole.
#![forbid(unsafe_code)]
#![warn(missing_docs, unreachable_pub)]

mod alike;
mod answer;
mod chunks;
mod endpoint;
mod error;
mod fields;
mod foreign;
mod line;
mod own;
mod request;
mod response;
mod split;
mod told;

pub use answer::{AnswerLine, LineError, LineResponse};
pub use chunks::Chunks;
pub use endpoint::Endpoint;
pub use error::ApiError;
pub use line::{BatchLine, LineProblem, read_line};
pub use request::{Call, read};
pub use response::response;
pub use split::{BYTE_ORDER_MARK, RawLine, Splitter};

#[cfg(test)]
mod tests;
