//! The bus: everything Baton says to NATS JetStream, and the loop that every stage runs. The only user of async-nats.
//!
//! - [`Bus`] is a connection with the pipeline's streams; [`Bus::provision`] creates them.
//! - [`pull`] takes messages, one permit each, and settles them; [`stage`] adds claims, successors and results.
//! - [`jobs`] keeps the job records and the results; [`client`] submits jobs and follows them; [`answers`] asks for single
//!   ones, many at a time.
//! - [`checkpoints`] keeps what running answers have come to; [`cancel`] ends jobs that nobody wants any more.
//! - [`pressure`] says what happens when the broker takes no more; [`clock`] reads the broker's clock.
//! - [`dead`] keeps what no worker could finish; [`reconcile`] finds jobs that have lost their message.
//! - [`live`] tells what waits in a queue without taking it; [`turn`] says who does a chore that one is enough for, and
//!   [`lease`] who has a duty for as long as it lives.
//! - [`roles`] has workers change their role, and tells what a planner thinks of them.
//! - [`changes`] lists jobs by their last change, [`latest`] a tenant's last results; [`stats`] tells how the workers and the
//!   queues are doing.
//! - [`waiting`] is where admitted jobs of all tenants wait for their turns.
//! - [`prefixes`] tells workers what others are computing, so that a prefix is computed once.
//! - [`files`] and [`batches`] are users' files and batches of requests, each kept on a [`shelf`]; [`errands`] are what
//!   gateways have to do for them; [`ends`] tells which jobs have ended.
//! - [`server`] runs a `nats-server` as a child process; [`trace`] carries W3C trace context in message headers.
//!
//! What must never happen here: an acknowledgement before the successor is durable, a second result for a job, a message
//! taken without a free slot.
#![forbid(unsafe_code)]

pub mod answers;
pub mod batches;
pub mod cancel;
pub mod changes;
pub mod checkpoints;
pub mod client;
pub mod clock;
pub mod dead;
pub mod ends;
pub mod errands;
pub mod files;
pub mod jobs;
pub mod latest;
pub mod lease;
pub mod live;
pub mod prefixes;
pub mod pressure;
pub mod pull;
pub mod reconcile;
pub mod roles;
mod scan;
pub mod server;
pub mod shelf;
pub mod stage;
pub mod stats;
pub mod trace;
pub mod turn;
pub mod waiting;

use std::{
    path::PathBuf,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

pub use async_nats::HeaderMap;
use async_nats::jetstream::{
    self, consumer,
    context::PublishErrorKind,
    stream::{Config, DiscardPolicy, RetentionPolicy},
};
use baton_contract::{
    Name, envelope,
    job::Job,
    subject::{Layout, Stage},
};
use bytes::Bytes;
use tokio::time::timeout;

use crate::{jobs::Stored, pressure::Backlog};

const FLUSH_WITHIN: Duration = Duration::from_secs(5);
/// How often the broker is asked whether it is there. A connection that stays open though nobody is at its other end (a
/// machine that lost its power, a firewall that forgot it) is given up after three questions.
const ASK_EVERY: Duration = Duration::from_secs(3);

/// How to reach the broker.
#[derive(Clone, Debug)]
pub struct Options {
    /// `nats://` or `tls://` URLs, separated by commas.
    pub url: String,
    /// A NATS credentials file (JWT and seed).
    pub credentials: Option<PathBuf>,
    /// Names the connection in the broker's monitoring.
    pub name: String,
    pub layout: Layout,
}

/// How the streams are kept.
#[derive(Clone, Debug)]
pub struct Retention {
    /// Copies of each stream in a cluster: 1, 3 or 5.
    pub replicas: usize,
    /// How long results and job records are kept.
    pub results: Duration,
    /// How much may wait for each stage.
    pub backlog: Backlog,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot connect to the broker at {url}: {source}; is nats-server running there, and is the URL right?")]
    Connect { url: String, source: async_nats::ConnectError },
    #[error("cannot read the credentials file {path}: {source}")]
    Credentials { path: PathBuf, source: std::io::Error },
    #[error("JetStream is not usable: {0}; start nats-server with JetStream on (-js)")]
    JetStream(String),
    #[error("cannot create {what}: {message}")]
    Provision { what: String, message: String },
    #[error("the pipeline's streams do not exist under root {root}: {message}; start a worker or `baton up` first")]
    NotProvisioned { root: Name, message: String },
    #[error("cannot publish to {subject}: {message}")]
    Publish { subject: String, message: String },
    #[error("the broker takes nothing for {subject} now ({message}): its queue or its disk is full; try again later")]
    TryLater { subject: String, message: String },
    #[error("nobody answers {subject}: no ingest worker runs on this broker under this root; start one")]
    NotServed { subject: String },
    #[error(
        "no worker named {worker:?} can change its role: none runs, or it was started for one stage only; start it with \
         --roles prefill,decode"
    )]
    NoFlexibleWorker { worker: String },
    #[error("cannot read {what}: {message}")]
    Read { what: String, message: String },
    #[error("cannot store the record of job {job}: {message}")]
    Record { job: String, message: String },
    #[error("the engine's thread ended (its own message is above); start the worker again")]
    Broken,
    #[error("the record of job {job} kept changing; another worker holds it")]
    Contended { job: String },
}

/// A connection to one pipeline's subjects and streams. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Bus {
    client: async_nats::Client,
    jetstream: jetstream::Context,
    layout: Layout,
    counters: stats::Counters,
    clock: clock::Shared,
}

impl Bus {
    /// Connects once; later interruptions are bridged by reconnecting without end.
    pub async fn connect(options: Options) -> Result<Self, Error> {
        let mut connect = async_nats::ConnectOptions::new()
            .name(&options.name)
            .ping_interval(ASK_EVERY)
            .event_callback(|event| async move {
                tracing::debug!(%event, "the broker connection changed");
            })
            .reconnect_delay_callback(|attempt| Duration::from_millis(50 << attempt.min(6)));
        if let Some(path) = options.credentials {
            let unreadable = |source| Error::Credentials { path: path.clone(), source };
            let text = std::fs::read_to_string(&path).map_err(unreadable)?;
            connect = connect.credentials(&text).map_err(unreadable)?;
        }
        let urls: Vec<&str> = options.url.split(',').map(str::trim).collect();
        let client =
            connect.connect(urls).await.map_err(|source| Error::Connect { url: options.url.clone(), source })?;
        let jetstream = jetstream::new(client.clone());
        Ok(Self {
            client,
            jetstream,
            layout: options.layout,
            counters: stats::Counters::default(),
            clock: clock::Shared::default(),
        })
    }

    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Checks that the broker has JetStream on for this account; returns its version.
    pub async fn check(&self) -> Result<String, Error> {
        self.jetstream.query_account().await.map_err(|error| Error::JetStream(error.to_string()))?;
        Ok(self.client.server_info().version)
    }

    /// Whether the broker is connected now.
    pub fn is_connected(&self) -> bool {
        self.client.connection_state() == async_nats::connection::State::Connected
    }

    /// Bytes that a request may have on this broker.
    pub fn max_request_bytes(&self) -> usize {
        self.client.server_info().max_payload.min(envelope::MAX_BYTES)
    }

    /// Checks that the broker answers and that the pipeline's streams are there.
    pub async fn ready(&self) -> Result<(), Error> {
        let missing = |message: String| Error::NotProvisioned { root: self.layout.root().clone(), message };
        for stream in [self.layout.stage_stream(Stage::Ingest), self.layout.result_stream()] {
            self.jetstream.get_stream(stream).await.map_err(|error| missing(error.to_string()))?;
        }
        Ok(())
    }

    /// Creates the pipeline's streams and job bucket, or brings existing ones to this configuration.
    pub async fn provision(&self, retention: &Retention) -> Result<(), Error> {
        let layout = &self.layout;
        let clamped = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        let backlog = || Config {
            discard: DiscardPolicy::New,
            max_messages: clamped(retention.backlog.messages),
            max_bytes: retention.backlog.bytes.map_or(-1, clamped),
            ..self.stream_defaults(retention)
        };
        // Where a subject is a tenant's, and what lies there waits for its turn.
        let of_tenants = || Config {
            discard_new_per_subject: retention.backlog.of_tenant.is_some(),
            max_messages_per_subject: retention.backlog.of_tenant.map_or(-1, clamped),
            ..backlog()
        };
        for stage in Stage::ALL {
            self.create_stream(Config {
                name: layout.stage_stream(stage),
                subjects: vec![layout.stage_subjects(stage)],
                retention: RetentionPolicy::WorkQueue,
                ..if stage == Stage::Ingest { of_tenants() } else { backlog() }
            })
            .await?;
        }
        // No queue that workers take from: whoever passes a job on removes it here.
        self.create_stream(Config {
            name: layout.waiting_stream(),
            subjects: vec![layout.waiting_subjects()],
            allow_direct: true,
            ..of_tenants()
        })
        .await?;
        self.create_stream(Config {
            name: layout.result_stream(),
            subjects: layout.result_subjects(),
            max_age: retention.results,
            allow_direct: true,
            ..self.stream_defaults(retention)
        })
        .await?;
        self.create_stream(Config {
            name: layout.dead_stream(),
            subjects: vec![layout.dead_subjects()],
            max_age: retention.results,
            allow_direct: true,
            ..self.stream_defaults(retention)
        })
        .await?;
        self.create_stream(Config {
            name: layout.admitted_stream(),
            subjects: vec![layout.admitted_subjects()],
            max_messages_per_subject: 1,
            max_age: retention.results,
            allow_direct: true,
            ..self.stream_defaults(retention)
        })
        .await?;
        self.create_bucket(layout.job_bucket(), "what is known about each job", retention).await?;
        self.create_bucket(layout.checkpoint_bucket(), "what running answers have come to", retention).await
    }

    async fn create_bucket(&self, bucket: String, description: &str, retention: &Retention) -> Result<(), Error> {
        let config = jetstream::kv::Config {
            bucket: bucket.clone(),
            description: description.into(),
            history: 1,
            max_age: retention.results,
            num_replicas: retention.replicas,
            ..Default::default()
        };
        let created = self.jetstream.create_or_update_key_value(config).await;
        created.map_err(|error| Error::Provision { what: format!("bucket {bucket}"), message: error.to_string() })?;
        Ok(())
    }

    fn stream_defaults(&self, retention: &Retention) -> Config {
        Config { max_message_size: envelope::MAX_BYTES as i32, num_replicas: retention.replicas, ..Default::default() }
    }

    async fn create_stream(&self, config: Config) -> Result<(), Error> {
        let what = format!("stream {}", config.name);
        self.jetstream
            .create_or_update_stream(config)
            .await
            .map_err(|error| Error::Provision { what, message: error.to_string() })?;
        Ok(())
    }

    /// The durable consumer that all workers of a queue share.
    async fn consumer(&self, queue: &pull::Queue, ack_wait: Duration) -> Result<consumer::PullConsumer, Error> {
        let stream = self.layout.stage_stream(queue.stage);
        let durable = queue.durable();
        self.jetstream
            .create_consumer_on_stream(
                consumer::pull::Config {
                    durable_name: Some(durable.clone()),
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
                },
                stream.as_str(),
            )
            .await
            .map_err(|error| Error::Provision {
                what: format!("consumer {durable} of stream {stream}"),
                message: error.to_string(),
            })
    }

    /// Publishes durably: returns once the broker has stored the message, with its sequence. A message with an `id` that
    /// was stored before within the stream's dedupe window is not stored again.
    async fn publish_durably(
        &self,
        subject: String,
        id: Option<&str>,
        mut headers: HeaderMap,
        payload: impl Into<Bytes>,
    ) -> Result<u64, Error> {
        if let Some(id) = id {
            headers.insert("Nats-Msg-Id", id);
        }
        let ack = match self.jetstream.publish_with_headers(subject.clone(), headers, payload.into()).await {
            Ok(sent) => sent.await,
            Err(error) => Err(error),
        };
        ack.map(|ack| ack.sequence).map_err(|error| pressure::refused(subject, &error))
    }

    /// Publishes durably what must be the first message of its subject; returns whether it was.
    async fn publish_first(&self, subject: String, mut headers: HeaderMap, payload: Vec<u8>) -> Result<bool, Error> {
        headers.insert("Nats-Expected-Last-Subject-Sequence", "0");
        let ack = match self.jetstream.publish_with_headers(subject.clone(), headers, payload.into()).await {
            Ok(sent) => sent.await,
            Err(error) => Err(error),
        };
        match ack {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == PublishErrorKind::WrongLastSequence => Ok(false),
            Err(error) => Err(pressure::refused(subject, &error)),
        }
    }

    /// Passes a job on to the next stage from the one that is done with its message of this `sequence`, in the trace of the
    /// current span. Repeating it within the dedupe window changes nothing; beyond that the claim does.
    pub async fn forward(&self, subject: String, job: &Job, from: (Stage, u64), payload: Vec<u8>) -> Result<(), Error> {
        self.forward_held(subject, job, from, None, payload).await
    }

    /// The same; tells the next stage the record that the job is `held` with.
    pub(crate) async fn forward_held(
        &self,
        subject: String,
        job: &Job,
        (stage, sequence): (Stage, u64),
        held: Option<&Stored>,
        payload: impl Into<Bytes>,
    ) -> Result<(), Error> {
        // A job that lost its message passes a stage again with another one, perhaps before the broker has forgotten the
        // first; its successor must not be taken for a repetition.
        let id = format!("{}/{}/{stage}/{sequence}", job.tenant, job.id);
        let mut headers = trace::headers_of(&tracing::Span::current());
        if let Some(held) = held {
            held.carry(&mut headers);
        }
        self.publish_durably(subject, Some(&id), headers, payload).await.map(drop)
    }

    /// Publishes without durability, for live streaming.
    pub async fn publish_delta(&self, subject: String, delta: &baton_contract::outcome::Delta) -> Result<(), Error> {
        let failed = |message: String| Error::Publish { subject: subject.clone(), message };
        let payload = serde_json::to_vec(delta).map_err(|error| failed(error.to_string()))?;
        self.client.publish(subject.clone(), payload.into()).await.map_err(|error| failed(error.to_string()))
    }

    /// Sends what is still buffered, if the broker can be reached within some seconds.
    pub async fn flush(&self) -> Result<(), Error> {
        let failed = |message: String| Error::Publish { subject: "(all)".into(), message };
        match timeout(FLUSH_WITHIN, self.client.flush()).await {
            Ok(flushed) => flushed.map_err(|error| failed(error.to_string())),
            Err(_) => Err(failed(format!("the broker did not answer within {FLUSH_WITHIN:?}"))),
        }
    }
}

/// This machine's time in milliseconds since 1970.
pub fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}
