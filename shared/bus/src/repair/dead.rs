//! Dead letters: what no worker could finish, kept until somebody tries it again or drops it.
//!
//! A job that ends by Baton's fault (its tries are used up, or something broke inside) leaves the message that it died of; one
//! that ends by its request's fault does not. So does a message that no worker of this release can read. The letter's
//! body is that very message, its headers tell the rest, and its place tells its [`LetterId`].
//!
//! No mover is needed: consumers have no `max_deliver` (see `Bus::consumer`), tries are counted in the job's record, and so
//! there is no message that the broker has given up and no stage has.

use async_nats::jetstream::{
    message::StreamMessage,
    stream::{DirectGetErrorKind, Stream as JetStream},
};
use baton_contract::{
    causes, header, message_id,
    outcome::{Code, Failure},
};
use futures::TryStreamExt;

use crate::{
    Bus, Error, HeaderMap,
    connection::trace,
    inspect::scan::{self, Scan},
    repair::letter_id::LetterId,
    stage::delivery::Delivery,
};

/// Whether a job that failed so leaves a dead letter: the fault is Baton's, not the request's.
pub fn is_ours(cause: &Failure) -> bool {
    matches!(cause.code, Code::Internal | Code::AttemptsExhausted | Code::NonFinite)
}

/// The dead letters of a pipeline. Cheap to clone.
#[derive(Clone, Debug)]
pub struct DeadLetters {
    pub(super) bus: Bus,
}

/// What was the end of a message.
pub struct Burial<'a> {
    /// The message.
    pub delivery: &'a Delivery,
    /// Why it was given up.
    pub cause: &'a Failure,
    /// How often the message was worked on.
    pub attempts: u64,
    /// Who gave it up; ingest's workers have no names.
    pub worker: Option<&'a str>,
}

/// What is known of a dead letter without its body.
#[derive(Clone, Debug, PartialEq)]
pub struct Letter {
    /// Its name.
    pub id: LetterId,
    /// Why its message was given up.
    pub cause: Failure,
    /// How often its message was worked on.
    pub attempts: u64,
    /// The worker that gave it up.
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
    pub(super) sequence: u64,
    tracestate: Option<String>,
}

/// A dead letter with its body.
#[derive(Clone, Debug)]
pub struct Opened {
    /// What its headers say.
    pub letter: Letter,
    /// The message: a request's bytes if ingest gave up, else the stage's envelope.
    pub message: Vec<u8>,
}

impl Bus {
    /// The pipeline's dead letters.
    pub fn letters(&self) -> DeadLetters {
        DeadLetters { bus: self.clone() }
    }
}

impl DeadLetters {
    /// Keeps a message as a dead letter. If its job has one from this stage already, that stays: a repetition makes no
    /// second one.
    pub async fn bury(&self, id: &LetterId, burial: Burial<'_>) -> Result<(), Error> {
        let Burial { delivery, cause, attempts, worker } = burial;
        let mut headers = HeaderMap::new();
        // Not all: a request may have any headers, also such that mean something to the broker.
        trace::copy(delivery.headers(), &mut headers);
        let code = serde_json::to_value(cause.code).ok();
        headers.insert(header::CODE, code.as_ref().and_then(|code| code.as_str()).unwrap_or_default());
        headers.insert(header::ERROR, cause.message.replace(['\r', '\n'], " "));
        headers.insert(header::ATTEMPTS, attempts.to_string());
        headers.insert(header::SUBJECT, delivery.subject());
        headers.insert(header::QUEUED, delivery.published_ms.to_string());
        if let Some(worker) = worker {
            headers.insert(header::WORKER, worker);
        }
        let mut payload = delivery.payload().to_vec();
        if payload.len() > self.bus.payload_room(&headers) {
            // The message had just room, and the letter tells more. Why it died is worth more than what it was.
            headers.insert(header::LEFT_OUT, payload.len().to_string());
            payload.clear();
        }
        let subject = self.bus.layout.dead_letter(&id.to_string());
        match id {
            LetterId::Job { .. } => self.bus.publish_first(subject, headers, payload).await.map(drop),
            // Sequences begin anew when a stream is made anew: what lies there may be another message's letter.
            LetterId::Message { .. } => self
                .bus
                .publish_durably(subject, Some(&message_id::dead_letter(&id.to_string())), headers, payload)
                .await
                .map(drop),
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
        headers.insert(header::CODE, code.as_ref().and_then(|code| code.as_str()).unwrap_or_default());
        headers.insert(header::ERROR, cause.replace(['\r', '\n'], " "));
        headers.insert(header::ATTEMPTS, "0");
        headers.insert(header::SUBJECT, subject.replace(['\r', '\n'], " "));
        headers.insert(header::QUEUED, queued_ms.to_string());
        let letter = self.bus.layout.dead_letter(&id.to_string());
        self.bus
            .publish_durably(letter, Some(&message_id::dead_letter(&id.to_string())), headers, payload)
            .await
            .map(drop)
    }

    /// All dead letters, oldest first.
    pub async fn all(&self) -> Result<Vec<Letter>, Error> {
        let messages =
            scan::messages(&self.bus, Scan { headers_only: true, ..Scan::all(self.bus.layout.dead_stream()) }).await?;
        let read = |message: StreamMessage| async move { Ok(self.letter(&message)) };
        messages.try_filter_map(read).try_collect().await
    }

    /// One dead letter.
    pub async fn open(&self, id: &LetterId) -> Result<Option<Opened>, Error> {
        let unreadable = |message| Error::Read { what: format!("dead letter {id}"), message };
        let stream = self.stream().await?;
        match stream.direct_get_last_for_subject(self.bus.layout.dead_letter(&id.to_string())).await {
            Ok(message) => Ok(self.letter(&message).map(|letter| Opened { letter, message: message.payload.to_vec() })),
            Err(error) if error.kind() == DirectGetErrorKind::NotFound => Ok(None),
            Err(error) => Err(unreadable(causes(&error))),
        }
    }

    /// Removes a dead letter; returns whether it was still there.
    pub async fn remove(&self, letter: &Letter) -> Result<bool, Error> {
        let failed = |message| Error::Publish { subject: format!("the removal of dead letter {}", letter.id), message };
        let removed = self.stream().await?.delete_message(letter.sequence).await;
        match removed {
            Ok(removed) => Ok(removed),
            Err(_) if self.open(&letter.id).await?.is_none() => Ok(false),
            Err(error) => Err(failed(causes(&error))),
        }
    }

    async fn stream(&self) -> Result<JetStream<()>, Error> {
        let name = self.bus.layout.dead_stream();
        self.bus
            .jetstream
            .get_stream_no_info(&name)
            .await
            .map_err(|error| Error::Read { what: format!("stream {name}"), message: causes(&error) })
    }

    /// Reads a letter, if it is one.
    fn letter(&self, message: &StreamMessage) -> Option<Letter> {
        let id = message.subject.as_str().strip_prefix(&self.bus.layout.dead_letter(""))?.parse().ok()?;
        let text = |name| message.headers.get(name).map(|value| value.as_str().to_owned());
        let number = |name| text(name).and_then(|text| text.parse::<u64>().ok());
        let code = text(header::CODE).and_then(|code| serde_json::from_value(code.into()).ok());
        Some(Letter {
            id,
            cause: Failure::new(code.unwrap_or(Code::Internal), text(header::ERROR).unwrap_or_default()),
            attempts: number(header::ATTEMPTS).unwrap_or_default(),
            worker: text(header::WORKER),
            subject: text(header::SUBJECT).unwrap_or_default(),
            traceparent: text(header::TRACEPARENT),
            tracestate: text(header::TRACESTATE),
            queued_ms: number(header::QUEUED).unwrap_or_default(),
            died_ms: (message.time.unix_timestamp_nanos() / 1_000_000) as u64,
            bytes: number(header::LEFT_OUT).or(number(header::MESSAGE_SIZE)).unwrap_or(message.payload.len() as u64),
            left_out: number(header::LEFT_OUT).is_some(),
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
    pub(super) fn trace(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in [(header::TRACEPARENT, &self.traceparent), (header::TRACESTATE, &self.tracestate)] {
            if let Some(value) = value {
                headers.insert(name, value.as_str());
            }
        }
        headers
    }
}
