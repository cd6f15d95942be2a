//! One job in decode's hands, whoever generates its answers: how far they have come, what was told of them, and how it ends.

use std::time::Duration;

use baton_bus::{
    Bus,
    stage::{Retry, StageError},
};
use baton_contract::{
    checkpoint::Checkpoint,
    envelope::{Fingerprint, hex},
    job::{Answer, Job},
    outcome::{Code, Delta, Failure, Outcome, Timings},
    record::Claim,
};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::journal::Journal;

/// How long after a shutdown a job is still worked on, which then goes to another worker. Those end that are about to, and
/// this worker's last pulls are over by then, which would bring the job back.
const GRACE: Duration = Duration::from_millis(200);
/// How long the checkpoint may take that a job is handed over with.
const LAST_WRITE: Duration = Duration::from_secs(1);

pub(crate) struct Telling<'a> {
    pub(crate) bus: &'a Bus,
    pub(crate) job: &'a Job,
    /// Of the model that gives the answers.
    pub(crate) fingerprint: Fingerprint,
    claim: Claim,
    pub(crate) timings: Timings,
    /// How long ago the broker had accepted the request at some moment, if that is known.
    accepted: Option<(Duration, Instant)>,
    pub(crate) answers: Vec<Answer>,
    /// Whether a token was told, by whichever worker.
    pub(crate) begun: bool,
    pub(crate) journal: Journal,
}

impl<'a> Telling<'a> {
    /// Begins with nothing.
    pub(crate) async fn new(
        bus: &'a Bus,
        job: &'a Job,
        fingerprint: Fingerprint,
        claim: Claim,
        timings: Timings,
        journal: Journal,
    ) -> Self {
        // By the broker's clock, for the request was accepted by it and perhaps on another machine.
        let now = bus.clock().about_now_ms().await;
        let accepted =
            now.map(|now| (Duration::from_millis(now.saturating_sub(timings.accepted_at_ms)), Instant::now()));
        let answers = vec![Answer::default(); job.samples as usize];
        Self { bus, job, fingerprint, claim, timings, accepted, answers, begun: false, journal }
    }

    /// Tells a token, or a piece of an answer, that the answers have already.
    pub(crate) async fn tell(&mut self, delta: &Delta) -> Result<(), StageError> {
        let subject = self.bus.layout().tokens(&self.job.tenant, &self.job.id);
        // On the connection that the next checkpoint is written on, so the broker has the token before that.
        Ok(self.bus.publish_delta(subject, delta).await?)
    }

    /// Notes when the first token came, before it is told.
    pub(crate) fn note_first(&mut self) {
        if !std::mem::replace(&mut self.begun, true) {
            self.timings.first_token_ms = self.since_accepted();
        }
    }

    /// How long the answers took that began at a moment, or with another worker.
    pub(crate) fn note_generated(&mut self, began: Instant) {
        self.timings.decode_ms = ms(began.elapsed());
        if self.timings.resumed_tokens > 0 {
            self.timings.decode_ms = (self.since_accepted() - self.timings.first_token_ms).max(0.0);
        }
    }

    /// What the answers have come to.
    pub(crate) fn checkpoint(&self) -> Checkpoint {
        let written = Checkpoint::of(self.claim.clone(), self.job, &self.timings, &self.answers);
        Checkpoint { fingerprint: Some(self.fingerprint), ..written }
    }

    /// Leaves the job to another worker, which goes on where this one stops.
    pub(crate) async fn hand_over(&mut self, checkpoint: Checkpoint) -> StageError {
        match self.close(checkpoint).await {
            Some(error) => error,
            None => StageError::new(Retry::HandOver, Code::Internal, "the worker was asked to stop"),
        }
    }

    /// Writes the last checkpoint, if there is anything new; an error if the job is another worker's.
    pub(crate) async fn close(&mut self, checkpoint: Checkpoint) -> Option<StageError> {
        match timeout(LAST_WRITE, self.journal.close(checkpoint)).await {
            Ok(closed) => closed.err(),
            Err(_) => {
                tracing::warn!("the last checkpoint of a job that goes to another worker was not written in time");
                None
            }
        }
    }

    pub(crate) fn completed(mut self) -> Outcome {
        self.timings.total_ms = self.since_accepted();
        let model_fingerprint = Some(hex(&self.fingerprint));
        Outcome { model_fingerprint, ..self.job.completed(self.answers, self.timings) }
    }

    pub(crate) fn failed(mut self, failure: Failure) -> Outcome {
        self.timings.total_ms = self.since_accepted();
        let model_fingerprint = self.begun.then(|| hex(&self.fingerprint));
        Outcome { model_fingerprint, ..self.job.failed(failure, self.answers, self.timings) }
    }

    /// What the result says of the time since the broker accepted the request: 0 where the broker's clock can't be read.
    fn since_accepted(&self) -> f64 {
        self.accepted.map_or(0.0, |(before, began)| ms(before + began.elapsed()))
    }
}

/// Waits until a worker that is to stop leaves its jobs to others.
pub(crate) async fn leaves(shutdown: &CancellationToken) {
    shutdown.cancelled().await;
    sleep(GRACE).await;
}

pub(crate) fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
