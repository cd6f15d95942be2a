//! One job in decode's hands: its answers as far as they have come, and what was told of them.

use std::time::Duration;

use baton_bus::{
    Bus,
    stage::{Next, Retry, StageError},
};
use baton_contract::{
    causes,
    checkpoint::Checkpoint,
    envelope::{Fingerprint, Piece, hex},
    job::{Answer, Job},
    outcome::{Code, Delta, Failure, Outcome, Timings},
    record::Claim,
};
use baton_model::generation::{Emitted, Settled};
use futures::StreamExt;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::{
    generating::Generating,
    journal::Journal,
    messages::{Event, Failed, NewAnswer},
    pool::Pool,
};

/// How long after a shutdown a job is still worked on, which then goes to another worker. Those end that are about to, and
/// this worker's last pulls are over by then, which would bring the job back.
const GRACE: Duration = Duration::from_millis(200);
/// How long the checkpoint may take that a job is handed over with.
const LAST_WRITE: Duration = Duration::from_secs(1);

pub(crate) struct Progress<'a> {
    bus: &'a Bus,
    job: &'a Job,
    /// Of the model that gives the answers.
    fingerprint: Fingerprint,
    claim: Claim,
    timings: Timings,
    /// How long ago the broker had accepted the request at some moment, if that is known.
    accepted: Option<(Duration, Instant)>,
    answers: Vec<Answer>,
    /// Of each answer.
    settled: Vec<Settled>,
    /// Whether decode is to prefill what the pieces don't hold.
    prefills: bool,
    /// Whether a token was told, by whichever worker.
    begun: bool,
    journal: Journal,
}

impl<'a> Progress<'a> {
    pub(crate) fn new(
        bus: &'a Bus,
        job: &'a Job,
        fingerprint: Fingerprint,
        claim: Claim,
        timings: Timings,
        prefills: bool,
        journal: Journal,
    ) -> Self {
        let answers = vec![Answer::default(); job.samples as usize];
        let settled = vec![Settled::default(); job.samples as usize];
        let (accepted, begun) = (None, false);
        Self { bus, job, fingerprint, claim, timings, accepted, answers, settled, prefills, begun, journal }
    }

    /// Times the job from its acceptance on, which was so long ago at that moment.
    pub(crate) fn since(self, accepted: Option<(Duration, Instant)>) -> Self {
        Self { accepted, ..self }
    }

    /// Has the answers generated, and follows the engine until all have ended or one can't go on.
    pub(crate) async fn generate(
        &mut self,
        pool: &Pool,
        pieces: &[Piece],
        answers: Vec<NewAnswer>,
        shutdown: &CancellationToken,
    ) -> Result<Result<(), Failure>, StageError> {
        let mut generating = Generating::submit(&pool.engine, self.job, pieces, answers);
        let leaves = async {
            shutdown.cancelled().await;
            sleep(GRACE).await;
        };
        tokio::pin!(leaves);
        while generating.open > 0 {
            if self.journal.is_due(generating.open) {
                self.journal.begin(self.checkpoint());
            }
            let event = tokio::select! {
                () = &mut leaves => return Err(self.hand_over().await),
                written = self.journal.written() => {
                    written?;
                    continue;
                }
                Some((fetch, piece)) = generating.fetches.next() => {
                    let took = generating.bring(fetch, piece?);
                    self.timings.kv_get_ms += ms(took);
                    continue;
                }
                event = generating.ticket.next() => event,
            };
            match event {
                Some(Event::Wanted { fetch }) => {
                    generating.fetch(fetch, pool.fetch(self.job, pieces, self.bus.counters()));
                }
                Some(Event::Joining { waited }) => self.note_joining(&mut generating, waited),
                Some(Event::Joined { recomputed, waited }) => {
                    self.timings.recomputed_tokens += recomputed as u32;
                    self.timings.kv_wait_ms += ms(waited);
                }
                Some(Event::Left) => generating.in_batch -= 1,
                Some(Event::Token { choice, emitted }) => self.take_token(&mut generating, choice, emitted).await?,
                Some(Event::Stuck(error)) if error.may_pass_elsewhere() => {
                    return Err(StageError { retry: Retry::Elsewhere, failure: error.failure() });
                }
                Some(Event::Stuck(error)) => return Ok(Err(error.failure())),
                Some(Event::Failed(failed)) => return Err(elsewhere(failed)),
                None => return Err(generating.thread_ended()),
            }
        }
        self.note_generated(&generating);
        Ok(Ok(()))
    }

    /// An answer has joined the batch.
    fn note_joining(&mut self, generating: &mut Generating<'_>, waited: Duration) {
        generating.in_batch += 1;
        self.timings.kv_wait_ms += ms(waited);
        if generating.began.is_none() {
            // Waiting for memory is waiting for a worker.
            self.timings.decode_queue_ms += ms(generating.submitted.elapsed().saturating_sub(waited));
            generating.began = Some(Instant::now());
        }
    }

    /// An answer has its next token.
    async fn take_token(
        &mut self,
        generating: &mut Generating<'_>,
        choice: u32,
        emitted: Emitted,
    ) -> Result<(), StageError> {
        if !self.begun {
            let since = generating.began.replace(Instant::now()).unwrap_or(generating.submitted);
            self.note_prefilled(generating.stored, since);
        }
        if self.emit(choice, emitted).await? {
            generating.open -= 1;
            generating.in_batch -= 1;
        }
        Ok(())
    }

    /// All answers have ended.
    fn note_generated(&mut self, generating: &Generating<'_>) {
        self.timings.decode_ms = ms(generating.began.unwrap_or(generating.submitted).elapsed());
        if self.timings.resumed_tokens > 0 {
            // It began with another worker.
            self.timings.decode_ms = (self.since_accepted() - self.timings.first_token_ms).max(0.0);
        }
    }

    /// What the answers have come to.
    fn checkpoint(&self) -> Checkpoint {
        let written = Checkpoint::of(self.claim.clone(), self.job, &self.timings, &self.answers);
        Checkpoint { fingerprint: Some(self.fingerprint), ..written }
    }

    /// Leaves the job to another worker, which goes on where this one stops.
    async fn hand_over(&mut self) -> StageError {
        let checkpoint = self.checkpoint();
        match timeout(LAST_WRITE, self.journal.close(checkpoint)).await {
            Ok(Err(error)) => return error,
            Ok(Ok(())) => {}
            Err(_) => {
                tracing::warn!("the last checkpoint of a job that goes to another worker was not written in time")
            }
        }
        StageError::new(Retry::HandOver, Code::Internal, "the worker was asked to stop")
    }

    /// Notes that decode has prefilled what the store does not hold of the prompt, if that was its task.
    fn note_prefilled(&mut self, stored: usize, since: Instant) {
        if self.prefills {
            let tokens = self.job.prompt.len() - stored;
            self.timings.prefill_ms = ms(since.elapsed());
            self.timings.decode_prefilled_tokens = tokens as u32;
            self.bus.counters().prompt(tokens, 0);
            let prefill_ms = self.timings.prefill_ms;
            tracing::info!(tokens, stored_tokens = stored, prefill_ms, "decode prefilled the prompt itself");
        }
    }

    /// Tells one answer's next token; true if that ended the answer.
    pub(crate) async fn emit(&mut self, choice: u32, emitted: Emitted) -> Result<bool, StageError> {
        if !self.begun {
            self.timings.first_token_ms = self.since_accepted();
        }
        let Emitted { index, token, text, logprobs, settled, .. } = emitted.clone();
        let settled = (logprobs.is_some() && settled <= index).then_some(settled);
        let ends = self.restore(choice, emitted);
        self.journal.note();
        let delta = Delta { choice, index, token: Some(token), text, logprobs, settled, ..Delta::default() };
        let subject = self.bus.layout().tokens(&self.job.tenant, &self.job.id);
        // On the connection that the next checkpoint is written on, so the broker has the token before that.
        self.bus.publish_delta(subject, &delta).await?;
        self.bus.counters().completion_token();
        Ok(ends)
    }

    /// Notes an answer's next token, which was told; true if that ended the answer.
    pub(crate) fn restore(&mut self, choice: u32, emitted: Emitted) -> bool {
        self.begun = true;
        if let Some(settled) = self.settled.get_mut(choice as usize) {
            *settled = emitted.settled();
        }
        let Emitted { token, text, logprobs, finish, .. } = emitted;
        if let Some(answer) = self.answers.get_mut(choice as usize) {
            answer.tokens.push(token);
            answer.text.push_str(&text);
            answer.logprobs.extend(logprobs);
            answer.finish_reason = finish;
        }
        finish.is_some()
    }

    pub(crate) fn completed(mut self) -> Next {
        self.close();
        let model_fingerprint = Some(hex(&self.fingerprint));
        Next::Finish(Box::new(Outcome { model_fingerprint, ..self.job.completed(self.answers, self.timings) }))
    }

    pub(crate) fn failed(mut self, failure: Failure) -> Next {
        self.close();
        let model_fingerprint = self.begun.then(|| hex(&self.fingerprint));
        Next::Finish(Box::new(Outcome { model_fingerprint, ..self.job.failed(failure, self.answers, self.timings) }))
    }

    fn close(&mut self) {
        self.timings.total_ms = self.since_accepted();
        self.answers.iter_mut().zip(&self.settled).for_each(|(answer, settled)| settled.keep(&mut answer.logprobs));
    }

    /// What the result says of the time since the broker accepted the request: 0 where the broker's clock can't be read.
    fn since_accepted(&self) -> f64 {
        self.accepted.map_or(0.0, |(before, began)| ms(before + began.elapsed()))
    }
}

/// Leaves a job to another worker of which an answer failed here.
fn elsewhere(failed: Failed) -> StageError {
    let (code, message) = match failed {
        Failed::TooLong(_) => (Code::Internal, failed.to_string()),
        Failed::Model(error) => (error.code(), format!("decode failed: {}", causes(&error))),
    };
    StageError::new(Retry::Elsewhere, code, message)
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
