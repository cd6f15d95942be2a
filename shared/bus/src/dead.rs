//! Dead letters: what no worker could finish, kept until somebody tries it again or drops it.
//!
//! A job that ends by Baton's fault (its tries are used up, or something broke inside) leaves the message that it died of; one
//! that ends by its request's fault does not. So does a message that no worker of this release can read. The letter's
//! body is that very message, its headers tell the rest, and its place tells its [`LetterId`].
//!
//! No mover is needed: consumers have no `max_deliver` (see `Bus::consumer`), tries are counted in the job's record, and so
//! there is no message that the broker has given up and no stage has.

use std::{fmt, str::FromStr};

use async_nats::jetstream::{
    message::StreamMessage,
    stream::{DirectGetErrorKind, Stream as JetStream},
};
use baton_contract::{
    JobId, Name, causes,
    envelope::{self, DecodeTask, PrefillTask, Task},
    outcome::{Code, Failure},
    record::{Record, Source},
    subject::Stage,
};
use futures::TryStreamExt;

use crate::{
    Bus, Error, HeaderMap,
    client::ID_HEADER,
    pull::Delivery,
    scan::{self, Scan},
    trace,
};

const CODE: &str = "Baton-Code";
const ERROR: &str = "Baton-Error";
const ATTEMPTS: &str = "Baton-Attempts";
const WORKER: &str = "Baton-Worker";
pub(crate) const SUBJECT: &str = "Baton-Subject";
const QUEUED: &str = "Baton-Queued-Ms";
const LEFT_OUT: &str = "Baton-Left-Out-Bytes";
/// The broker tells it where only headers are asked for.
const SIZE: &str = "Nats-Msg-Size";
/// What a retried job has after its id, before the number.
const RETRY: &str = "-retry-";
const MAX_ID_BYTES: usize = 64;

/// Names a dead letter.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum LetterId {
    /// A job's, written `prefill.acme.report-7`.
    Job { stage: Stage, tenant: Name, job: JobId },
    /// That of a message that could not be read, by its sequence in the stage's stream: `prefill.1234`.
    Message { stage: Stage, sequence: u64 },
}

#[derive(Debug, thiserror::Error)]
#[error("expected a dead letter such as prefill.acme.report-7 or prefill.1234, found {0:?}; `baton dlq ls` lists them")]
pub struct IdError(String);

impl LetterId {
    pub fn stage(&self) -> Stage {
        match self {
            Self::Job { stage, .. } | Self::Message { stage, .. } => *stage,
        }
    }
}

impl fmt::Display for LetterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Job { stage, tenant, job } => write!(f, "{stage}.{tenant}.{job}"),
            Self::Message { stage, sequence } => write!(f, "{stage}.{sequence}"),
        }
    }
}

impl FromStr for LetterId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let parts: Vec<&str> = text.split('.').collect();
        let stage = |name: &str| Stage::ALL.into_iter().find(|stage| stage.as_str() == name);
        let read = || match parts[..] {
            [first, tenant, job] => {
                Some(Self::Job { stage: stage(first)?, tenant: Name::new(tenant).ok()?, job: JobId::new(job).ok()? })
            }
            [first, sequence] => Some(Self::Message { stage: stage(first)?, sequence: sequence.parse().ok()? }),
            _ => None,
        };
        read().ok_or_else(|| IdError(text.to_owned()))
    }
}

/// Whether a job that failed so leaves a dead letter: the fault is Baton's, not the request's.
pub fn is_ours(cause: &Failure) -> bool {
    matches!(cause.code, Code::Internal | Code::AttemptsExhausted | Code::NonFinite)
}

/// What was the end of a message.
pub struct Burial<'a> {
    pub delivery: &'a Delivery,
    pub cause: &'a Failure,
    /// How often the message was worked on.
    pub attempts: u64,
    /// Who gave it up; ingest's workers have no names.
    pub worker: Option<&'a str>,
}

/// What is known of a dead letter without its body.
#[derive(Clone, Debug, PartialEq)]
pub struct Letter {
    pub id: LetterId,
    pub cause: Failure,
    pub attempts: u64,
    pub worker: Option<String>,
    /// The subject that its message was published to.
    pub subject: String,
    /// The W3C trace context of its message.
    pub traceparent: Option<String>,
    /// When the broker stored its message, in milliseconds since 1970.
    pub queued_ms: u64,
    /// When it died.
    pub died_ms: u64,
    /// The size of its message.
    pub bytes: u64,
    /// Whether the message was too large to be kept: only this is known of it.
    pub left_out: bool,
    /// Its place in the stream of dead letters.
    sequence: u64,
    tracestate: Option<String>,
}

/// A dead letter with its body.
#[derive(Clone, Debug)]
pub struct Opened {
    pub letter: Letter,
    /// The message: a request's bytes if ingest gave up, else the stage's envelope.
    pub message: Vec<u8>,
}

/// What became of a letter that is tried again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Retried {
    /// It is a new job of the same tenant.
    Job(JobId),
    /// It belongs to no job that has ended: its message is in its queue again.
    Message,
}

#[derive(Debug, thiserror::Error)]
pub enum RetryError {
    #[error(transparent)]
    Bus(#[from] Error),
    #[error("cannot try the dead letter {id} again")]
    Unreadable { id: LetterId, source: envelope::Error },
    #[error("the message of dead letter {id} was too large to be kept; send the request again, and drop the letter")]
    LeftOut { id: LetterId },
    #[error("the dead letter {id} came from {subject:?}, which is no queue of {stage}; drop it", stage = id.stage())]
    Foreign { id: LetterId, subject: String },
}

impl Bus {
    /// Keeps a message as a dead letter. If its job has one from this stage already, that stays: a repetition makes no
    /// second one.
    pub async fn bury(&self, id: &LetterId, burial: Burial<'_>) -> Result<(), Error> {
        let Burial { delivery, cause, attempts, worker } = burial;
        let mut headers = HeaderMap::new();
        // Not all: a request may have any headers, also such that mean something to the broker.
        trace::copy(delivery.headers(), &mut headers);
        let code = serde_json::to_value(cause.code).ok();
        headers.insert(CODE, code.as_ref().and_then(|code| code.as_str()).unwrap_or_default());
        headers.insert(ERROR, cause.message.replace(['\r', '\n'], " "));
        headers.insert(ATTEMPTS, attempts.to_string());
        headers.insert(SUBJECT, delivery.subject());
        headers.insert(QUEUED, delivery.published_ms.to_string());
        if let Some(worker) = worker {
            headers.insert(WORKER, worker);
        }
        let mut payload = delivery.payload().to_vec();
        if payload.len() > self.payload_room(&headers) {
            // The message had just room, and the letter tells more. Why it died is worth more than what it was.
            headers.insert(LEFT_OUT, payload.len().to_string());
            payload.clear();
        }
        let subject = self.layout.dead_letter(&id.to_string());
        match id {
            LetterId::Job { .. } => self.publish_first(subject, headers, payload).await.map(drop),
            // Sequences begin anew when a stream is made anew: what lies there may be another message's letter.
            LetterId::Message { .. } => {
                self.publish_durably(subject, Some(&format!("dead/{id}")), headers, payload).await.map(drop)
            }
        }
    }

    /// Keeps a message that could not be taken from its queue, and whose own headers nobody can read.
    pub(crate) async fn bury_untaken(
        &self,
        id: &LetterId,
        subject: &str,
        queued_ms: u64,
        cause: &str,
        payload: Vec<u8>,
    ) -> Result<(), Error> {
        let mut headers = HeaderMap::new();
        let code = serde_json::to_value(Code::Internal).ok();
        headers.insert(CODE, code.as_ref().and_then(|code| code.as_str()).unwrap_or_default());
        headers.insert(ERROR, cause.replace(['\r', '\n'], " "));
        headers.insert(ATTEMPTS, "0");
        headers.insert(SUBJECT, subject.replace(['\r', '\n'], " "));
        headers.insert(QUEUED, queued_ms.to_string());
        let letter = self.layout.dead_letter(&id.to_string());
        self.publish_durably(letter, Some(&format!("dead/{id}")), headers, payload).await.map(drop)
    }

    /// All dead letters, oldest first.
    pub async fn dead_letters(&self) -> Result<Vec<Letter>, Error> {
        let messages =
            scan::messages(self, Scan { headers_only: true, ..Scan::all(self.layout.dead_stream()) }).await?;
        let read = |message: StreamMessage| async move { Ok(self.letter(&message)) };
        messages.try_filter_map(read).try_collect().await
    }

    /// One dead letter.
    pub async fn dead_letter(&self, id: &LetterId) -> Result<Option<Opened>, Error> {
        let unreadable = |message| Error::Read { what: format!("dead letter {id}"), message };
        let stream = self.dead_stream().await?;
        match stream.direct_get_last_for_subject(self.layout.dead_letter(&id.to_string())).await {
            Ok(message) => Ok(self.letter(&message).map(|letter| Opened { letter, message: message.payload.to_vec() })),
            Err(error) if error.kind() == DirectGetErrorKind::NotFound => Ok(None),
            Err(error) => Err(unreadable(causes(&error))),
        }
    }

    /// Removes a dead letter; returns whether it was still there.
    pub async fn drop_letter(&self, letter: &Letter) -> Result<bool, Error> {
        let failed = |message| Error::Publish { subject: format!("the removal of dead letter {}", letter.id), message };
        let removed = self.dead_stream().await?.delete_message(letter.sequence).await;
        match removed {
            Ok(removed) => Ok(removed),
            Err(_) if self.dead_letter(&letter.id).await?.is_none() => Ok(false),
            Err(error) => Err(failed(causes(&error))),
        }
    }

    /// Tries a letter again and removes it. A job has ended and stays so, hence it is tried under an id of its own, with the
    /// same seed; `job-retry-1` for the first time. Cut short at the wrong moment, it leaves both the letter and the new
    /// job.
    pub async fn retry(&self, opened: Opened) -> Result<Retried, RetryError> {
        let Opened { letter, message } = opened;
        let place = self.layout.stage_subjects(letter.id.stage());
        let place = place.split('*').next().unwrap_or_default();
        if !letter.subject.starts_with(place) {
            return Err(RetryError::Foreign { id: letter.id, subject: letter.subject });
        }
        if letter.left_out {
            return Err(RetryError::LeftOut { id: letter.id });
        }
        let retried = match &letter.id {
            LetterId::Message { .. } => {
                let id = format!("retry/{}", letter.sequence);
                self.publish_durably(letter.subject.clone(), Some(&id), letter.trace(), message).await?;
                Retried::Message
            }
            LetterId::Job { stage: Stage::Ingest, tenant, job } => {
                Retried::Job(self.retry_request(&letter, tenant, job, &message).await?)
            }
            LetterId::Job { stage: Stage::Prefill, tenant, job } => {
                Retried::Job(self.retry_task::<PrefillTask>(&letter, tenant, job, &message).await?)
            }
            LetterId::Job { stage: Stage::Decode, tenant, job } => {
                Retried::Job(self.retry_task::<DecodeTask>(&letter, tenant, job, &message).await?)
            }
        };
        self.drop_letter(&letter).await?;
        Ok(retried)
    }

    async fn retry_request(
        &self,
        letter: &Letter,
        tenant: &Name,
        job: &JobId,
        message: &[u8],
    ) -> Result<JobId, RetryError> {
        let jobs = self.jobs().await?;
        for id in retry_ids(job) {
            if jobs.get(tenant, &id).await?.is_some() {
                continue;
            }
            let mut headers = letter.trace();
            headers.insert(ID_HEADER, id.as_str());
            self.publish_durably(letter.subject.clone(), None, headers, renamed(message, &id)).await?;
            return Ok(id);
        }
        Err(Error::Contended { job: job.to_string() }.into())
    }

    async fn retry_task<T: Renamed>(
        &self,
        letter: &Letter,
        tenant: &Name,
        job: &JobId,
        message: &[u8],
    ) -> Result<JobId, RetryError> {
        let unreadable = |source| RetryError::Unreadable { id: letter.id.clone(), source };
        let (jobs, now) = (self.jobs().await?, self.clock().now_ms().await?);
        let task = envelope::decode::<T>(message).map_err(unreadable)?;
        for id in retry_ids(job) {
            // A request under its id is a copy: the job begins with the letter's message.
            let accepted = Record::accepted(task.job().request_digest.clone(), now);
            let record = Record { request: Some(Source::KEPT), ..accepted };
            if !jobs.store(tenant, &id, &record, None).await? {
                continue;
            }
            let task = task.renamed(&id, now);
            let payload = envelope::encode(&task).map_err(unreadable)?;
            if let Err(error) = self.begin(letter.subject.clone(), task.job(), letter.trace(), payload).await {
                // The id is free for the next try. Should the message have been stored after all, whoever claims it makes
                // the record anew.
                let _ = jobs.bucket.delete(self.layout.job_key(tenant, &id)).await;
                return Err(error.into());
            }
            return Ok(id);
        }
        Err(Error::Contended { job: job.to_string() }.into())
    }

    async fn dead_stream(&self) -> Result<JetStream<()>, Error> {
        let name = self.layout.dead_stream();
        self.jetstream
            .get_stream_no_info(&name)
            .await
            .map_err(|error| Error::Read { what: format!("stream {name}"), message: causes(&error) })
    }

    /// Reads a letter, if it is one.
    fn letter(&self, message: &StreamMessage) -> Option<Letter> {
        let id = message.subject.as_str().strip_prefix(&self.layout.dead_letter(""))?.parse().ok()?;
        let text = |name| message.headers.get(name).map(|value| value.as_str().to_owned());
        let number = |name| text(name).and_then(|text| text.parse::<u64>().ok());
        let code = text(CODE).and_then(|code| serde_json::from_value(code.into()).ok());
        Some(Letter {
            id,
            cause: Failure::new(code.unwrap_or(Code::Internal), text(ERROR).unwrap_or_default()),
            attempts: number(ATTEMPTS).unwrap_or_default(),
            worker: text(WORKER),
            subject: text(SUBJECT).unwrap_or_default(),
            traceparent: text("traceparent"),
            tracestate: text("tracestate"),
            queued_ms: number(QUEUED).unwrap_or_default(),
            died_ms: (message.time.unix_timestamp_nanos() / 1_000_000) as u64,
            bytes: number(LEFT_OUT).or(number(SIZE)).unwrap_or(message.payload.len() as u64),
            left_out: number(LEFT_OUT).is_some(),
            sequence: message.sequence,
        })
    }
}

impl Letter {
    /// The W3C trace id of its job, in hex.
    pub fn trace_id(&self) -> Option<&str> {
        self.traceparent.as_deref()?.split('-').nth(1)
    }

    /// Headers that go on with its trace.
    fn trace(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in [("traceparent", &self.traceparent), ("tracestate", &self.tracestate)] {
            if let Some(value) = value {
                headers.insert(name, value.as_str());
            }
        }
        headers
    }
}

/// An envelope whose job can get another id.
trait Renamed: Task + Clone {
    /// The same work as a job of its own, accepted at `now_ms` (since 1970).
    fn renamed(&self, id: &JobId, now_ms: u64) -> Self;
}

impl Renamed for PrefillTask {
    fn renamed(&self, id: &JobId, now_ms: u64) -> Self {
        let mut task = self.clone();
        (task.job.id, task.timings.accepted_at_ms) = (id.clone(), now_ms);
        task
    }
}

impl Renamed for DecodeTask {
    fn renamed(&self, id: &JobId, now_ms: u64) -> Self {
        let mut task = self.clone();
        (task.job.id, task.timings.accepted_at_ms) = (id.clone(), now_ms);
        task
    }
}

/// A request's bytes under another id; as they are if they are no JSON object, and then ingest will say so.
fn renamed(body: &[u8], id: &JobId) -> Vec<u8> {
    match serde_json::from_slice::<serde_json::Map<_, _>>(body) {
        Ok(mut request) => {
            request.insert("id".into(), id.as_str().into());
            serde_json::Value::Object(request).to_string().into_bytes()
        }
        Err(_) => body.to_vec(),
    }
}

/// The ids that a job may be tried again under, first choice first. One that was tried again itself is counted on.
fn retry_ids(job: &JobId) -> impl Iterator<Item = JobId> {
    let (base, last) = job
        .as_str()
        .rsplit_once(RETRY)
        .and_then(|(base, number)| Some((base, number.parse::<u32>().ok()?)))
        .filter(|(base, _)| !base.is_empty())
        .unwrap_or((job.as_str(), 0));
    let base = base.to_owned();
    (1..=u32::MAX - last).filter_map(move |n| {
        let suffix = format!("{RETRY}{}", last + n);
        // Ids are ASCII; what tells long ones apart is the number.
        let base = base.get(..base.len().min(MAX_ID_BYTES - suffix.len()))?;
        JobId::new(&format!("{base}{suffix}")).ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_read_back_and_others_are_refused() {
        for text in ["ingest.acme.a", "decode.acme.Run-7_b", "prefill.1234"] {
            assert_eq!(text.parse::<LetterId>().unwrap().to_string(), text);
        }
        for bad in ["", "prefill", "prefill.x", "nowhere.acme.a", "prefill.acme.a.b", "prefill.*.a", "prefill.acme.>"] {
            assert!(bad.parse::<LetterId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn retries_are_numbered_and_stay_ids() {
        let ids = |job: &str| {
            let job = JobId::new(job).unwrap();
            let ids = retry_ids(&job).take(2);
            ids.map(String::from).collect::<Vec<_>>()
        };
        assert_eq!(ids("a"), ["a-retry-1", "a-retry-2"]);
        assert_eq!(ids("a-retry-7"), ["a-retry-8", "a-retry-9"]);
        assert_eq!(ids("a-retry-x"), ["a-retry-x-retry-1", "a-retry-x-retry-2"]);
        assert_eq!(ids(&"x".repeat(64))[0], format!("{}-retry-1", "x".repeat(56)));
    }

    #[test]
    fn a_request_keeps_everything_but_its_id() {
        let id = JobId::new("b").unwrap();
        let body =
            br#"{"prompt":"x","id":"a","response_format":{"type":"json_schema","z":1,"a":18446744073709551615}}"#;
        let expected =
            r#"{"prompt":"x","id":"b","response_format":{"type":"json_schema","z":1,"a":18446744073709551615}}"#;
        assert_eq!(String::from_utf8(renamed(body, &id)).unwrap(), expected);
        assert_eq!(renamed(b"[1]", &id), b"[1]");
    }
}
