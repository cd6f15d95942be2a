//! What the broker loses, and what somebody does about it who may: an operator with `baton reconcile`, or the senders of
//! requests, who send them again. Nothing else is promised after these; after the others nobody does anything.

use std::{io, time::Duration};

use baton_contract::{
    Name,
    subject::{Layout, Stage},
};
use serde_json::Value;
use tokio::time::{Instant, sleep};

use super::{
    Error,
    crew::Crew,
    inflict::Pipeline,
    schedule::{Cache, Hostile, Queue},
    wire::Wire,
};

/// How long a queue is watched for something to lose.
const FULL_WITHIN: Duration = Duration::from_secs(4);
const ROUND: Duration = Duration::from_millis(15);
/// How long an operator tries to reconcile, while workers make again what is gone.
const RECONCILE_WITHIN: Duration = Duration::from_secs(90);
const TRY_AGAIN: Duration = Duration::from_millis(500);
/// The root of a run's subjects, and a tenant that nobody wants anything of.
pub const ROOT: &str = "baton";
pub const STRANGER: &str = "stranger";

pub fn layout() -> Result<Layout, Error> {
    Ok(Layout::new(Name::new(ROOT)?))
}

fn bucket(name: &str) -> String {
    format!("KV_{name}")
}

impl Pipeline {
    /// The consumers of a stage are gone, with what they knew of deliveries. Messages stay: nothing may be lost.
    pub(super) async fn delete_consumers(&self, stage: Stage) -> Result<bool, Error> {
        let broker = self.broker.lock().await;
        let mut wire = broker.operator().await?;
        Ok(wire.delete_consumers(&layout()?.stage_stream(stage)).await.map_err(Error::Operator)? > 0)
    }

    /// A bucket is gone that only saves work: nothing may be lost.
    pub(super) async fn delete_cache(&self, cache: Cache) -> Result<bool, Error> {
        let layout = layout()?;
        let name = match cache {
            Cache::Checkpoints => layout.checkpoint_bucket(),
            Cache::Prefixes => layout.prefix_bucket(),
        };
        let broker = self.broker.lock().await;
        broker.operator().await?.empty(&bucket(&name), true).await.map_err(Error::Operator)
    }

    /// What was admitted and waits is gone, and an operator reconciles: nothing may be lost.
    pub(super) async fn purge(&self, queue: Queue, stream: bool) -> Result<bool, Error> {
        let layout = layout()?;
        let streams = match queue {
            Queue::Prefill => vec![layout.stage_stream(Stage::Prefill), layout.waiting_stream()],
            Queue::Decode => vec![layout.stage_stream(Stage::Decode)],
        };
        let broker = self.broker.lock().await;
        let mut wire = broker.operator().await?;
        let hit = something_waits(&mut wire, &streams[0]).await.map_err(Error::Operator)?;
        for name in streams {
            wire.empty(&name, stream).await.map_err(Error::Operator)?;
        }
        self.reconcile().await?;
        Ok(hit)
    }

    async fn reconcile(&self) -> Result<(), Error> {
        let broker = format!("nats://{}", self.watcher.address());
        let deadline = Instant::now() + RECONCILE_WITHIN;
        loop {
            let output = self.program.attempt(&["reconcile", "--json"], &broker).await?;
            // It may say that requests are lost, too, and exit with 1: whether they are is the audit's to see.
            let told = serde_json::from_slice::<Value>(&output.stdout);
            if told.is_ok_and(|told| told["open"].is_u64()) {
                return Ok(());
            }
            if Instant::now() > deadline {
                let problem = String::from_utf8_lossy(&output.stderr).trim().to_owned();
                return Err(Error::Command { command: "reconcile".into(), problem });
            }
            sleep(TRY_AGAIN).await;
        }
    }

    /// Requests that nobody had admitted are gone: only their senders know them.
    pub(super) async fn purge_requests(&self, crew: &Crew) -> Result<bool, Error> {
        let requests = layout()?.stage_stream(Stage::Ingest);
        let hit = {
            let broker = self.broker.lock().await;
            let mut wire = broker.operator().await?;
            let hit = something_waits(&mut wire, &requests).await.map_err(Error::Operator)?;
            wire.empty(&requests, false).await.map_err(Error::Operator)?;
            hit
        };
        crew.send_again(crew.open()).await;
        Ok(hit)
    }

    /// What is known of jobs is gone: a job goes on if it can, and its sender may send it again.
    pub(super) async fn delete_records(&self, crew: &Crew) -> Result<bool, Error> {
        let records = bucket(&layout()?.job_bucket());
        let hit = {
            let broker = self.broker.lock().await;
            let hit = broker.operator().await?.empty(&records, true).await.map_err(Error::Operator)?;
            crew.witness.observed().forget();
            hit
        };
        crew.send_again(crew.open()).await;
        Ok(hit)
    }

    /// The broker starts anew with nothing: accepted jobs are gone, results too. A sender without a result sends again.
    pub(super) async fn wipe(&self, crew: &Crew) -> Result<(), Error> {
        {
            let mut broker = self.broker.lock().await;
            broker.wipe().await?;
            crew.witness.look_away();
            self.start_broker(&mut broker).await?;
        }
        crew.witness.look_again().await?;
        crew.send_again(crew.open()).await;
        Ok(())
    }

    /// What no client library sends, and the broker passes on.
    pub(super) async fn publish_hostile(&self, hostile: Hostile) -> Result<(), Error> {
        let headers: &[u8] = match hostile {
            Hostile::LoneReturn => b"NATS/1.0\r\nX: a\rb\r\n\r\n",
            Hostile::NotUtf8 => b"NATS/1.0\r\nX: \xff\xfe\r\n\r\n",
        };
        let subject = layout()?.request(&Name::new(STRANGER)?, &Name::new("interactive")?);
        let broker = self.broker.lock().await;
        let mut wire = broker.operator().await?;
        wire.publish(&subject, headers, br#"{"prompt":"x","max_tokens":2}"#).await.map_err(Error::Operator)
    }
}

/// Waits until a stream has a message; whether it came to that.
async fn something_waits(wire: &mut Wire, stream: &str) -> io::Result<bool> {
    let deadline = Instant::now() + FULL_WITHIN;
    while Instant::now() < deadline {
        let told = wire.call(&format!("STREAM.INFO.{stream}"), &Value::Null).await?;
        if told["state"]["messages"].as_u64() > Some(0) {
            return Ok(true);
        }
        sleep(ROUND).await;
    }
    Ok(false)
}
