//! The way of one message through a stage: claim, judge, drive, settle, conclude, acknowledge.
//!
//! A message is acknowledged once its successor or its job's result is durable: [`Durable`] comes from `conclude` alone, which
//! waits for the broker's answer. The other acknowledgements are for messages whose work is done already, by another message,
//! another worker, or one that died after it had stored the result; messages that nobody can read are put aside first
//! (`unread`). `delivery` sends the acknowledgement.

use std::{pin::pin, time::Duration};

use baton_contract::{
    causes,
    envelope::Task,
    job::Job,
    outcome::{Code, Failure, Status, Timings},
    record::{Claim, Record},
    subject::Stage,
};
use tokio::{
    sync::oneshot,
    time::{Instant, sleep},
};

use crate::{
    Error,
    connection::{entropy::entropy, pressure::PAUSES, trace},
    repair::{
        dead::{self, Burial},
        letter_id::LetterId,
    },
    stage::{
        cancel::{self, Hold, Stop},
        checkpoints::Ledger,
        claiming::{Claiming, Exit},
        delivery::{Delivery, Settle},
        handler::{Ended, Handler, Next, Retry, StageError, Work, too_long},
        jobs::{Claimed, Stored},
        worker::{StageLoop, pause},
    },
};

/// The pause of a job that waits for a worker with the same model.
const UNLIKE_PAUSE: Duration = Duration::from_secs(1);
/// The longest pause that the surroundings may ask for.
const LONGEST_ASKED: Duration = Duration::from_secs(60);
/// A job that waits for room is tried again after pauses that grow; from this one on its record tells of it.
const NOTED_PAUSE: Duration = Duration::from_secs(1);

/// One delivery of a job's message.
struct Attempt<'a> {
    delivery: &'a Delivery,
    job: Job,
    timings: Timings,
    claim: Claim,
    ledger: Ledger,
    hold: Hold,
}

/// What is to be done about a job that was claimed.
struct Judgement {
    /// How it is to end without any work.
    end: Option<Failure>,
    /// When its work is to stop.
    stop: Stop,
    tries: u64,
}

/// What came next for a job, stored by the broker.
struct Durable(Next);

impl Attempt<'_> {
    /// The job's end as a failure.
    fn end(&self, failure: Failure) -> Next {
        Next::Finish(Box::new(self.job.failed(failure, Vec::new(), self.timings.clone())))
    }
}

impl<T: Task + Sync, H: Handler<T>> StageLoop<T, H> {
    /// Takes a job's message through all steps.
    pub(super) async fn work(&self, delivery: &Delivery, task: T) -> Result<Settle, Exit> {
        let attempt = self.attempt(delivery, &task);
        let Attempt { job, claim, ledger, .. } = &attempt;
        let fresh = Record::accepted(job.request_digest.clone(), attempt.timings.accepted_at_ms);
        // What a message tells of a job changes with its first claim.
        let known = if delivery.attempt == 1 { Stored::carried(delivery.headers()) } else { None };
        // At its first delivery a message tells what its claim will most likely come to; then the work begins while the claim
        // is on its way. What others could see waits for it: checkpoints, the successor, the result.
        let expected = known.as_ref().and_then(|known| known.expect(claim));
        let pending = pin!(self.jobs.claim(&job.tenant, &job.id, claim.clone(), fresh, known));
        let mut claiming = Claiming::new(pending);
        let record = match expected {
            Some(record) => record,
            None => {
                let record = claiming.held().await?.record.clone();
                ledger.claimed();
                record
            }
        };
        self.end_again(&attempt).await?;
        let judgement = self.judge(&attempt, &record).await?;
        let (tell_end, ended) = oneshot::channel();
        let next = match &judgement.end {
            Some(failure) => attempt.end(failure.clone()),
            None => {
                let handled = self.drive(&attempt, &mut claiming, task, &judgement.stop, Ended(ended)).await?;
                self.settle(&attempt, handled, &judgement).await?
            }
        };
        let held = claiming.held().await?;
        let durable = self.conclude(&attempt, next, held, &judgement.stop).await?;
        Ok(self.acknowledge(&attempt, durable, tell_end).await)
    }

    fn attempt<'a>(&self, delivery: &'a Delivery, task: &T) -> Attempt<'a> {
        let (job, timings, claim) = (task.job().clone(), task.timings().clone(), self.claim(delivery));
        // Before the record is read: what is marked later is told to this hold.
        let hold = self.in_hand.hold(&job.tenant, &job.id);
        let ledger = self.checkpoints.ledger_to_be(&job, claim.clone());
        Attempt { delivery, job, timings, claim, ledger, hold }
    }

    /// Notes the end of a job that has its result: a worker that died after publishing it left only the bookkeeping.
    async fn end_again(&self, attempt: &Attempt<'_>) -> Result<(), Exit> {
        let Attempt { delivery, job, ledger, .. } = attempt;
        if delivery.attempt > 1
            && let Some(present) = self.jobs.told(&job.tenant, &job.id).await?
        {
            self.jobs.note_end(&job.tenant, &job.id, present.status).await?;
            ledger.clear().await;
            return Err(Exit::Settle(Settle::Ack));
        }
        Ok(())
    }

    /// Judges by a job's record whether it is worked on or ends at once.
    async fn judge(&self, attempt: &Attempt<'_>, record: &Record) -> Result<Judgement, Error> {
        let Attempt { delivery, job, hold, .. } = attempt;
        let left = match job.deadline_ms {
            Some(deadline) => Some(self.clock.until(deadline).await?),
            None => None,
        };
        let deadline = left.and_then(|left| Instant::now().checked_add(left));
        let (tries, max_deliver) = (u64::from(record.tries), self.options.max_deliver);
        let exhausted = (tries > max_deliver).then(|| self.exhausted(job));
        // Decode has left what it came to, and tells it. A delivery that dies of that, too, ends the job without it.
        let salvages = self.options.stage == Stage::Decode && tries == max_deliver + 1;
        let stop = Stop { cancelled: hold.cancelled.clone(), deadline, failed: exhausted.clone() };
        let end = if record.cancelled && (delivery.attempt == 1 || tries > max_deliver) {
            Some(cancel::cancelled())
        } else if left.is_some_and(|left| left.is_zero()) {
            let message = format!("the deadline passed before {}", self.options.stage);
            Some(Failure::new(Code::DeadlineExceeded, message))
        } else {
            exhausted.filter(|_| !salvages)
        };
        if end.is_none() && record.cancelled {
            hold.cancelled.cancel();
        }
        Ok(Judgement { end, stop, tries })
    }

    /// Has the handler work on a job until it is done, the job is another worker's, or turns out to be cancelled. Comes to an end
    /// only once the job is claimed.
    async fn drive<F: Future<Output = Result<Claimed, Error>> + Send>(
        &self,
        attempt: &Attempt<'_>,
        claiming: &mut Claiming<'_, F>,
        task: T,
        stop: &Stop,
        ended: Ended,
    ) -> Result<Result<Next, StageError>, Exit> {
        let Attempt { delivery, job, claim, ledger, .. } = attempt;
        let queue_ms = self.clock.about_since(delivery.published_ms).await.as_secs_f64() * 1e3;
        let work = Work { task, claim: claim.clone(), queue_ms, ledger: ledger.clone(), stop: stop.clone(), ended };
        let (mut handling, mut looking) = (pin!(self.handler.handle(work)), pin!(self.look_for_mark(job, claim, stop)));
        let handled = loop {
            let is_held = claiming.is_held();
            tokio::select! {
                handled = &mut handling => break handled,
                handled = &mut looking, if is_held => break handled,
                held = claiming.held(), if !is_held => {
                    // While it waited.
                    if held?.record.cancelled {
                        break Err(StageError::ended(cancel::cancelled()));
                    }
                    ledger.claimed();
                }
            }
        };
        claiming.held().await?;
        Ok(handled)
    }

    /// Decides what comes next after the handler's work: a job that failed may go to others.
    async fn settle(
        &self,
        attempt: &Attempt<'_>,
        handled: Result<Next, StageError>,
        judgement: &Judgement,
    ) -> Result<Next, Exit> {
        let delivery = attempt.delivery;
        let error = match handled {
            Ok(next) => return Ok(next),
            Err(error) => error,
        };
        let reason = causes(&error);
        let settle = match error.retry {
            Retry::Never => return Ok(attempt.end(error.failure)),
            Retry::Backoff | Retry::After(_) => {
                let pause = match error.retry {
                    Retry::After(pause) => pause.min(LONGEST_ASKED),
                    _ => pause(delivery.attempt),
                };
                tracing::warn!(error = reason, ?pause, "a fault that may pass; the job is tried again");
                self.give_back_for(delivery, Some(pause), Some(&reason)).await
            }
            Retry::HandOver => {
                tracing::info!(error = reason, "the job goes to another worker");
                self.give_back_for(delivery, None, None).await
            }
            Retry::Unlike => {
                tracing::warn!(error = reason, "the job is left to a worker with the same model");
                self.give_back_for(delivery, Some(UNLIKE_PAUSE), Some(&reason)).await
            }
            Retry::Lost => {
                tracing::info!(error = reason, "the job was lost to another worker");
                Settle::Leave
            }
            Retry::Elsewhere if judgement.tries >= self.options.max_deliver => {
                let stop = Stop { failed: Some(error.failure.clone()), ..judgement.stop.clone() };
                let salvaged = self.salvage(delivery, &attempt.claim, &attempt.ledger, stop).await;
                return Ok(salvaged.unwrap_or_else(|| attempt.end(error.failure)));
            }
            Retry::Elsewhere => {
                let tries = judgement.tries;
                tracing::warn!(error = reason, tries, "an attempt failed; the job is tried elsewhere");
                Settle::Nak(None)
            }
        };
        Err(Exit::Settle(settle))
    }

    /// Publishes what comes next for a job that is `held` with this record, and waits until the broker has stored it, as long as
    /// that takes: what was done is kept until there is room for it, and the slot that it takes slows this stage down.
    async fn conclude(
        &self,
        attempt: &Attempt<'_>,
        mut next: Next,
        held: &Stored,
        stop: &Stop,
    ) -> Result<Durable, Exit> {
        let mut pauses = PAUSES.pauses(entropy());
        let mut noted = false;
        loop {
            self.look_for_claim(attempt).await?;
            match self.publish(attempt, &next, held).await {
                Ok(()) => return Ok(Durable(next)),
                Err(error @ Error::TryLater { .. }) => {
                    let pause = pauses.pause();
                    tracing::info!(error = %causes(&error), ?pause, "the job waits to be passed on");
                    if pause >= NOTED_PAUSE && !std::mem::replace(&mut noted, true) {
                        self.note_wait(&attempt.job, &attempt.claim, &error).await;
                    }
                    tokio::select! {
                        () = sleep(pause) => {}
                        failure = stop.called(), if matches!(next, Next::Forward { .. }) => next = attempt.end(failure),
                    }
                }
                Err(error @ Error::TooLarge { .. }) if matches!(next, Next::Forward { .. }) => {
                    next = attempt.end(Failure::new(Code::PromptTooLong, too_long(&error)));
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Counts the job, removes what the attempt has left, and acknowledges the message.
    async fn acknowledge(&self, attempt: &Attempt<'_>, durable: Durable, tell_end: oneshot::Sender<()>) -> Settle {
        let Durable(next) = durable;
        let failed = matches!(&next, Next::Finish(outcome) if outcome.status == Status::Failed);
        self.bus.counters().job(failed);
        if let Next::Finish(outcome) = &next {
            attempt.ledger.clear().await;
            if !outcome.error.as_ref().is_some_and(dead::is_ours) {
                // Nobody may be waiting for it.
                let _ = tell_end.send(());
            }
        }
        Settle::Ack
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

    /// Whether the job is this worker's still. The broker gives the message to nobody else before ack_wait: until well before that
    /// nobody can have taken the claim.
    async fn look_for_claim(&self, attempt: &Attempt<'_>) -> Result<(), Exit> {
        let Attempt { delivery, job, claim, .. } = attempt;
        if delivery.received.elapsed() < self.options.ack_wait / 2 {
            return Ok(());
        }
        match self.jobs.get(&job.tenant, &job.id).await? {
            Some(stored) if stored.record.is_held_by(claim) => Ok(()),
            Some(stored) if stored.record.state.is_final() => Err(Exit::Settle(Settle::Ack)),
            _ => Err(Exit::Settle(Settle::Leave)),
        }
    }

    /// Publishes what comes next for a job that is `held` with this record. Returns once it is durable.
    async fn publish(&self, attempt: &Attempt<'_>, next: &Next, held: &Stored) -> Result<(), Error> {
        let Attempt { delivery, job, .. } = attempt;
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
                    self.bus
                        .letters()
                        .bury(&id, Burial { delivery, cause, attempts, worker: Some(&self.worker) })
                        .await?;
                }
                let headers = trace::headers_of(&tracing::Span::current());
                let counts = self.jobs.finish_held(outcome, headers, Some(held.clone())).await?;
                tracing::info!(status = ?outcome.status, tokens = outcome.tokens.len(), counts, "the job ended");
                Ok(())
            }
        }
    }
}
