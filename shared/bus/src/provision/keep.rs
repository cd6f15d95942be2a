//! What a process needs of the broker is made again when it is lost: a stream or a bucket that somebody removed, or all of
//! them, with a broker that comes back empty. A consumer is made again by those who take from it ([`crate::stage::pull`]).
//!
//! What was in it is lost. A job whose record is gone begins anew when its message is taken.

use std::{convert::Infallible, time::Duration};

use baton_contract::{
    causes,
    subject::{Stage, broker},
};
use futures::{StreamExt, TryStreamExt, stream};
use serde_json::Value;
use tokio::time::sleep;

use crate::{Bus, Error, Retention, provision::wanted::AT_ONCE};

/// How often it is looked whether something is missing, although nothing failed.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Between two looks, whatever fails.
const APART: Duration = Duration::from_secs(1);

impl Bus {
    /// Makes again what the pipeline needs whenever it is lost, as long as this is polled. Changes nothing that stands.
    pub async fn keep(&self, retention: &Retention) -> Infallible {
        let mut settings = None;
        loop {
            if let Err(error) = self.make_again(retention, &mut settings).await {
                let error = causes(&error);
                tracing::debug!(error, "it is not known whether something is missing, or it could not be made again");
            }
            sleep(APART).await;
            tokio::select! {
                () = sleep(LOOK_EVERY) => {}
                () = self.doubts.notified() => {}
            }
        }
    }

    /// Creates what is missing; the pipeline's settings as they were found last.
    async fn make_again(&self, retention: &Retention, settings: &mut Option<Value>) -> Result<(), Error> {
        let made = self.provision(retention).await?;
        if !made.is_empty() {
            let made: Vec<_> = made.iter().map(ToString::to_string).collect();
            tracing::warn!(made = made.join(", "), "something that the pipeline needs was lost, and made again");
        }
        match (self.settings().await?, &settings) {
            (Some(kept), _) => *settings = Some(kept.value),
            (None, Some(known)) => drop(self.settle(known, retention.replicas).await?),
            (None, None) => {}
        }
        Ok(())
    }

    /// Checks that the broker answers and that what no job ends without is there.
    pub async fn ready(&self) -> Result<(), Error> {
        let missing = stream::iter(self.needed()).map(|(what, name)| async move {
            let found = self.stream_config(&name).await?;
            Ok::<_, Error>(found.is_none().then_some(what))
        });
        let missing: Vec<_> = missing.buffered(AT_ONCE).try_filter_map(|what| async { Ok(what) }).try_collect().await?;
        if missing.is_empty() {
            return Ok(());
        }
        Err(Error::NotProvisioned {
            root: self.layout.root().clone(),
            message: format!("no {}", missing.join(", no ")),
        })
    }

    /// Streams and buckets, and what their streams are called.
    fn needed(&self) -> Vec<(String, String)> {
        let layout = &self.layout;
        let stages = Stage::ALL.into_iter().map(|stage| layout.stage_stream(stage));
        let kept = [layout.waiting_stream(), layout.result_stream(), layout.dead_stream(), layout.admitted_stream()];
        let buckets = [layout.job_bucket(), layout.checkpoint_bucket()];
        let stream = |name: String| (format!("stream {name}"), name);
        let bucket = |name: String| (format!("bucket {name}"), broker::bucket_stream(&name));
        stages.chain(kept).map(stream).chain(buckets.map(bucket)).collect()
    }
}
