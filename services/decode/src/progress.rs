//! One job whose answers this worker's own engine generates.

use std::time::Duration;

use baton_bus::stage::{Next, Retry, StageError};
use baton_contract::{
    causes,
    envelope::Piece,
    outcome::{Code, Delta, Failure},
};
use baton_model::generation::{Emitted, Settled};
use futures::StreamExt;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::{
    generating::Generating,
    messages::{Event, Failed, NewAnswer},
    pool::Pool,
    telling::{Telling, leaves, ms},
};

pub(crate) struct Progress<'a> {
    telling: Telling<'a>,
    /// Of each answer.
    settled: Vec<Settled>,
    /// Whether decode is to prefill what the pieces don't hold.
    prefills: bool,
}

impl<'a> Progress<'a> {
    pub(crate) fn new(telling: Telling<'a>, prefills: bool) -> Self {
        let settled = vec![Settled::default(); telling.job.samples as usize];
        Self { telling, settled, prefills }
    }

    /// Tells live readers that the answers begin again.
    pub(crate) async fn begin_again(&mut self) -> Result<(), StageError> {
        for choice in 0..self.telling.job.samples {
            self.telling.tell(&Delta { choice, restart: true, ..Delta::default() }).await?;
        }
        Ok(())
    }

    /// Has the answers generated, and follows the engine until all have ended or one can't go on.
    pub(crate) async fn generate(
        &mut self,
        pool: &Pool,
        pieces: &[Piece],
        answers: Vec<NewAnswer>,
        shutdown: &CancellationToken,
    ) -> Result<Result<(), Failure>, StageError> {
        let job = self.telling.job;
        let mut generating = Generating::submit(&pool.engine, job, pieces, answers);
        if let Some(fetch) = generating.ticket.early() {
            generating.fetch(fetch, pool.fetch(job, pieces, self.telling.bus.counters()));
        }
        let leaves = leaves(shutdown);
        tokio::pin!(leaves);
        while generating.open > 0 {
            if self.telling.journal.is_due(generating.open) {
                self.telling.journal.begin(self.telling.checkpoint());
            }
            let event = tokio::select! {
                () = &mut leaves => {
                    let checkpoint = self.telling.checkpoint();
                    return Err(self.telling.hand_over(checkpoint).await);
                }
                written = self.telling.journal.written() => {
                    written?;
                    continue;
                }
                Some((fetch, piece)) = generating.fetches.next() => {
                    let took = generating.bring(fetch, piece?);
                    self.telling.timings.kv_get_ms += ms(took);
                    continue;
                }
                event = generating.ticket.next() => event,
            };
            match event {
                Some(Event::Wanted { fetch }) => {
                    generating.fetch(fetch, pool.fetch(job, pieces, self.telling.bus.counters()));
                }
                Some(Event::Joining { waited }) => self.note_joining(&mut generating, waited),
                Some(Event::Joined { recomputed, waited }) => {
                    self.telling.timings.recomputed_tokens += recomputed as u32;
                    self.telling.timings.kv_wait_ms += ms(waited);
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
        self.telling.note_generated(generating.began.unwrap_or(generating.submitted));
        Ok(Ok(()))
    }

    /// An answer has joined the batch.
    fn note_joining(&mut self, generating: &mut Generating<'_>, waited: Duration) {
        generating.in_batch += 1;
        self.telling.timings.kv_wait_ms += ms(waited);
        if generating.began.is_none() {
            // Waiting for memory is waiting for a worker.
            self.telling.timings.decode_queue_ms += ms(generating.submitted.elapsed().saturating_sub(waited));
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
        if !self.telling.begun {
            let since = generating.began.replace(Instant::now()).unwrap_or(generating.submitted);
            self.note_prefilled(generating.stored, since);
        }
        if self.emit(choice, emitted).await? {
            generating.open -= 1;
            generating.in_batch -= 1;
        }
        Ok(())
    }

    /// Notes that decode has prefilled what the store does not hold of the prompt, if that was its task.
    fn note_prefilled(&mut self, stored: usize, since: Instant) {
        if self.prefills {
            let tokens = self.telling.job.prompt.len() - stored;
            self.telling.timings.prefill_ms = ms(since.elapsed());
            self.telling.timings.decode_prefilled_tokens = tokens as u32;
            self.telling.bus.counters().prompt(tokens, 0);
            let prefill_ms = self.telling.timings.prefill_ms;
            tracing::info!(tokens, stored_tokens = stored, prefill_ms, "decode prefilled the prompt itself");
        }
    }

    /// Tells one answer's next token; true if that ended the answer.
    pub(crate) async fn emit(&mut self, choice: u32, emitted: Emitted) -> Result<bool, StageError> {
        self.telling.note_first();
        let Emitted { index, token, text, logprobs, settled, .. } = emitted.clone();
        let settled = (logprobs.is_some() && settled <= index).then_some(settled);
        let ends = self.restore(choice, emitted);
        self.telling.journal.note();
        let delta = Delta { choice, index, token: Some(token), text, logprobs, settled, ..Delta::default() };
        self.telling.tell(&delta).await?;
        self.telling.bus.counters().completion(1);
        Ok(ends)
    }

    /// Notes an answer's next token, which was told; true if that ended the answer.
    pub(crate) fn restore(&mut self, choice: u32, emitted: Emitted) -> bool {
        self.telling.begun = true;
        if let Some(settled) = self.settled.get_mut(choice as usize) {
            *settled = emitted.settled();
        }
        let Emitted { token, text, logprobs, finish, .. } = emitted;
        if let Some(answer) = self.telling.answers.get_mut(choice as usize) {
            answer.tokens.push(token);
            answer.text.push_str(&text);
            answer.logprobs.extend(logprobs);
            answer.finish_reason = finish;
        }
        finish.is_some()
    }

    pub(crate) fn completed(mut self) -> Next {
        self.settle();
        Next::Finish(Box::new(self.telling.completed()))
    }

    pub(crate) fn failed(mut self, failure: Failure) -> Next {
        self.settle();
        Next::Finish(Box::new(self.telling.failed(failure)))
    }

    fn settle(&mut self) {
        let answers = self.telling.answers.iter_mut().zip(&self.settled);
        answers.for_each(|(answer, settled)| settled.keep(&mut answer.logprobs));
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
