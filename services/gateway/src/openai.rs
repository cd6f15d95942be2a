//! OpenAI's requests and answers, and what they are as Baton's: pure, no I/O.

mod chunks;
mod error;
mod fields;
mod line;
mod request;
mod response;

use baton_contract::request::Request;
pub use chunks::Chunks;
pub use error::ApiError;
pub(crate) use error::Reason;
pub use line::{BatchLine, LineProblem, read_line};
pub use request::read;
pub use response::response;

/// What may be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Endpoint {
    ChatCompletions,
    Completions,
}

impl Endpoint {
    pub const ALL: [Self; 2] = [Self::ChatCompletions, Self::Completions];

    pub fn path(self) -> &'static str {
        match self {
            Self::ChatCompletions => "/v1/chat/completions",
            Self::Completions => "/v1/completions",
        }
    }

    pub fn from_path(path: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|endpoint| endpoint.path() == path)
    }
}

/// One request, understood.
#[derive(Clone, Debug, PartialEq)]
pub struct Call {
    pub endpoint: Endpoint,
    /// Without an id. `lane` is what `service_tier` said, unless that was `auto` or `default`; whether the pipeline has such
    /// a lane or model is not yet known.
    pub request: Request,
    /// Whether the answer is wanted in pieces.
    pub stream: bool,
    /// Whether a stream ends with the usage.
    pub include_usage: bool,
    /// The model as the request named it.
    pub model: Option<String>,
}

#[cfg(test)]
mod tests;
