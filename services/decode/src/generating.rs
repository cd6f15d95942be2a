//! A job's answers while the engine generates them: what is on its way, and how many of them are where.

use std::time::Duration;

use baton_bus::stage::{Retry, StageError};
use baton_contract::{envelope::Piece, job::Job, outcome::Code};
use futures::{
    StreamExt,
    stream::{BoxStream, SelectAll},
};
use tokio::time::Instant;

use crate::{
    engine::{Engine, Ticket},
    messages::{Fetch, FetchedPiece, NewAnswer},
};

/// A piece of the prompt's KV cache that a fetch has brought.
type Brought = (Fetch, Result<FetchedPiece, StageError>);

pub(crate) struct Generating<'a> {
    pub(crate) ticket: Ticket,
    /// Yields the pieces of all fetches.
    pub(crate) fetches: SelectAll<BoxStream<'a, Brought>>,
    /// Pieces of the prompt, their tokens together, and pieces on their way.
    pieces: usize,
    pub(crate) stored: usize,
    awaited: usize,
    /// Since when pieces are on their way, if any are.
    fetching: Instant,
    /// Answers that have not ended, and those of them in the batch.
    pub(crate) open: usize,
    pub(crate) in_batch: usize,
    pub(crate) submitted: Instant,
    /// Since when answers are generated.
    pub(crate) began: Option<Instant>,
}

impl<'a> Generating<'a> {
    /// Hands a job's answers to the engine.
    pub(crate) fn submit(engine: &Engine, job: &Job, pieces: &[Piece], answers: Vec<NewAnswer>) -> Self {
        let stored = pieces.iter().map(|piece| piece.tokens as usize).sum();
        let (open, submitted) = (answers.len(), Instant::now());
        Self {
            ticket: engine.answer(job.prompt.clone(), stored, answers),
            fetches: SelectAll::new(),
            pieces: pieces.len(),
            stored,
            awaited: 0,
            fetching: submitted,
            open,
            in_batch: 0,
            submitted,
            began: None,
        }
    }

    /// Begins a fetch of all pieces.
    pub(crate) fn fetch(&mut self, fetch: Fetch, brings: BoxStream<'a, Result<FetchedPiece, StageError>>) {
        if self.awaited == 0 {
            self.fetching = Instant::now();
        }
        self.awaited += self.pieces;
        self.fetches.push(brings.map(move |piece| (fetch, piece)).boxed());
    }

    /// Hands a piece to the engine. With the last one that is on its way, returns for how long any were; else nothing.
    pub(crate) fn bring(&mut self, fetch: Fetch, piece: FetchedPiece) -> Duration {
        self.ticket.bring(fetch, piece);
        self.awaited -= 1;
        if self.awaited == 0 { self.fetching.elapsed() } else { Duration::ZERO }
    }

    /// Why the job can't go on after the engine's thread ended. Which answer of the batch was to blame can't be told: the try
    /// counts for all that were in it.
    pub(crate) fn thread_ended(&self) -> StageError {
        if self.in_batch > 0 {
            let message = "the engine's thread ended while it generated the answer";
            return StageError::new(Retry::Elsewhere, Code::Internal, message);
        }
        StageError::passing("the engine's thread ended")
    }
}
