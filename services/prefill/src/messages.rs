//! What the async code and the engine's thread say to each other.

use std::{ops::Range, sync::Arc};

use baton_contract::kv::Block;
use baton_model::{
    generation::{self, Emitted, Generation},
    model,
};
use tokio::sync::mpsc::UnboundedSender;

use crate::schedule::{PromptId, TooLong};

/// What has become of a prompt.
#[derive(Debug)]
pub(crate) enum Computed {
    /// The prompt's turn has come: what it reuses is wanted now.
    Started,
    /// A piece that was brought is no longer held in memory.
    Taken,
    /// The KV cache of a piece, named by its place.
    Piece {
        piece: usize,
        block: Block,
    },
    /// The first token of each of the job's answers; comes last.
    FirstTokens {
        first: Vec<Emitted>,
        /// Prompt tokens that were not computed.
        reused: usize,
    },
    /// An answer can't begin.
    Refused(generation::Error),
    Failed(Failed),
}

/// What went wrong with one prompt.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failed {
    #[error(
        "the prompt needs KV memory for {} tokens, and this worker has it for {}; raise stages.prefill.kv_memory or \
         memory_fraction, or shorten the prompt", .0.needed, .0.capacity
    )]
    TooLong(TooLong),
    #[error(transparent)]
    Model(#[from] model::Error),
}

/// How the thread works.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Options {
    /// Tokens that are computed at a time, of all prompts together.
    pub(crate) batch_tokens: usize,
    /// How many of a prompt's tokens may be computed and not yet stored; no piece may be longer.
    pub(crate) ahead: usize,
}

/// What the thread takes.
pub(crate) enum Command {
    Prompt {
        id: PromptId,
        prompt: Box<NewPrompt>,
    },
    /// The KV cache of a piece at the prompt's beginning, but for the prompt's last token; pieces come in order.
    Bring {
        id: PromptId,
        piece: usize,
        block: Arc<Block>,
    },
    /// No more of the prompt can be reused than was brought.
    Compute(PromptId),
    /// The store has more of the prompt's tokens, as many as it says.
    Stored {
        id: PromptId,
        tokens: usize,
    },
    /// Nobody waits for the prompt any more.
    Leave(PromptId),
}

pub(crate) struct NewPrompt {
    pub(crate) tokens: Vec<u32>,
    /// They touch each other and cover the prompt.
    pub(crate) pieces: Vec<Range<usize>>,
    /// How many of the first tokens are brought, whole pieces but for the prompt's last token: its logits are wanted.
    pub(crate) reused: usize,
    /// Of each of the job's answers.
    pub(crate) generations: Vec<Generation>,
    pub(crate) computed: UnboundedSender<Computed>,
}
