//! The way from async code to the thread that owns a model, and back.

use std::{
    sync::{
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle},
};

use baton_contract::kv::Block;
use baton_engine::{
    generation::{self, Emitted, Generation},
    model::{self, Model},
};
use tokio::sync::mpsc as channel;
use tokio_util::sync::CancellationToken;

use crate::{
    batch::Batch,
    schedule::{AnswerId, TooLong},
};

pub(crate) struct Engine {
    commands: mpsc::Sender<Command>,
    answers: AtomicU64,
    _thread: JoinHandle<()>,
}

/// One piece of a prompt's KV cache, as far as it could be had.
#[derive(Clone)]
pub(crate) enum Held {
    Block(Block),
    Missing { tokens: usize },
}

#[derive(Debug)]
pub(crate) enum Event {
    /// The answer waits, and the pieces of its prompt's KV cache are wanted. It may come again: an answer that had to leave
    /// the batch for want of memory has lost what it had.
    Wanted,
    /// The answer has pages and joins the batch.
    Joining,
    /// The prompt's KV cache is complete; so many of its tokens had to be computed again.
    Imported {
        recomputed: usize,
    },
    Token(Emitted),
    /// The answer can't go on.
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

/// What the thread is told.
pub(crate) enum Command {
    Answer {
        id: AnswerId,
        answer: Box<NewAnswer>,
    },
    /// The pieces that were wanted: together as long as the prompt.
    Held {
        id: AnswerId,
        held: Vec<Held>,
    },
    /// Nobody waits for the answer any more.
    Leave(AnswerId),
}

/// An answer whose first token `generation` has accepted.
pub(crate) struct NewAnswer {
    pub(crate) prompt: Vec<u32>,
    pub(crate) first_token: u32,
    pub(crate) generation: Generation,
    pub(crate) events: channel::UnboundedSender<Event>,
}

/// An answer in the engine's hands. Dropping it ends the answer.
pub(crate) struct Ticket {
    id: AnswerId,
    commands: mpsc::Sender<Command>,
    events: channel::UnboundedReceiver<Event>,
}

impl Engine {
    /// Starts the thread; `ended` is cancelled when it ends, however that happens.
    pub(crate) fn start(model: Box<dyn Model>, ended: CancellationToken) -> std::io::Result<Self> {
        let (commands, waiting) = mpsc::channel();
        let thread = thread::Builder::new().name("decode-engine".into()).spawn(move || {
            let _ended = ended.drop_guard();
            Batch::new(model).serve(&waiting);
        })?;
        Ok(Self { commands, answers: AtomicU64::new(0), _thread: thread })
    }

    /// Continues an answer whose first token `generation` has accepted.
    pub(crate) fn answer(&self, prompt: Vec<u32>, generation: Generation, first_token: u32) -> Ticket {
        // Unbounded, yet bounded: an answer has at most max_tokens events, and a few each time it joins the batch.
        let (events, receiver) = channel::unbounded_channel();
        let id = self.answers.fetch_add(1, Ordering::Relaxed);
        let answer = Box::new(NewAnswer { prompt, first_token, generation, events });
        // If the thread has ended, the receiver closes without a word, which the caller reports.
        let _ = self.commands.send(Command::Answer { id, answer });
        Ticket { id, commands: self.commands.clone(), events: receiver }
    }
}

impl Ticket {
    /// What happened to the answer; nothing any more if the engine's thread has ended.
    pub(crate) async fn next(&mut self) -> Option<Event> {
        self.events.recv().await
    }

    /// Hands over the pieces of the prompt's KV cache that were wanted.
    pub(crate) fn bring(&self, held: Vec<Held>) {
        let _ = self.commands.send(Command::Held { id: self.id, held });
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let _ = self.commands.send(Command::Leave(self.id));
    }
}
