//! What a process needs of the broker is made again when it is lost: a stream or a bucket that somebody removed, or all of
//! them, with a broker that comes back empty. A consumer is made again by those who take from it ([`crate::pull`]).
//!
//! What was in it is lost. A job whose record is gone begins anew when its message is taken.

use std::{convert::Infallible, time::Duration};

use async_nats::jetstream::{ErrorCode, context::GetStreamErrorKind};
use baton_contract::{causes, subject::Stage};
use futures::{StreamExt, TryStreamExt, stream};
use tokio::time::sleep;

use crate::{Bus, Error, Retention};

/// How often it is looked whether something is missing, although nothing failed.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Between two looks, whatever fails.
const APART: Duration = Duration::from_secs(1);
/// Streams that are asked for at a time.
const AT_ONCE: usize = 16;

impl Bus {
    /// Makes again what the pipeline needs whenever it is lost, as long as this is polled.
    pub async fn keep(&self, retention: &Retention) -> Infallible {
        loop {
            tokio::select! {
                () = sleep(LOOK_EVERY) => {}
                () = self.doubts.notified() => {}
            }
            if let Err(error) = self.make_again(retention).await {
                tracing::debug!(error = %causes(&error), "it is not known whether something is missing, or it could not be made again");
            }
            sleep(APART).await;
        }
    }

    async fn make_again(&self, retention: &Retention) -> Result<(), Error> {
        let missing = self.missing().await?;
        if missing.is_empty() {
            return Ok(());
        }
        self.provision(retention).await?;
        tracing::warn!(missing = missing.join(", "), "what the pipeline needs was lost, and made again");
        Ok(())
    }

    /// Says that something seems to be missing.
    pub(crate) fn doubt(&self) {
        self.doubts.notify_one();
    }

    /// Which of the pipeline's streams and buckets are not there.
    pub async fn missing(&self) -> Result<Vec<String>, Error> {
        let missing = stream::iter(self.needed()).map(|(what, name)| async move {
            match self.jetstream.get_stream(&name).await {
                Ok(_) => Ok(None),
                Err(error) => match error.kind() {
                    GetStreamErrorKind::JetStream(error) if error.error_code() == ErrorCode::STREAM_NOT_FOUND => {
                        Ok(Some(what))
                    }
                    _ => Err(Error::Read { what, message: causes(&error) }),
                },
            }
        });
        missing.buffered(AT_ONCE).try_filter_map(|what| async { Ok(what) }).try_collect().await
    }

    /// The same, but nothing if nothing is there: the pipeline was not started yet.
    pub async fn lost(&self) -> Result<Vec<String>, Error> {
        let missing = self.missing().await?;
        Ok(if missing.len() < self.needed().len() { missing } else { Vec::new() })
    }

    /// The streams and buckets without which no job ends, and what their streams are called.
    fn needed(&self) -> Vec<(String, String)> {
        let layout = &self.layout;
        let stages = Stage::ALL.into_iter().map(|stage| layout.stage_stream(stage));
        let kept = [layout.waiting_stream(), layout.result_stream(), layout.dead_stream(), layout.admitted_stream()];
        let buckets = [layout.job_bucket(), layout.checkpoint_bucket()];
        let stream = |name: String| (format!("stream {name}"), name);
        let bucket = |name: String| (format!("bucket {name}"), format!("KV_{name}"));
        stages.chain(kept).map(stream).chain(buckets.map(bucket)).collect()
    }

    /// Checks that the broker answers and that the pipeline's streams are there.
    pub async fn ready(&self) -> Result<(), Error> {
        let missing = self.missing().await?;
        if missing.is_empty() {
            return Ok(());
        }
        Err(Error::NotProvisioned {
            root: self.layout.root().clone(),
            message: format!("no {}", missing.join(", no ")),
        })
    }
}
