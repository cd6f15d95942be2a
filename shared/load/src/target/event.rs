//! What is heard of requests, by whatever way it came.

use tokio::time::Instant;

use crate::record::Stages;

/// Something that was heard of a request.
#[derive(Debug)]
pub(crate) struct Event {
    /// The request's place in the run.
    pub(crate) index: usize,
    pub(crate) at: Instant,
    pub(crate) what: What,
}

#[derive(Debug)]
pub(crate) enum What {
    /// It went out at that time; heard once it is known whether it arrived.
    Sent,
    /// A live token of the first answer, and its place in it.
    Token {
        position: u32,
    },
    Completed {
        prompt_tokens: u32,
        output_tokens: u32,
        cached_tokens: u32,
        stages: Option<Stages>,
    },
    Failed {
        kind: String,
        message: String,
    },
}
