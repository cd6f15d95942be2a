//! The thread that owns the model. Async code sends prompts and receives pieces; nothing on it ever awaits.

use std::{
    ops::Range,
    sync::mpsc,
    thread::{self, JoinHandle},
};

use baton_contract::kv::Block;
use baton_engine::{
    generation::{self, Emitted, Generation},
    model::{self, Model, Step},
};
use tokio::sync::mpsc as channel;
use tokio_util::sync::CancellationToken;

pub(crate) struct Engine {
    prompts: mpsc::Sender<Prompt>,
    _thread: JoinHandle<()>,
}

struct Prompt {
    tokens: Vec<u32>,
    pieces: Vec<Range<usize>>,
    generation: Generation,
    computed: channel::Sender<Computed>,
}

pub(crate) enum Computed {
    /// The prompt's turn has come.
    Started,
    /// The KV cache of the next piece.
    Piece(Block),
    /// The answer's first token; comes last.
    FirstToken(Emitted),
    /// The answer can't begin.
    Refused(generation::Error),
    Failed(model::Error),
}

impl Engine {
    /// Starts the thread; `ended` is cancelled when it ends, however that happens.
    pub(crate) fn start(model: Box<dyn Model>, ended: CancellationToken) -> std::io::Result<Self> {
        let (prompts, waiting) = mpsc::channel();
        let thread = thread::Builder::new().name("prefill-engine".into()).spawn(move || {
            let _ended = ended.drop_guard();
            serve(model, waiting);
        })?;
        Ok(Self { prompts, _thread: thread })
    }

    /// Computes a prompt piece by piece. Dropping the receiver ends the work at the next piece.
    pub(crate) fn prefill(
        &self,
        tokens: Vec<u32>,
        pieces: Vec<Range<usize>>,
        generation: Generation,
    ) -> channel::Receiver<Computed> {
        let (computed, receiver) = channel::channel(super::AHEAD);
        // If the thread has ended, the receiver closes without a word, which the caller reports.
        let _ = self.prompts.send(Prompt { tokens, pieces, generation, computed });
        receiver
    }
}

/// The receiver has gone: nobody wants the rest.
struct Gone;

fn serve(mut model: Box<dyn Model>, prompts: mpsc::Receiver<Prompt>) {
    for mut prompt in prompts {
        if prompt.computed.blocking_send(Computed::Started).is_err() {
            continue;
        }
        let _ = compute(model.as_mut(), &mut prompt);
    }
}

fn compute(model: &mut dyn Model, prompt: &mut Prompt) -> Result<(), Gone> {
    let Prompt { tokens, pieces, generation, computed } = prompt;
    let send = |event| computed.blocking_send(event).map_err(|_| Gone);
    let sequence = model.open();
    let mut work = || -> Result<Result<(), Gone>, model::Error> {
        for range in pieces.iter() {
            let last = range.end == tokens.len();
            let step = Step { sequence, tokens: &tokens[range.clone()], logits: usize::from(last) };
            let logits = model.forward(&[step])?.remove(0);
            if send(Computed::Piece(model.export(sequence, range.clone())?)).is_err() {
                return Ok(Err(Gone));
            }
            if last {
                let first = generation.next(&logits);
                return Ok(send(first.map_or_else(Computed::Refused, Computed::FirstToken)));
            }
        }
        Ok(Ok(()))
    };
    let done = work();
    model.close(sequence);
    done.unwrap_or_else(|error| send(Computed::Failed(error)))
}
