//! The loop of the stages that work on admitted jobs: claim, work, publish the successor or the result, acknowledge.

mod failing;
pub(crate) mod unread;

use std::{marker::PhantomData, pin::pin, sync::Arc, time::Duration};

use baton_contract::{
    causes,
    envelope::{self, Task},
    job::Job,
    outcome::{Code, Failure, Outcome, Status},
    record::{Claim, Record},
    subject::Stage,
};
use bytes::Bytes;
use tokio::{
    sync::oneshot,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, info_span};

use crate::{
    Bus, Error,
    cancel::{self, InHand, Stop},
    checkpoints::{Checkpoints, Ledger},
    clock::Clock,
    dead::{self, Burial, LetterId},
    jobs::{Claimed, Jobs, Stored},
    pressure::Pauses,
    pull::{self, Delivery, Receiver, Settle},
    trace,
};

/// The pause before the first retry; each further one is four times as long.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// A job that waits for room is tried again after pauses that grow; from this one on its record tells of it.
const NOTED_PAUSE: Duration = Duration::from_secs(1);

/// One job in a worker's hands.
pub struct Work<T> {
    pub task: T,
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
pub struct Ended(oneshot::Receiver<()>);

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
    Forward { subject: String, payload: Bytes },
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
    pub retry: Retry,
    pub failure: Failure,
}

impl StageError {
    pub fn new(retry: Retry, code: Code, message: impl Into<String>) -> Self {
        Self { retry, failure: Failure::new(code, message) }
    }

    /// A fault of a worker, the broker or the store that may pass.
    pub fn passing(error: impl Into<Box<dyn std::error::Error>>) -> Self {
        Self::new(Retry::Backoff, Code::Internal, causes(error.into().as_ref()))
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
    let (bus, jobs, checkpoints) = (bus.clone(), bus.jobs().await?, bus.checkpoints().await?);
    let (clock, in_hand, told) = (bus.clock(), InHand::default(), bus.cancellations().await?);
    let stage = StageLoop { bus, jobs, checkpoints, clock, in_hand, options, worker, handler, task: PhantomData };
    let stage = Arc::new(stage);
    let stop = shutdown.child_token();
    let running = async {
        tokio::select! {
            ended = pull::run(&stage.bus, &stage.options, stage.clone(), stop.clone()) => ended,
            never = stage.in_hand.listen(told) => match never {},
        }
    };
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
    checkpoints: Checkpoints,
    clock: Clock,
    in_hand: InHand,
    options: pull::Options,
    worker: String,
    handler: H,
    task: PhantomData<fn() -> T>,
}

impl<T: Task + Sync, H: Handler<T>> Receiver for StageLoop<T, H> {
    async fn receive(&self, delivery: &Delivery) -> Settle {
        let task: T = match envelope::decode(delivery.payload()) {
            Ok(task) => task,
            // Not for ever: there may be none.
            Err(error @ envelope::Error::Version(_)) if delivery.attempt < self.options.max_deliver => {
                tracing::warn!(error = %causes(&error), attempt = delivery.attempt, "a message of another release was left to its workers");
                return Settle::Nak(Some(LONGEST_PAUSE));
            }
            Err(error) => return self.put_aside(delivery, &error).await,
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
                    let (pause, reason) = (pause(delivery.attempt), causes(&error));
                    tracing::warn!(error = reason, ?pause, "the job was not settled and goes back to the queue");
                    self.give_back_for(delivery, Some(pause), Some(&reason)).await
                }
            }
        }
        .instrument(span)
        .await
    }

    async fn give_back(&self, delivery: &Delivery) -> Settle {
        self.give_back_for(delivery, None, None).await
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
        let hold = self.in_hand.hold(&job.tenant, &job.id);
        let fresh = Record::accepted(job.request_digest.clone(), timings.accepted_at_ms);
        // What a message tells of a job changes with its first claim.
        let known = if delivery.attempt == 1 { Stored::carried(delivery.headers()) } else { None };
        // At its first delivery a message tells what its claim will most likely come to; then the work begins while the claim
        // is on its way. What others could see waits for it: checkpoints, the successor, the result.
        let expected = known.as_ref().and_then(|known| known.expect(&claim));
        let mut claiming = pin!(self.jobs.claim(&job.tenant, &job.id, claim.clone(), fresh, known));
        let (record, mut held) = match expected {
            Some(record) => (record, None),
            None => match taken(claiming.as_mut().await?) {
                Ok(held) => (held.record.clone(), Some(held)),
                Err(settle) => return Ok(settle),
            },
        };
        let tries = u64::from(record.tries);
        let ledger = self.checkpoints.ledger_to_be(&job, claim.clone());
        if held.is_some() {
            ledger.claimed();
        }
        let end = |failure: Failure| Next::Finish(Box::new(job.failed(failure, Vec::new(), timings.clone())));
        // A worker that died after publishing the result left only the bookkeeping.
        if delivery.attempt > 1
            && let Some(present) = self.jobs.told(&job.tenant, &job.id).await?
        {
            self.jobs.note_end(&job.tenant, &job.id, present.status).await?;
            ledger.clear().await;
            return Ok(Settle::Ack);
        }
        let left = match job.deadline_ms {
            Some(deadline) => Some(self.clock.until(deadline).await?),
            None => None,
        };
        let deadline = left.and_then(|left| Instant::now().checked_add(left));
        let cancelled = record.cancelled;
        let (tell_end, ended) = oneshot::channel();
        let ended = Ended(ended);
        let max_deliver = self.options.max_deliver;
        let exhausted = (tries > max_deliver).then(|| self.exhausted(&job));
        // Decode has left what it came to, and tells it. A delivery that dies of that, too, ends the job without it.
        let salvages = self.options.stage == Stage::Decode && tries == max_deliver + 1;
        let stop = Stop { cancelled: hold.cancelled.clone(), deadline, failed: exhausted.clone() };
        let mut next = if cancelled && (delivery.attempt == 1 || tries > self.options.max_deliver) {
            end(cancel::cancelled())
        } else if left.is_some_and(|left| left.is_zero()) {
            end(Failure::new(Code::DeadlineExceeded, format!("the deadline passed before {}", self.options.stage)))
        } else if let Some(exhausted) = exhausted.filter(|_| !salvages) {
            end(exhausted)
        } else {
            if cancelled {
                hold.cancelled.cancel();
            }
            let queue_ms = self.clock.about_since(delivery.published_ms).await.as_secs_f64() * 1e3;
            let work = Work { task, claim: claim.clone(), queue_ms, ledger: ledger.clone(), stop: stop.clone(), ended };
            let (mut handling, mut looking) =
                (pin!(self.handler.handle(work)), pin!(self.look_for_mark(&job, &claim, &stop)));
            let handled = loop {
                tokio::select! {
                    handled = &mut handling => break handled,
                    handled = &mut looking, if held.is_some() => break handled,
                    claimed = &mut claiming, if held.is_none() => match taken(claimed?) {
                        Ok(stored) => {
                            let cancelled = stored.record.cancelled;
                            held = Some(stored);
                            // While it waited.
                            if cancelled {
                                break Err(StageError::ended(cancel::cancelled()));
                            }
                            ledger.claimed();
                        }
                        Err(settle) => return Ok(settle),
                    },
                }
            };
            if held.is_none() {
                held = match taken(claiming.as_mut().await?) {
                    Ok(stored) => Some(stored),
                    Err(settle) => return Ok(settle),
                };
            }
            match handled {
                Ok(next) => next,
                Err(error) if error.retry == Retry::Never => end(error.failure),
                Err(error) if error.retry == Retry::Backoff => {
                    let (pause, reason) = (pause(delivery.attempt), causes(&error));
                    tracing::warn!(error = reason, ?pause, "a fault that may pass; the job is tried again");
                    return Ok(self.give_back_for(delivery, Some(pause), Some(&reason)).await);
                }
                Err(error) if error.retry == Retry::HandOver => {
                    tracing::info!(error = %causes(&error), "the job goes to another worker");
                    return Ok(self.give_back_for(delivery, None, None).await);
                }
                Err(error) if error.retry == Retry::Unlike => {
                    let reason = causes(&error);
                    tracing::warn!(error = reason, "the job is left to a worker with the same model");
                    return Ok(self.give_back_for(delivery, Some(FIRST_PAUSE), Some(&reason)).await);
                }
                Err(error) if error.retry == Retry::Lost => {
                    tracing::info!(error = %causes(&error), "the job was lost to another worker");
                    return Ok(Settle::Leave);
                }
                Err(error) if tries >= max_deliver => {
                    let stop = Stop { failed: Some(error.failure.clone()), ..stop.clone() };
                    self.salvage(delivery, &claim, &ledger, stop).await.unwrap_or_else(|| end(error.failure))
                }
                Err(error) => {
                    tracing::warn!(error = %causes(&error), tries, "an attempt failed; the job is tried elsewhere");
                    return Ok(Settle::Nak(None));
                }
            }
        };
        let held = match held {
            Some(held) => held,
            None => match taken(claiming.await?) {
                Ok(held) => held,
                Err(settle) => return Ok(settle),
            },
        };
        let mut pauses = Pauses::default();
        let mut noted = false;
        loop {
            // The broker gives the message to nobody else before ack_wait: until well before that nobody can have taken the
            // claim.
            if delivery.received.elapsed() >= self.options.ack_wait / 2 {
                match self.jobs.get(&job.tenant, &job.id).await? {
                    Some(stored) if stored.record.is_held_by(&claim) => {}
                    Some(stored) if stored.record.state.is_final() => return Ok(Settle::Ack),
                    _ => return Ok(Settle::Leave),
                }
            }
            match self.conclude(delivery, &job, &next, &held).await {
                // What was done is kept until there is room for it; the slot that it takes slows this stage down.
                Err(error @ Error::TryLater { .. }) => {
                    let pause = pauses.next().unwrap_or_default();
                    tracing::info!(error = %causes(&error), ?pause, "the job waits to be passed on");
                    if pause >= NOTED_PAUSE && !std::mem::replace(&mut noted, true) {
                        self.note_wait(&job, &claim, &error).await;
                    }
                    tokio::select! {
                        () = sleep(pause) => {}
                        failure = stop.called(), if matches!(next, Next::Forward { .. }) => next = end(failure),
                    }
                }
                Err(error @ Error::TooLarge { .. }) if matches!(next, Next::Forward { .. }) => {
                    next = end(Failure::new(Code::PromptTooLong, too_long(&error)));
                }
                Err(error) => return Err(error),
                Ok(()) => break,
            }
        }
        let failed = matches!(&next, Next::Finish(outcome) if outcome.status == Status::Failed);
        self.bus.counters().job(failed);
        if let Next::Finish(outcome) = &next {
            ledger.clear().await;
            if !outcome.error.as_ref().is_some_and(dead::is_ours) {
                // Nobody may be waiting for it.
                let _ = tell_end.send(());
            }
        }
        Ok(Settle::Ack)
    }

    /// Tells a job's work to stop once the job's record says that it was cancelled, and ends it once another worker holds the
    /// job: those who were cut off from the broker have missed what they were told, and their heartbeats would keep the job
    /// from others if its holder died.
    async fn look_for_mark(&self, job: &Job, claim: &Claim, stop: &Stop) -> Result<Next, StageError> {
        loop {
            sleep(self.options.ack_wait / 3).await;
            let Ok(Some(stored)) = self.jobs.get(&job.tenant, &job.id).await else { continue };
            if !stored.record.is_held_by(claim) {
                return Err(StageError::new(Retry::Lost, Code::Internal, "another worker holds the job"));
            }
            if stored.record.cancelled {
                stop.cancelled.cancel();
            }
        }
    }

    /// Publishes what comes next for a job that is `held` with this record.
    async fn conclude(&self, delivery: &Delivery, job: &Job, next: &Next, held: &Stored) -> Result<(), Error> {
        match next {
            Next::Forward { subject, payload } => {
                let from = (self.options.stage, delivery.sequence);
                self.bus.forward_held(subject.clone(), job, from, Some(held), payload.clone()).await
            }
            Next::Finish(outcome) => {
                if let Some(cause) = outcome.error.as_ref().filter(|cause| dead::is_ours(cause)) {
                    // Before the result, which nobody would add the letter to.
                    let id =
                        LetterId::Job { stage: self.options.stage, tenant: job.tenant.clone(), job: job.id.clone() };
                    // The delivery that finds the tries used up is none.
                    let attempts = u64::from(held.record.tries).min(self.options.max_deliver);
                    self.bus.bury(&id, Burial { delivery, cause, attempts, worker: Some(&self.worker) }).await?;
                }
                let headers = trace::headers_of(&tracing::Span::current());
                let counts = self.jobs.finish_held(outcome, headers, Some(held.clone())).await?;
                tracing::info!(status = ?outcome.status, tokens = outcome.tokens.len(), counts, "the job ended");
                Ok(())
            }
        }
    }
}

/// The record of a job that is now the worker's, or what becomes of its message.
fn taken(claimed: Claimed) -> Result<Stored, Settle> {
    match claimed {
        Claimed::Take(stored) => Ok(stored),
        Claimed::Settled => Err(Settle::Ack),
        Claimed::Superseded => Err(Settle::Leave),
    }
}

/// Why a job whose message is too large for the broker can't go on.
pub fn too_long(error: &Error) -> String {
    format!("{}; shorten the request, or raise the broker's max_payload", causes(error))
}

/// How long a message that was delivered `attempt` times waits before it is delivered again.
pub fn pause(attempt: u64) -> Duration {
    (FIRST_PAUSE * 4u32.pow(attempt.clamp(1, 4) as u32 - 1)).min(LONGEST_PAUSE)
}
