//! The way from async code to the thread that owns a model, and back.

use std::{io, ops::Range, sync::Arc};

use baton_bus::duty::counters::Counters;
use baton_contract::kv::Block;
use baton_model::{
    engine_thread::{self, EngineThread},
    generation::Generation,
    model::Model,
    threads::ComputeThreads,
};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio_util::sync::CancellationToken;

use crate::{
    batch::Batch,
    messages::{Command, Computed, NewPrompt, Options},
};

pub(crate) struct Engine(EngineThread<Command>);

/// A prompt in the engine's hands. Dropping it ends the work at the next pass.
pub(crate) struct Ticket {
    prompt: engine_thread::Ticket<Command>,
    computed: UnboundedReceiver<Computed>,
}

impl Engine {
    /// Starts the thread; `ended` is cancelled when it ends, however that happens.
    pub(crate) fn start(
        model: Box<dyn Model>,
        threads: ComputeThreads,
        options: Options,
        counters: Counters,
        ended: CancellationToken,
    ) -> io::Result<Self> {
        let batch = move || Batch::new(model, options).counted(counters);
        Ok(Self(EngineThread::start("prefill-engine", threads, batch, ended.drop_guard())?))
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
        let (sender, computed) = unbounded_channel();
        let prompt = Box::new(NewPrompt { tokens, pieces, reused, generations, computed: sender });
        // If the thread has ended, the receiver closes without a word, which the caller reports.
        Ticket { prompt: self.0.submit(|id| Command::Prompt { id, prompt }, Command::Leave), computed }
    }
}

impl Ticket {
    /// What has become of the prompt; nothing any more if the engine's thread has ended.
    pub(crate) async fn next(&mut self) -> Option<Computed> {
        self.computed.recv().await
    }

    /// Hands over the KV cache of the next piece that is reused.
    pub(crate) fn bring(&self, piece: usize, block: Arc<Block>) {
        self.prompt.send(Command::Bring { id: self.prompt.number(), piece, block });
    }

    /// Says that what was not brought must be computed.
    pub(crate) fn compute_rest(&self) {
        self.prompt.send(Command::Compute(self.prompt.number()));
    }

    /// Says that a piece of `tokens` tokens is in the store: as many more may be computed.
    pub(crate) fn mark_stored(&self, tokens: usize) {
        self.prompt.send(Command::Stored { id: self.prompt.number(), tokens });
    }
}
