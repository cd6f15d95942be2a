//! The bus: everything Baton says to NATS JetStream, and the loop that every stage runs. The only user of async-nats.
//!
//! - [`Bus`] is a connection with the pipeline's streams; [`provision`] creates and changes them, and [`settings`]
//!   keeps what all processes must agree on. `connection` says which connections a process has, `screen` finds messages
//!   that would end them, and `keep` makes again what is lost.
//! - [`pull`] takes messages, one permit each, and settles them; [`stage`] adds claims, successors and results.
//! - [`jobs`] keeps the job records and the results; [`client`] submits jobs and follows them; [`answers`] asks for single
//!   ones, many at a time.
//! - `large` puts results that no message holds into the broker's object store.
//! - [`checkpoints`] keeps what running answers have come to; [`cancel`] ends jobs that nobody wants any more.
//! - [`pressure`] says what happens when the broker takes no more; [`clock`] reads the broker's clock.
//! - [`dead`] keeps what no worker could finish; [`reconcile`] finds jobs that have lost their message.
//! - [`live`] tells what waits in a queue without taking it; [`turn`] says who does a chore that one is enough for, and
//!   [`lease`] who has a duty for as long as it lives.
//! - [`roles`] has workers change their role, and tells what a planner thinks of them.
//! - [`changes`] lists jobs by their last change, [`latest`] a tenant's last results; [`stats`] tells how the workers and the
//!   queues are doing.
//! - [`waiting`] is where admitted jobs of all tenants wait for their turns; [`why`] tells what a single job waits for.
//! - [`prefixes`] tells workers what others are computing, so that a prefix is computed once.
//! - [`files`] and [`batches`] are users' files and batches of requests, each kept on a [`shelf`]; [`errands`] are what
//!   gateways have to do for them; [`ends`] tells which jobs have ended.
//! - [`electing`] waits for a cluster that has just started.
//! - [`trace`] carries W3C trace context in message headers.
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
mod conflict;
mod connection;
pub mod dead;
pub mod electing;
mod endpoint;
pub mod ends;
pub mod errands;
pub mod files;
pub mod jobs;
mod keep;
mod large;
pub mod latest;
pub mod lease;
pub mod live;
pub mod prefixes;
pub mod pressure;
pub mod provision;
pub mod pull;
pub mod reconcile;
pub mod roles;
mod scan;
mod screen;
pub mod settings;
pub mod shelf;
pub mod stage;
pub mod stats;
pub mod trace;
pub mod turn;
pub mod waiting;
pub mod why;

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

pub use async_nats::HeaderMap;
use async_nats::jetstream::{self, ErrorCode, context::GetStreamErrorKind};
use baton_contract::{
    Name, causes,
    job::Job,
    subject::{Layout, Stage},
};
use bytes::Bytes;
use tokio::{
    sync::Notify,
    time::{sleep, timeout},
};

use crate::{
    connection::{Connection, Door, Ears},
    jobs::Stored,
    pressure::Backlog,
};

/// How often what must be the first message of its subject is published again while another is on its way there.
const FIRST_RACES: usize = 16;
/// What a request's headers, those of its trace, take at most in most cases.
const REQUEST_HEADERS: usize = 1 << 10;
const FLUSH_WITHIN: Duration = Duration::from_secs(5);
/// How often it is looked whether the connection is dead.
const PULSE_EVERY: Duration = Duration::from_millis(500);

/// How to reach the broker.
#[derive(Clone, Debug)]
pub struct Options {
    /// `nats://` or `tls://` URLs, separated by commas; `user:password@` or `token@` before a host is whom to come as.
    pub url: String,
    /// A NATS credentials file (JWT and seed), read for every connection.
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
    /// The lanes whose requests are taken.
    pub lanes: Vec<Name>,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot connect to the broker at {url}; is nats-server running there, and is the URL right?")]
    Connect { url: String, source: async_nats::ConnectError },
    #[error("cannot read the credentials file {path}")]
    Credentials { path: PathBuf, source: std::io::Error },
    #[error(
        "expected one user or token for all of the broker's URLs, as user:password@ or token@ before the host, special \
         characters written like %40; found several, or one that is not UTF-8"
    )]
    Logins,
    #[error("the connection to the broker died (its client's own message is above); start the process again")]
    Died,
    #[error("JetStream is not usable: {0}; start nats-server with JetStream on (-js)")]
    JetStream(String),
    #[error("cannot create {what}: {message}")]
    Provision { what: String, message: String },
    #[error("the pipeline's streams do not exist under root {root}: {message}; start a worker or `baton up` first")]
    NotProvisioned { root: Name, message: String },
    #[error("cannot publish to {subject}: {message}")]
    Publish { subject: String, message: String },
    #[error("the broker takes nothing for {subject} now ({message}): {because}; try again later")]
    TryLater { subject: String, message: String, because: pressure::Because },
    #[error(
        "the pipeline has no lane {lane}; it has {lanes}: take one of them, or add it to `lanes` in the pipeline file"
    )]
    UnknownLane { lane: Name, lanes: String },
    #[error("the broker takes no message of this size for {subject}: {message}")]
    TooLarge { subject: String, message: String },
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
    #[error(
        "ingest has not seen job {job} yet, and more requests of tenant {tenant} wait before it than are looked through; try \
         again when `baton top` shows fewer"
    )]
    Unseen { job: String, tenant: Name },
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
    main: Arc<Connection>,
    /// For what others may publish on core NATS.
    ears: Ears,
    /// For what others have published to the queues.
    intake: Ears,
    /// Told when something of the broker's seems to be missing.
    doubts: Arc<Notify>,
    clock: clock::Shared,
}

impl Bus {
    /// Connects once; later interruptions are bridged by reconnecting without end.
    pub async fn connect(options: Options) -> Result<Self, Error> {
        let layout = options.layout.clone();
        let door = Arc::new(Door::new(options)?);
        let main = Arc::new(door.connect().await?);
        let (client, jetstream) = (main.client.clone(), main.jetstream.clone());
        let (ears, intake) = (Ears::new(door.clone()), Ears::new(door));
        let (counters, doubts, clock) = (stats::Counters::default(), Arc::default(), clock::Shared::default());
        Ok(Self { client, jetstream, layout, counters, main, ears, intake, doubts, clock })
    }

    /// Waits until the connection is dead, which nothing mends: a process that cannot work is to end.
    pub async fn died(&self) -> Error {
        while !self.main.is_dead() {
            sleep(PULSE_EVERY).await;
        }
        Error::Died
    }

    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Checks that the broker has JetStream on for this account; returns its version.
    pub async fn check(&self) -> Result<String, Error> {
        let told = self.jetstream.query_account().await;
        told.map_err(|error| match electing::account_passes(&error) {
            true => Error::Read { what: "the account".into(), message: causes(&error) },
            false => Error::JetStream(causes(&error)),
        })?;
        Ok(self.client.server_info().version)
    }

    /// Whether the broker is connected now.
    pub fn is_connected(&self) -> bool {
        self.client.connection_state() == async_nats::connection::State::Connected && !self.main.is_dead()
    }

    /// Bytes that a message may have on this broker.
    pub fn max_payload(&self) -> usize {
        self.client.server_info().max_payload
    }

    /// Bytes that a request may have on this broker.
    pub fn max_request_bytes(&self) -> usize {
        self.payload_room(&HeaderMap::new()).saturating_sub(REQUEST_HEADERS)
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
        publish_durably(&self.jetstream, subject, headers, payload.into()).await
    }

    /// Why nobody takes requests in a lane: there is no such lane, or no such stream; otherwise its broker is choosing a leader.
    async fn unserved(&self, lane: &Name, refused: Error) -> Error {
        let stream = self.jetstream.get_stream(self.layout.stage_stream(Stage::Ingest)).await;
        let subjects = match &stream {
            Ok(stream) => &stream.cached_info().config.subjects,
            Err(error) => match error.kind() {
                GetStreamErrorKind::JetStream(told) if told.error_code() == ErrorCode::STREAM_NOT_FOUND => {
                    return Error::NotProvisioned { root: self.layout.root().clone(), message: causes(error) };
                }
                _ => return refused,
            },
        };
        match self.layout.parse_request_subjects(subjects.iter().map(String::as_str)) {
            Some(lanes) if !lanes.contains(lane) => {
                let lanes = lanes.iter().map(Name::as_str).collect::<Vec<_>>().join(", ");
                Error::UnknownLane { lane: lane.clone(), lanes }
            }
            _ => refused,
        }
    }

    /// Publishes durably what must be the first message of its subject; returns whether it was.
    async fn publish_first(&self, subject: String, mut headers: HeaderMap, payload: Vec<u8>) -> Result<bool, Error> {
        expect_first(&mut headers);
        let payload = Bytes::from(payload);
        let mut race = 0;
        loop {
            conflict::breathe(race).await;
            race += 1;
            let sent = self.jetstream.publish_with_headers(subject.clone(), headers.clone(), payload.clone()).await;
            let ack = match sent {
                Ok(sent) => sent.await,
                Err(error) => Err(error),
            };
            let Err(error) = ack else { return Ok(true) };
            match conflict::came_second(&error) {
                Some(true) => return Ok(false),
                None if race < FIRST_RACES => {}
                _ => return Err(pressure::refused(subject, &error)),
            }
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
        let payload = serde_json::to_vec(delta).map_err(|error| failed(causes(&error)))?;
        if payload.len() > self.payload_room(&HeaderMap::new()) {
            // Who follows takes it from the result.
            return Ok(());
        }
        self.client.publish(subject.clone(), payload.into()).await.map_err(|error| failed(causes(&error)))
    }

    /// Sends what is still buffered, if the broker can be reached within some seconds.
    pub async fn flush(&self) -> Result<(), Error> {
        let failed = |message: String| Error::Publish { subject: "(all)".into(), message };
        match timeout(FLUSH_WITHIN, self.client.flush()).await {
            Ok(flushed) => flushed.map_err(|error| failed(causes(&error))),
            Err(_) => Err(failed(format!("the broker did not answer within {FLUSH_WITHIN:?}"))),
        }
    }
}

/// Publishes durably on one of the connections.
async fn publish_durably(
    connection: &jetstream::Context,
    subject: String,
    headers: HeaderMap,
    payload: Bytes,
) -> Result<u64, Error> {
    let ack = match connection.publish_with_headers(subject.clone(), headers, payload).await {
        Ok(sent) => sent.await,
        Err(error) => Err(error),
    };
    ack.map(|ack| ack.sequence).map_err(|error| pressure::refused(subject, &error))
}

/// Has the broker take a message only as the first of its subject.
fn expect_first(headers: &mut HeaderMap) {
    headers.insert("Nats-Expected-Last-Subject-Sequence", "0");
}

/// This machine's time in milliseconds since 1970.
pub fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}
