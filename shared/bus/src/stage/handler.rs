//! What a stage's own work on a job gets, and what comes of it.

use std::{sync::Arc, time::Duration};

use baton_contract::{
    causes,
    envelope::Task,
    outcome::{Code, Failure, Outcome},
    record::Claim,
};
use bytes::Bytes;
use tokio::sync::oneshot;

use crate::{
    Error,
    stage::{cancel::Stop, checkpoints::Ledger},
};

/// One job in a worker's hands.
pub struct Work<T> {
    /// What the message says.
    pub task: T,
    /// The worker's claim on the job.
    pub claim: Claim,
    /// How long the message waited since the broker stored it.
    pub queue_ms: f64,
    /// What earlier attempts have left, and where this one leaves what it comes to.
    pub ledger: Ledger,
    /// Called when the job is to end before its work is done: its sender cancelled it, or its deadline passed. A job that
    /// was cancelled while it waited to be tried again comes with this called, so that what there is of it can be told.
    pub stop: Stop,
    /// Tells the end of the job.
    pub ended: Ended,
}

/// Tells whether this attempt has ended its job.
pub struct Ended(pub(super) oneshot::Receiver<()>);

impl Ended {
    /// Waits for the end of this attempt. True once the job's result is stored, and nobody will try the job again; false if
    /// others go on with it, or its message stays as a dead letter.
    pub async fn told(self) -> bool {
        self.0.await.is_ok()
    }
}

/// What comes after a stage has done its work.
pub enum Next {
    /// The message for the next stage; whatever it names is stored already.
    Forward {
        /// The next stage's queue.
        subject: String,
        /// The message.
        payload: Bytes,
    },
    /// The job has ended.
    Finish(Box<Outcome>),
}

/// Where and when a failed attempt may be repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// After a pause, as often as it takes: the fault is the surroundings' and may pass.
    Backoff,
    /// The same after this pause, which the surroundings ask for; at most a minute, for the job may be cancelled meanwhile.
    After(Duration),
    /// At once, on whichever worker is free; a job that fails so again and again fails for good.
    Elsewhere,
    /// Not at all: it would fail again.
    Never,
    /// At once, by another worker, for this one stops. The try does not count.
    HandOver,
    /// After a pause, by a worker that has the model with which the job was begun: this one has another. The try does not
    /// count.
    Unlike,
    /// By whoever holds the job: that is another worker now.
    Lost,
}

/// A failed attempt.
#[derive(Debug, thiserror::Error)]
#[error("{failure}")]
pub struct StageError {
    /// Whether and where the attempt may be repeated.
    pub retry: Retry,
    /// What went wrong.
    pub failure: Failure,
}

impl StageError {
    /// A failed attempt with a cause.
    pub fn new(retry: Retry, code: Code, message: impl Into<String>) -> Self {
        Self { retry, failure: Failure::new(code, message) }
    }

    /// A fault of a worker, the broker or the store that may pass.
    pub fn passing(error: impl Into<Box<dyn std::error::Error>>) -> Self {
        Self::new(Retry::Backoff, Code::Internal, causes(error.into().as_ref()))
    }

    /// The same with its failure, after a pause if the surroundings ask for one.
    pub fn put_off(failure: Failure, pause: Option<Duration>) -> Self {
        Self { retry: pause.map_or(Retry::Backoff, Retry::After), failure }
    }

    /// The job is to end so.
    pub fn ended(failure: Failure) -> Self {
        Self { retry: Retry::Never, failure }
    }
}

impl From<Error> for StageError {
    fn from(error: Error) -> Self {
        Self::passing(error)
    }
}

/// A stage's own work on one job. It may be dropped at any await: another worker then gets the job. At a message's first
/// delivery it may begin before the worker's claim is stored; what it comes to counts only with the claim.
pub trait Handler<T: Task>: Send + Sync + 'static {
    /// Does a job's work in this stage, and says what comes of it.
    fn handle(&self, work: Work<T>) -> impl Future<Output = Result<Next, StageError>> + Send;
}

impl<T: Task, H: Handler<T>> Handler<T> for Arc<H> {
    fn handle(&self, work: Work<T>) -> impl Future<Output = Result<Next, StageError>> + Send {
        H::handle(self, work)
    }
}

/// Why a job whose message is too large for the broker can't go on.
pub fn too_long(error: &Error) -> String {
    format!("{}; shorten the request, or raise the broker's max_payload", causes(error))
}
