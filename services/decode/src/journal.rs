//! When a job's checkpoint is written, and that it is: one write at a time, beside the generating.

use std::{future::pending, time::Duration};

use baton_bus::stage::{
    Retry, StageError,
    checkpoints::{Found, Ledger, Written},
};
use baton_contract::{causes, checkpoint::Checkpoint, job::Job, outcome::Code};
use futures::{FutureExt, future::BoxFuture};
use tokio::time::Instant;

/// Tokens of each answer after which a checkpoint is due, even if its time has not come.
const TOKENS: usize = 16;
/// Checkpoints are apart by this part of their time at least, however fast tokens come.
const LEAST: u32 = 10;
/// Bytes a second that one job's checkpoints take at most: those with many log-probabilities come less often.
const BYTES_PER_SECOND: f64 = (1 << 20) as f64;

pub(crate) struct Journal {
    ledger: Ledger,
    every: Duration,
    write: Option<BoxFuture<'static, Result<Written, baton_bus::Error>>>,
    /// When the last write began, or the job.
    began: Instant,
    /// How long after that none may begin.
    rest: Duration,
    /// Tokens since then.
    fresh: usize,
    /// Whether no checkpoint can be written any more.
    full: bool,
}

impl Journal {
    pub(crate) fn new(ledger: Ledger, every: Duration) -> Self {
        Self { ledger, every, write: None, began: Instant::now(), rest: every / LEAST, fresh: 0, full: false }
    }

    /// Notes a token that the last checkpoint does not have.
    pub(crate) fn note(&mut self) {
        self.fresh += 1;
    }

    /// Whether it is time for a checkpoint, of a job with so many answers that have not ended.
    pub(crate) fn is_due(&self, open: usize) -> bool {
        if self.fresh == 0 || self.full || self.write.is_some() {
            return false;
        }
        let since = self.began.elapsed();
        since >= self.rest && (since >= self.every || self.fresh >= TOKENS * open)
    }

    /// Begins to write a checkpoint; [`Journal::written`] goes on with it.
    pub(crate) fn begin(&mut self, checkpoint: Checkpoint) {
        let ledger = self.ledger.clone();
        self.began = Instant::now();
        self.fresh = 0;
        let logprobs = checkpoint.answers.iter().flat_map(|answer| &answer.logprobs);
        let texts = checkpoint.partial.iter().map(|answer| answer.text.len() + answer.message.len());
        let bytes: usize = 4 * checkpoint.tokens() + logprobs.map(|told| told.json_bytes() / 4).sum::<usize>();
        let bytes = bytes + texts.sum::<usize>();
        self.rest = (self.every / LEAST).max(Duration::from_secs_f64(bytes as f64 / BYTES_PER_SECOND));
        self.write = Some(async move { ledger.write(&checkpoint).await }.boxed());
    }

    /// Waits until the checkpoint is written that is being written, for ever if there is none. An error if the job is
    /// another worker's. May be dropped, and be called again.
    pub(crate) async fn written(&mut self) -> Result<(), StageError> {
        let Some(write) = &mut self.write else { return pending().await };
        let written = write.await;
        self.write = None;
        match written {
            Ok(Written::Stored) => {}
            Ok(Written::TooLarge) => {
                tracing::info!(
                    "the answers are too large for a checkpoint now; another worker would go on from the last one"
                );
                self.full = true;
            }
            Ok(Written::Superseded) => return Err(lost()),
            Err(error) => {
                tracing::debug!(error = %causes(&error), "a checkpoint was not written; the next one is tried");
                self.fresh = self.fresh.max(1);
            }
        }
        Ok(())
    }

    /// Waits for what is being written, and writes what is newer than that.
    pub(crate) async fn close(&mut self, checkpoint: Checkpoint) -> Result<(), StageError> {
        if self.write.is_some() {
            self.written().await?;
        }
        if self.fresh > 0 && !self.full {
            self.begin(checkpoint);
            self.written().await?;
        }
        Ok(())
    }
}

/// What earlier tries have left of a job's answers. They can write no more.
pub(crate) async fn left(ledger: &Ledger, job: &Job, attempt: u64) -> Result<Option<Box<Checkpoint>>, StageError> {
    let found = if attempt > 1 { ledger.take_over(job).await? } else { Found::Nothing };
    match found {
        Found::Nothing => Ok(None),
        Found::Checkpoint(checkpoint) => Ok(Some(checkpoint)),
        Found::Superseded => Err(lost()),
    }
}

/// The job is another worker's.
fn lost() -> StageError {
    StageError::new(Retry::Lost, Code::Internal, "another worker holds the job and has taken its checkpoint over")
}
