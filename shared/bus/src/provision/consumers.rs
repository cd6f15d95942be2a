//! The durable consumers that workers share.

use std::time::Duration;

use async_nats::jetstream::{
    ErrorCode,
    consumer::{self, pull},
    stream::ConsumerErrorKind,
};
use baton_contract::{Name, causes, subject::Stage};

use crate::{
    Bus, Error,
    provision::{
        electing::{self, Failed},
        wanted::{Change, age},
    },
    stage::queue::Queue,
};

impl Bus {
    /// The durable consumer that all workers of a queue share, created if it is missing and left as it is if it stands.
    pub(crate) async fn consumer(&self, queue: &Queue, ack_wait: Duration) -> Result<consumer::PullConsumer, Error> {
        let (stream, config) = self.queue_consumer(queue, ack_wait);
        self.shared_consumer(&stream, config).await
    }

    /// Brings the consumers of a stage's queues to this `ack_wait`, those that are there: the others get it when the first worker
    /// comes. Returns what it did.
    pub async fn apply_ack_wait(
        &self,
        stage: Stage,
        models: &[Name],
        lanes: &[Name],
        ack_wait: Duration,
    ) -> Result<Vec<Change>, Error> {
        self.ack_waits(Queue::all(stage, models, lanes), ack_wait, true).await
    }

    /// What [`Bus::apply_ack_wait`] would do.
    pub async fn compare_ack_wait(
        &self,
        stage: Stage,
        models: &[Name],
        lanes: &[Name],
        ack_wait: Duration,
    ) -> Result<Vec<Change>, Error> {
        self.ack_waits(Queue::all(stage, models, lanes), ack_wait, false).await
    }

    async fn ack_waits(
        &self,
        queues: impl IntoIterator<Item = Queue>,
        ack_wait: Duration,
        change: bool,
    ) -> Result<Vec<Change>, Error> {
        let mut changes = Vec::new();
        for queue in queues {
            let (stream, config) = self.queue_consumer(&queue, ack_wait);
            changes.extend(self.change_ack_wait(&stream, config, change).await?);
        }
        Ok(changes)
    }

    fn queue_consumer(&self, queue: &Queue, ack_wait: Duration) -> (String, pull::Config) {
        let config = pull::Config {
            durable_name: Some(queue.durable()),
            filter_subject: queue.subject(&self.layout),
            ack_wait,
            // The stage loop counts attempts itself, so that a job that used them up still gets its result.
            max_deliver: -1,
            // Shared by all workers of the queue: a low value would silently cap scale-out.
            max_ack_pending: match queue.stage {
                // Requests of tenants that may have no more jobs waiting come back later, and count meanwhile.
                Stage::Ingest => -1,
                Stage::Prefill | Stage::Decode => 100_000,
            },
            ..Default::default()
        };
        (self.layout.stage_stream(queue.stage), config)
    }

    /// A durable consumer, created if it is missing and left as it is if it stands.
    pub(crate) async fn shared_consumer(
        &self,
        stream: &str,
        config: pull::Config,
    ) -> Result<consumer::PullConsumer, Error> {
        let durable = config.durable_name.clone().unwrap_or_default();
        let failed = |error: &(dyn std::error::Error + 'static)| Error::Provision {
            what: format!("consumer {durable} of stream {stream}"),
            message: causes(error),
        };
        if let Some(consumer) = self.standing_consumer(stream, &durable).await? {
            return Ok(consumer);
        }
        match self.jetstream.create_consumer_on_stream(config, stream).await {
            Ok(consumer) => Ok(consumer),
            Err(error) => Err(failed(&error)),
        }
    }

    /// The same for a worker that starts; waits for a cluster that is electing.
    pub(crate) async fn consumer_once_elected(
        &self,
        queue: &Queue,
        ack_wait: Duration,
    ) -> Result<consumer::PullConsumer, Error> {
        let what = format!("consumer {}", queue.durable());
        let attempt = || async move { self.consumer(queue, ack_wait).await.map_err(Failed::passing) };
        electing::once_elected(&what, attempt).await
    }

    async fn standing_consumer(&self, stream: &str, durable: &str) -> Result<Option<consumer::PullConsumer>, Error> {
        match self.jetstream.get_consumer_from_stream(durable, stream).await {
            Ok(consumer) => Ok(Some(consumer)),
            Err(error) => match error.kind() {
                ConsumerErrorKind::JetStream(error) if error.error_code() == ErrorCode::CONSUMER_NOT_FOUND => Ok(None),
                _ => Err(Error::Provision {
                    what: format!("consumer {durable} of stream {stream}"),
                    message: causes(&error),
                }),
            },
        }
    }

    async fn change_ack_wait(&self, stream: &str, config: pull::Config, change: bool) -> Result<Option<Change>, Error> {
        let durable = config.durable_name.clone().unwrap_or_default();
        let what = format!("consumer {durable} of stream {stream}");
        let Some(standing) = self.standing_consumer(stream, &durable).await? else { return Ok(None) };
        let (from, to) = (standing.cached_info().config.ack_wait, config.ack_wait);
        if from == to {
            return Ok(None);
        }
        if change {
            let updated = self.jetstream.update_consumer_on_stream(config, stream).await;
            updated.map_err(|error| Error::Provision { what: what.clone(), message: causes(&error) })?;
        }
        Ok(Some(Change::Changed { what, key: "ack_wait", from: age(from), to: age(to) }))
    }
}
