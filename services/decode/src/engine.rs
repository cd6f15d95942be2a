//! The way from async code to the thread that owns a model, and back.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use baton_bus::duty::counters::Counters;
use baton_model::{
    engine_thread::{self, EngineThread},
    model::Model,
    threads::ComputeThreads,
};
use tokio::{
    sync::mpsc::{UnboundedReceiver, unbounded_channel},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use crate::{
    batch::{Batch, PREFETCH_JOBS},
    messages::{Command, Event, Fetch, FetchedPiece, NewAnswer, NewJob},
};

pub(crate) struct Engine {
    thread: EngineThread<Command>,
    /// Jobs of which no answer has joined the batch yet.
    waiting: Arc<AtomicUsize>,
}

/// A job in the engine's hands. Dropping it ends its answers.
pub(crate) struct Ticket {
    job: engine_thread::Ticket<Command>,
    events: UnboundedReceiver<Event>,
    early: bool,
    waits: Option<Waits>,
}

/// Counts a job that waits.
struct Waits(Arc<AtomicUsize>);

impl Drop for Waits {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

impl Engine {
    /// Starts the thread; `ended` is cancelled when it ends, however that happens.
    pub(crate) fn start(
        model: Box<dyn Model>,
        threads: ComputeThreads,
        counters: Counters,
        ended: CancellationToken,
    ) -> io::Result<Self> {
        let batch = move || Batch::new(model).counted(counters);
        let thread = EngineThread::start("decode-engine", threads, batch, ended.drop_guard())?;
        Ok(Self { thread, waiting: Arc::default() })
    }

    /// Generates answers to a prompt, `stored` of whose tokens the store holds.
    pub(crate) fn answer(&self, prompt: Vec<u32>, stored: usize, answers: Vec<NewAnswer>) -> Ticket {
        // Unbounded, yet bounded: an answer has at most max_tokens events, and a few each time it joins the batch.
        let (sender, events) = unbounded_channel();
        let waits = Waits(self.waiting.clone());
        // The engine would ask for it when its step is over.
        let early = self.waiting.fetch_add(1, Relaxed) < PREFETCH_JOBS && stored > 0;
        let job = |number| Command::Job(Box::new(NewJob { number, prompt, stored, early, answers, events: sender }));
        // If the thread has ended, the receiver closes without a word, which the caller reports.
        Ticket { job: self.thread.submit(job, Command::Leave), events, early, waits: Some(waits) }
    }
}

impl Ticket {
    /// What happened to the answers; nothing any more if the engine's thread has ended.
    pub(crate) async fn next(&mut self) -> Option<Event> {
        let event = self.events.recv().await;
        if matches!(event, Some(Event::Joining { .. })) {
            self.waits = None;
        }
        event
    }

    /// The fetch that is to begin at once, if one is: few jobs wait, so this one's pieces may.
    pub(crate) fn early(&self) -> Option<Fetch> {
        self.early.then(|| Fetch::Early(self.job.number()))
    }

    /// Hands over the next piece of those that were wanted.
    pub(crate) fn bring(&self, fetch: Fetch, piece: FetchedPiece) {
        self.job.send(Command::Piece { fetch, piece, came: Instant::now() });
    }
}
