//! The way from async code to the thread that owns a model, and back.

use std::io;

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
    batch::Batch,
    messages::{Command, Event, FetchedPiece, NewAnswer, NewJob},
};

pub(crate) struct Engine(EngineThread<Command>);

/// A job in the engine's hands. Dropping it ends its answers.
pub(crate) struct Ticket {
    job: engine_thread::Ticket<Command>,
    events: UnboundedReceiver<Event>,
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
        Ok(Self(EngineThread::start("decode-engine", threads, batch, ended.drop_guard())?))
    }

    /// Generates answers to a prompt, `stored` of whose tokens the store holds.
    pub(crate) fn answer(&self, prompt: Vec<u32>, stored: usize, answers: Vec<NewAnswer>) -> Ticket {
        // Unbounded, yet bounded: an answer has at most max_tokens events, and a few each time it joins the batch.
        let (sender, events) = unbounded_channel();
        let job = |number| Command::Job(Box::new(NewJob { number, prompt, stored, answers, events: sender }));
        // If the thread has ended, the receiver closes without a word, which the caller reports.
        Ticket { job: self.0.submit(job, Command::Leave), events }
    }
}

impl Ticket {
    /// What happened to the answers; nothing any more if the engine's thread has ended.
    pub(crate) async fn next(&mut self) -> Option<Event> {
        self.events.recv().await
    }

    /// Hands over the next piece of those that were wanted.
    pub(crate) fn bring(&self, fetch: u64, piece: FetchedPiece) {
        self.job.send(Command::Piece { fetch, piece, came: Instant::now() });
    }
}
