//! The way from async code to the thread that owns a model, and back.

use std::{
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle},
};

use baton_bus::duty::counters::Counters;
use baton_contract::kv::Block;
use baton_engine::{
    ComputeThreads,
    generation::{self, Emitted, Generation},
    model::{self, Model},
};
use tokio::sync::mpsc as channel;
use tokio_util::sync::CancellationToken;

use crate::{
    batch::Batch,
    schedule::{PromptId, TooLong},
};

pub(crate) struct Engine {
    commands: mpsc::Sender<Command>,
    prompts: AtomicU64,
    _thread: JoinHandle<()>,
}

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

/// What the thread is told.
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
    /// So many more of the prompt's tokens are in the store.
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
    pub(crate) computed: channel::UnboundedSender<Computed>,
}

/// A prompt in the engine's hands. Dropping it ends the work at the next pass.
pub(crate) struct Ticket {
    id: PromptId,
    commands: mpsc::Sender<Command>,
    computed: channel::UnboundedReceiver<Computed>,
}

impl Engine {
    /// Starts the thread; `ended` is cancelled when it ends, however that happens.
    pub(crate) fn start(
        model: Box<dyn Model>,
        threads: ComputeThreads,
        options: Options,
        counters: Counters,
        ended: CancellationToken,
    ) -> std::io::Result<Self> {
        let (commands, waiting) = mpsc::channel();
        let thread = thread::Builder::new().name("prefill-engine".into()).spawn(move || {
            let _ended = ended.drop_guard();
            threads.run(move || Batch::new(model, options).counted(counters).serve(&waiting));
        })?;
        Ok(Self { commands, prompts: AtomicU64::new(0), _thread: thread })
    }

    /// Computes what follows the first `reused` tokens of a prompt piece by piece, and its answers' first tokens.
    pub(crate) fn prefill(
        &self,
        tokens: Vec<u32>,
        pieces: Vec<Range<usize>>,
        reused: usize,
        generations: Vec<Generation>,
    ) -> Ticket {
        // Unbounded, yet bounded: no more pieces wait than `Options::ahead` has room for.
        let (computed, receiver) = channel::unbounded_channel();
        let id = self.prompts.fetch_add(1, Ordering::Relaxed);
        let prompt = Box::new(NewPrompt { tokens, pieces, reused, generations, computed });
        // If the thread has ended, the receiver closes without a word, which the caller reports.
        let _ = self.commands.send(Command::Prompt { id, prompt });
        Ticket { id, commands: self.commands.clone(), computed: receiver }
    }
}

impl Ticket {
    /// What has become of the prompt; nothing any more if the engine's thread has ended.
    pub(crate) async fn next(&mut self) -> Option<Computed> {
        self.computed.recv().await
    }

    /// Hands over the KV cache of the next piece that is reused.
    pub(crate) fn bring(&self, piece: usize, block: Arc<Block>) {
        let _ = self.commands.send(Command::Bring { id: self.id, piece, block });
    }

    /// Tells that what was not brought must be computed.
    pub(crate) fn compute(&self) {
        let _ = self.commands.send(Command::Compute(self.id));
    }

    /// Tells that a piece of so many tokens is in the store: as many more may be computed.
    pub(crate) fn stored(&self, tokens: usize) {
        let _ = self.commands.send(Command::Stored { id: self.id, tokens });
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let _ = self.commands.send(Command::Leave(self.id));
    }
}
