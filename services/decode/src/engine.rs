//! The way from async code to the thread that owns a model, and back.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use baton_bus::duty::counters::Counters;
use baton_contract::kv::Block;
use baton_engine::{
    ComputeThreads,
    generation::{self, Emitted, Generation},
    model::{self, Model},
};
use tokio::{sync::mpsc as channel, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{batch::Batch, schedule::TooLong};

pub(crate) struct Engine {
    commands: mpsc::Sender<Command>,
    jobs: AtomicU64,
    _thread: JoinHandle<()>,
}

/// One piece of a prompt's KV cache, as far as it could be had. The answers of one job share it.
#[derive(Clone)]
pub(crate) enum Held {
    Block(Arc<Block>),
    Missing { tokens: usize },
}

impl Held {
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
        fetch: u64,
    },
    /// An answer has pages and joins the batch. So long there was room for it, and nothing of its KV cache had come.
    Joining {
        waited: Duration,
    },
    /// An answer's KV cache is complete; so many tokens had to be computed again because their piece was missing, and so
    /// long since it joined it could have gone on but for a piece that had not come.
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

/// What the thread is told.
pub(crate) enum Command {
    Job(Box<NewJob>),
    /// The next piece of those that were wanted, and when it came.
    Piece {
        fetch: u64,
        held: Held,
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
    pub(crate) answers: Vec<NewAnswer>,
    pub(crate) events: channel::UnboundedSender<Event>,
}

/// One of a job's answers, as far as it is to be generated.
pub(crate) struct NewAnswer {
    pub(crate) choice: u32,
    /// Its tokens so far, which `generation` has accepted. Of none the first is sampled from the prompt's last logits.
    pub(crate) generated: Vec<u32>,
    pub(crate) generation: Generation,
}

/// A job in the engine's hands. Dropping it ends its answers.
pub(crate) struct Ticket {
    number: JobNumber,
    commands: mpsc::Sender<Command>,
    events: channel::UnboundedReceiver<Event>,
}

impl Engine {
    /// Starts the thread; `ended` is cancelled when it ends, however that happens.
    pub(crate) fn start(
        model: Box<dyn Model>,
        threads: ComputeThreads,
        counters: Counters,
        ended: CancellationToken,
    ) -> std::io::Result<Self> {
        let (commands, waiting) = mpsc::channel();
        let thread = thread::Builder::new().name("decode-engine".into()).spawn(move || {
            let _ended = ended.drop_guard();
            threads.run(move || Batch::new(model).counted(counters).serve(&waiting));
        })?;
        Ok(Self { commands, jobs: AtomicU64::new(0), _thread: thread })
    }

    /// Generates answers to a prompt, `stored` of whose tokens the store holds.
    pub(crate) fn answer(&self, prompt: Vec<u32>, stored: usize, answers: Vec<NewAnswer>) -> Ticket {
        // Unbounded, yet bounded: an answer has at most max_tokens events, and a few each time it joins the batch.
        let (events, receiver) = channel::unbounded_channel();
        let number = self.jobs.fetch_add(1, Ordering::Relaxed);
        let job = Box::new(NewJob { number, prompt, stored, answers, events });
        // If the thread has ended, the receiver closes without a word, which the caller reports.
        let _ = self.commands.send(Command::Job(job));
        Ticket { number, commands: self.commands.clone(), events: receiver }
    }
}

impl Ticket {
    /// What happened to the answers; nothing any more if the engine's thread has ended.
    pub(crate) async fn next(&mut self) -> Option<Event> {
        self.events.recv().await
    }

    /// Hands over the next piece of those that were wanted.
    pub(crate) fn bring(&self, fetch: u64, held: Held) {
        let _ = self.commands.send(Command::Piece { fetch, held, came: Instant::now() });
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let _ = self.commands.send(Command::Leave(self.number));
    }
}
