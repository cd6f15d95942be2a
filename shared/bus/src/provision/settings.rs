//! Where a pipeline's shared settings lie: one JSON value, which everybody reads and only a change of the pipeline replaces. What
//! is in it is `topology`'s.

use std::time::Duration;

use async_nats::jetstream::{
    ErrorCode,
    context::GetStreamErrorKind,
    kv::{self, Operation},
    stream::Config,
};
use baton_contract::{
    causes,
    subject::{Stage, broker},
};
use serde_json::Value;

use crate::{
    Bus, Error,
    connection::conflict,
    provision::electing::{self, Failed},
};

/// Where the settings are in their bucket.
const KEY: &str = "pipeline";
/// What is put there to see whether something can be.
const PROBE: &str = "probe";

/// The settings as they are kept.
#[derive(Clone, Debug)]
pub struct Kept {
    /// The settings as JSON.
    pub value: Value,
    revision: u64,
}

impl Bus {
    /// The pipeline's settings; none if it has none yet.
    pub async fn settings(&self) -> Result<Option<Kept>, Error> {
        if self.stream_config(&broker::bucket_stream(&self.layout.settings_bucket())).await?.is_none() {
            return Ok(None);
        }
        let bucket = self.jetstream.get_key_value(self.layout.settings_bucket()).await;
        let bucket = bucket.map_err(|error| self.unreadable(&error))?;
        let entry = bucket.entry(KEY).await.map_err(|error| self.unreadable(&error))?;
        let Some(entry) = entry.filter(|entry| entry.operation == Operation::Put) else { return Ok(None) };
        let value = serde_json::from_slice(&entry.value).map_err(|error| self.unreadable(&error))?;
        Ok(Some(Kept { value, revision: entry.revision }))
    }

    /// Keeps the first settings of a pipeline; returns whether they were the first.
    pub async fn settle(&self, value: &Value, replicas: usize) -> Result<bool, Error> {
        let bucket = self.bucket(self.settings_keeping(replicas)).await?;
        let attempt = || async { self.settle_in(&bucket, value).await.map_err(Failed::passing) };
        electing::once_elected("keeping the pipeline's settings", attempt).await
    }

    async fn settle_in(&self, bucket: &kv::Store, value: &Value) -> Result<bool, Error> {
        let created = conflict::unless_beaten(bucket.create(KEY, bytes(value)).await);
        created.map(|created| created.is_some()).map_err(|error| self.unstored(&error))
    }

    /// Replaces the settings; returns whether nobody else did since they were read.
    pub async fn resettle(&self, kept: &Kept, value: &Value) -> Result<bool, Error> {
        let bucket = self.jetstream.get_key_value(self.layout.settings_bucket()).await;
        let bucket = bucket.map_err(|error| self.unreadable(&error))?;
        let updated = conflict::unless_beaten(bucket.update(KEY, bytes(value), kept.revision).await);
        updated.map(|updated| updated.is_some()).map_err(|error| self.unstored(&error))
    }

    /// How the results and the queue of prefill are kept, whoever made them; none if nobody did.
    pub async fn standing_retention(&self) -> Result<Option<Standing>, Error> {
        let Some(results) = self.stream_config(&self.layout.result_stream()).await? else { return Ok(None) };
        let queue = self.stream_config(&self.layout.stage_stream(Stage::Prefill)).await?;
        let waiting = self.stream_config(&self.layout.waiting_stream()).await?;
        let positive = |number: i64| u64::try_from(number).ok().filter(|number| *number > 0);
        Ok(Some(Standing {
            replicas: results.num_replicas.max(1),
            results: results.max_age,
            backlog: queue.and_then(|queue| positive(queue.max_messages)),
            backlog_of_tenant: waiting.and_then(|waiting| positive(waiting.max_messages_per_subject)),
        }))
    }

    /// How much the broker stores for this account, and how much it may.
    pub async fn room(&self) -> Result<Room, Error> {
        let account = self.jetstream.query_account().await.map_err(|error| Error::JetStream(causes(&error)))?;
        let limit = account.limits.max_storage.and_then(|bytes| u64::try_from(bytes).ok()).filter(|bytes| *bytes > 0);
        Ok(Room { used: account.storage, limit })
    }

    /// What keeps the broker from storing more, if anything does or soon will.
    pub async fn full(&self, Room { used, limit }: Room) -> Option<Full> {
        match limit {
            Some(limit) if used.saturating_mul(20) >= limit.saturating_mul(19) => Some(Full::Limit { used, limit }),
            _ => self.probe_write().await.err().map(|error| Full::Refuses { used, error }),
        }
    }

    /// Whether the broker stores a message now; of a pipeline that has settings.
    async fn probe_write(&self) -> Result<(), Error> {
        if self.stream_config(&broker::bucket_stream(&self.layout.settings_bucket())).await?.is_none() {
            return Ok(());
        }
        let bucket = self.jetstream.get_key_value(self.layout.settings_bucket()).await;
        let bucket = bucket.map_err(|error| self.unreadable(&error))?;
        bucket.put(PROBE, bytes::Bytes::new()).await.map_err(|error| self.unstored(&error))?;
        bucket.purge(PROBE).await.map_err(|error| self.unstored(&error))
    }

    /// How a stream is kept; none if it doesn't exist.
    pub(crate) async fn stream_config(&self, name: &str) -> Result<Option<Config>, Error> {
        match self.jetstream.get_stream(name).await {
            Ok(stream) => Ok(Some(stream.cached_info().config.clone())),
            Err(error) => match error.kind() {
                GetStreamErrorKind::JetStream(error) if error.error_code() == ErrorCode::STREAM_NOT_FOUND => Ok(None),
                _ => Err(Error::Read { what: format!("stream {name}"), message: causes(&error) }),
            },
        }
    }

    pub(crate) fn settings_keeping(&self, replicas: usize) -> kv::Config {
        let (bucket, description) =
            (self.layout.settings_bucket(), "what all processes of the pipeline agree on".to_owned());
        // What was replaced may be looked up for a while.
        kv::Config { bucket, description, history: 8, num_replicas: replicas, ..Default::default() }
    }

    fn unreadable(&self, error: &(dyn std::error::Error + 'static)) -> Error {
        Error::Read { what: "the pipeline's settings".into(), message: causes(error) }
    }

    fn unstored(&self, error: &(dyn std::error::Error + 'static)) -> Error {
        Error::Provision { what: format!("settings in {}", self.layout.settings_bucket()), message: causes(error) }
    }
}

/// What the broker stores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// In bytes, on its disks.
    pub used: u64,
    /// None if only the server's own limit or its disk bounds it.
    pub limit: Option<u64>,
}

/// A broker without room.
#[derive(Debug)]
pub enum Full {
    /// At least 95 % of what the account may store are used; both in bytes.
    Limit {
        /// Bytes that are stored.
        used: u64,
        /// Bytes that may be.
        limit: u64,
    },
    /// It refuses a message, although `used` bytes are within its limit.
    Refuses {
        /// Bytes that are stored.
        used: u64,
        /// What the broker said.
        error: Error,
    },
}

/// What streams tell of the settings that they were made with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Copies of each stream in a cluster.
    pub replicas: usize,
    /// How long results and job records are kept.
    pub results: Duration,
    /// Messages that each queue may hold; none without a limit.
    pub backlog: Option<u64>,
    /// Messages of each tenant that may wait; none without a limit.
    pub backlog_of_tenant: Option<u64>,
}

fn bytes(value: &Value) -> bytes::Bytes {
    value.to_string().into()
}
