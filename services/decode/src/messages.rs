//! What the async code and the engine's thread say to each other.

use std::{sync::Arc, time::Duration};

use baton_contract::kv::Block;
use baton_model::{
    generation::{self, Emitted, Generation},
    model,
};
use tokio::{sync::mpsc::UnboundedSender, time::Instant};

use crate::schedule::TooLong;

/// One piece of a prompt's KV cache, as far as it could be had. The answers of one job share it.
#[derive(Clone)]
pub(crate) enum FetchedPiece {
    Block(Arc<Block>),
    Missing { tokens: usize },
}

impl FetchedPiece {
    pub(crate) fn tokens(&self) -> usize {
        match self {
            Self::Block(block) => block.tokens,
            Self::Missing { tokens } => *tokens,
        }
    }
}

/// What happens to a job's answers.
#[derive(Debug)]
pub(crate) enum Event {
    /// Answers wait, and the pieces of their prompt's KV cache are wanted, once for all of them. It may come again: an answer
    /// that had to leave the batch for want of memory has lost what it had.
    Wanted {
        fetch: Fetch,
    },
    /// An answer has pages and joins the batch. For `waited` there was room for it, and nothing of its KV cache had come.
    Joining {
        waited: Duration,
    },
    /// An answer's KV cache is complete. `recomputed` tokens had to be computed again because their piece was missing; for
    /// `waited` since it joined it could have gone on but for a piece that had not come.
    Joined {
        recomputed: usize,
        waited: Duration,
    },
    /// An answer had to leave the batch; it waits again.
    Left,
    Token {
        choice: u32,
        emitted: Emitted,
    },
    /// An answer can't go on.
    Stuck(generation::Error),
    Failed(Failed),
}

/// What went wrong with one answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failed {
    #[error(
        "the answer needs KV memory for {} tokens of prompt and answer, and this worker has it for {}; raise \
         stages.decode.kv_memory or memory_fraction, or ask for less", .0.needed, .0.capacity
    )]
    TooLong(TooLong),
    #[error(transparent)]
    Model(#[from] model::Error),
}

/// Names one job of an engine.
pub(crate) type JobNumber = u64;

/// Names a fetch of all pieces of a prompt's KV cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fetch {
    /// It began when the job was handed over.
    Early(JobNumber),
    /// The engine asked for it.
    Wanted(u64),
}

/// What the thread takes.
pub(crate) enum Command {
    Job(Box<NewJob>),
    /// The next piece of those that were wanted, and when it came.
    Piece {
        fetch: Fetch,
        piece: FetchedPiece,
        came: Instant,
    },
    /// Nobody waits for the job's answers any more.
    Leave(JobNumber),
}

pub(crate) struct NewJob {
    pub(crate) number: JobNumber,
    pub(crate) prompt: Vec<u32>,
    /// Tokens of its beginning whose KV the store holds; what comes after them is computed.
    pub(crate) stored: usize,
    /// Whether that is on its way already.
    pub(crate) early: bool,
    pub(crate) answers: Vec<NewAnswer>,
    pub(crate) events: UnboundedSender<Event>,
}

/// One of a job's answers, as far as it is to be generated.
pub(crate) struct NewAnswer {
    pub(crate) choice: u32,
    /// Its tokens so far, which `generation` has accepted. Of none the first is sampled from the prompt's last logits.
    pub(crate) generated: Vec<u32>,
    pub(crate) generation: Generation,
}
