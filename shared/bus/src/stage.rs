//! The loop of the stages that work on admitted jobs: claim, work, publish the successor or the result, acknowledge.

use std::{marker::PhantomData, sync::Arc, time::Duration};

use baton_contract::{
    envelope::{self, Task},
    job::Answer,
    outcome::{Code, Failure, Outcome},
    record::{Claim, Record, Verdict},
    subject::Stage,
};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, info_span};

use crate::{
    Bus, Error,
    jobs::Jobs,
    pull::{self, Delivery, Receiver, Settle},
    trace, unix_ms,
};

/// The pause before the first retry; each further one is four times as long.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// One job in a worker's hands.
pub struct Work<T> {
    pub task: T,
    pub claim: Claim,
    /// How long the message waited since the broker stored it.
    pub queue_ms: f64,
}

/// What comes after a stage has done its work.
pub enum Next {
    /// The message for the next stage; whatever it names is stored already.
    Forward { subject: String, payload: Vec<u8> },
    /// The job has ended.
    Finish(Box<Outcome>),
}

/// Where and when a failed attempt may be repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// After a pause, as often as it takes: the fault is the surroundings' and may pass.
    Backoff,
    /// At once, on whichever worker is free; a job that fails so again and again fails for good.
    Elsewhere,
    /// Not at all: it would fail again.
    Never,
}

/// A failed attempt.
#[derive(Debug, thiserror::Error)]
#[error("{failure}")]
pub struct StageError {
    pub retry: Retry,
    pub failure: Failure,
}

impl StageError {
    pub fn new(retry: Retry, code: Code, message: impl Into<String>) -> Self {
        Self { retry, failure: Failure::new(code, message) }
    }

    /// A fault of a worker, the broker or the store that may pass.
    pub fn passing(error: impl std::fmt::Display) -> Self {
        Self::new(Retry::Backoff, Code::Internal, error.to_string())
    }
}

impl From<Error> for StageError {
    fn from(error: Error) -> Self {
        Self::passing(error)
    }
}

/// A stage's own work on one job. It may be dropped at any await: another worker then gets the job.
pub trait Handler<T: Task>: Send + Sync + 'static {
    fn handle(&self, work: Work<T>) -> impl Future<Output = Result<Next, StageError>> + Send;
}

/// Runs a stage until `shutdown`, then drains. `worker` names it in claims and results. When `broken` is cancelled, the
/// handler can't work any more: the stage drains too, and fails, for it would only take jobs away from those that can.
pub async fn run<T: Task + Sync, H: Handler<T>>(
    bus: &Bus,
    options: pull::Options,
    worker: String,
    handler: H,
    broken: CancellationToken,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let (bus, jobs) = (bus.clone(), bus.jobs().await?);
    let stage = Arc::new(StageLoop { bus, jobs, options, worker, handler, task: PhantomData });
    let stop = shutdown.child_token();
    let running = pull::run(&stage.bus, &stage.options, stage.clone(), stop.clone());
    tokio::pin!(running);
    tokio::select! {
        ended = &mut running => ended,
        () = broken.cancelled() => {
            stop.cancel();
            running.await?;
            Err(Error::Broken)
        }
    }
}

struct StageLoop<T, H> {
    bus: Bus,
    jobs: Jobs,
    options: pull::Options,
    worker: String,
    handler: H,
    task: PhantomData<fn() -> T>,
}

impl<T: Task + Sync, H: Handler<T>> Receiver for StageLoop<T, H> {
    async fn receive(&self, delivery: &Delivery) -> Settle {
        let task: T = match envelope::decode(delivery.payload()) {
            Ok(task) => task,
            Err(error @ envelope::Error::Version(_)) => {
                tracing::warn!(%error, "a message of another release was left to its workers");
                return Settle::Nak(Some(LONGEST_PAUSE));
            }
            Err(error) => return self.bury(delivery, &error).await,
        };
        let job = task.job();
        let span = match self.options.stage {
            Stage::Ingest => info_span!("ingest", job = %job.id, tenant = %job.tenant, attempt = delivery.attempt),
            Stage::Prefill => info_span!("prefill", job = %job.id, tenant = %job.tenant, attempt = delivery.attempt),
            Stage::Decode => info_span!("decode", job = %job.id, tenant = %job.tenant, attempt = delivery.attempt),
        };
        trace::continue_from(&span, delivery.headers());
        async {
            match self.work(delivery, task).await {
                Ok(settle) => settle,
                Err(error) => {
                    let pause = pause(delivery.attempt);
                    tracing::warn!(%error, ?pause, "the job was not settled and goes back to the queue");
                    self.give_back(delivery).await;
                    Settle::Nak(Some(pause))
                }
            }
        }
        .instrument(span)
        .await
    }

    async fn give_back(&self, delivery: &Delivery) {
        let Ok(task) = envelope::decode::<T>(delivery.payload()) else { return };
        let (job, claim) = (task.job(), self.claim(delivery));
        if let Err(error) = self.jobs.give_back(&job.tenant, &job.id, Some(&claim)).await {
            tracing::warn!(%error, job = %job.id, "a job that goes back was not noted as such; its try counts");
        }
    }
}

impl<T: Task + Sync, H: Handler<T>> StageLoop<T, H> {
    fn claim(&self, delivery: &Delivery) -> Claim {
        Claim {
            stage: self.options.stage,
            sequence: delivery.sequence,
            attempt: delivery.attempt,
            worker: self.worker.clone(),
        }
    }

    async fn work(&self, delivery: &Delivery, task: T) -> Result<Settle, Error> {
        let (job, timings) = (task.job().clone(), task.timings().clone());
        let claim = self.claim(delivery);
        let fresh = Record::accepted(job.request_digest.clone(), timings.accepted_at_ms);
        let record = match self.jobs.claim(&job.tenant, &job.id, claim.clone(), fresh).await? {
            Verdict::Take(record) => record,
            Verdict::Settled => return Ok(Settle::Ack),
            Verdict::Superseded => return Ok(Settle::Leave),
        };
        let tries = u64::from(record.tries);
        let end = |failure: Failure| Next::Finish(Box::new(job.failed(failure, Answer::default(), timings.clone())));
        // A worker that died after publishing the result left only the bookkeeping.
        if delivery.attempt > 1
            && let Some(present) = self.jobs.result(&job.tenant, &job.id).await?
        {
            self.jobs.note_end(&job.tenant, &job.id, present.status).await?;
            return Ok(Settle::Ack);
        }
        let now = unix_ms();
        let next = if job.deadline_ms.is_some_and(|deadline| deadline <= now) {
            end(Failure::new(Code::DeadlineExceeded, format!("the deadline passed before {}", self.options.stage)))
        } else if tries > self.options.max_deliver {
            let attempts = self.options.max_deliver;
            end(Failure::new(
                Code::AttemptsExhausted,
                format!("{} was tried {attempts} times, and no worker finished it", self.options.stage),
            ))
        } else {
            let queue_ms = now.saturating_sub(delivery.published_ms) as f64;
            match self.handler.handle(Work { task, claim: claim.clone(), queue_ms }).await {
                Ok(next) => next,
                Err(error) if error.retry == Retry::Never => end(error.failure),
                Err(error) if error.retry == Retry::Backoff => {
                    let pause = pause(delivery.attempt);
                    tracing::warn!(%error, ?pause, "a fault that may pass; the job is tried again");
                    self.give_back(delivery).await;
                    return Ok(Settle::Nak(Some(pause)));
                }
                Err(error) if tries >= self.options.max_deliver => end(error.failure),
                Err(error) => {
                    tracing::warn!(%error, tries, "an attempt failed; the job is tried elsewhere");
                    return Ok(Settle::Nak(None));
                }
            }
        };
        match self.jobs.get(&job.tenant, &job.id).await? {
            Some(stored) if stored.record.is_held_by(&claim) => {}
            Some(stored) if stored.record.state.is_final() => return Ok(Settle::Ack),
            _ => return Ok(Settle::Leave),
        }
        match next {
            Next::Forward { subject, payload } => {
                self.bus.forward(subject, &job, self.options.stage, payload).await?;
            }
            Next::Finish(outcome) => {
                let headers = trace::headers_of(&tracing::Span::current());
                let counts = self.jobs.finish(&outcome, headers).await?;
                tracing::info!(status = ?outcome.status, tokens = outcome.tokens.len(), counts, "the job ended");
            }
        }
        Ok(Settle::Ack)
    }

    /// Puts aside a message that no worker of this release can read; it belongs to no job that could be told.
    async fn bury(&self, delivery: &Delivery, error: &envelope::Error) -> Settle {
        tracing::error!(%error, subject = delivery.subject(), "an unreadable message was put aside as a dead letter");
        let subject = self.bus.layout.dead_letter(self.options.stage);
        let mut headers = delivery.headers().cloned().unwrap_or_default();
        headers.insert("Baton-Error", error.to_string().replace(['\r', '\n'], " "));
        headers.insert("Baton-Subject", delivery.subject());
        let id = format!("dead/{}/{}", self.options.stage, delivery.sequence);
        match self.bus.publish_durably(subject, Some(&id), headers, delivery.payload().to_vec()).await {
            Ok(_) => Settle::Term,
            Err(error) => {
                tracing::warn!(%error, "a dead letter was not stored");
                Settle::Nak(Some(LONGEST_PAUSE))
            }
        }
    }
}

/// How long a message that was delivered `attempt` times waits before it is delivered again.
pub fn pause(attempt: u64) -> Duration {
    (FIRST_PAUSE * 4u32.pow(attempt.clamp(1, 4) as u32 - 1)).min(LONGEST_PAUSE)
}
