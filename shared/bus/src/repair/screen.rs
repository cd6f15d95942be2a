//! Messages that the client cannot take: found by what the broker tells of them in JSON, and put aside by their sequences.
//!
//! One that was delivered has ended the connection which it came by ([`crate::connection`]), and would end each that it is
//! delivered to. So whoever lost a connection looks through what was delivered before and what comes next.

use std::str::{FromStr, Utf8Error};

use async_nats::{
    HeaderName, HeaderValue, StatusCode,
    jetstream::{ErrorCode, consumer::PullConsumer},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use baton_contract::{
    causes,
    subject::{Stage, broker},
};
use serde::{Deserialize, Serialize};

use crate::{Bus, Error, repair::letter_id::LetterId};

/// Messages that are judged at a time; what is beyond them waits for the next time.
const AT_ONCE: usize = 4_096;
/// Of these, those that nobody was given yet, and their bytes.
const AHEAD: usize = 256;
const AHEAD_BYTES: usize = 64 << 20;

/// Why the client cannot take a message.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
enum Fault {
    #[error("its subject {0:?} is not UTF-8, or contains spaces")]
    Subject(String),
    #[error("its header is not UTF-8")]
    Text(#[from] Utf8Error),
    #[error("its header begins with {0:?}; expected NATS/1.0 and perhaps a status")]
    Version(String),
    #[error("its header's line {0:?} is no name, colon and value")]
    Line(String),
    #[error("its header {0:?} contains a carriage return")]
    Value(String),
}

/// A message as the broker tells it in JSON.
#[derive(Deserialize)]
struct Raw {
    subject: String,
    #[serde(rename = "seq")]
    sequence: u64,
    /// In base64, as is the body.
    #[serde(default, rename = "hdrs")]
    header: String,
    #[serde(default, rename = "data")]
    body: String,
    time: String,
}

/// Which message the broker is asked for: the first of a subject from a sequence on.
#[derive(Serialize)]
struct Wanted<'a> {
    seq: u64,
    next_by_subj: &'a str,
}

#[derive(Deserialize)]
struct Answer {
    message: Option<Raw>,
    error: Option<async_nats::jetstream::Error>,
}

/// How far the messages of a consumer were judged; a message never changes.
#[derive(Debug, Default)]
pub(crate) struct Screen {
    /// When the broker made the consumer, in nanoseconds since 1970; another's stream may count anew.
    made: i128,
    judged: u64,
}

impl Screen {
    /// Puts aside the consumer's messages that the client cannot take, as dead letters of a stage if they are a stage's.
    /// Returns how many there were.
    pub(crate) async fn look(
        &mut self,
        bus: &Bus,
        consumer: &PullConsumer,
        stage: Option<Stage>,
    ) -> Result<usize, Error> {
        let mut consumer = consumer.clone();
        let what = format!("what waits for consumer {}", consumer.cached_info().name);
        let failed = |message: String| Error::Read { what: what.clone(), message };
        let info = consumer.info().await.map_err(|error| failed(causes(&error)))?;
        let stream = info.stream_name.as_str();
        let filter = Some(info.config.filter_subject.as_str()).filter(|filter| !filter.is_empty()).unwrap_or(">");
        let made = info.created.unix_timestamp_nanos();
        if self.made != made {
            *self = Self { made, judged: 0 };
        }
        let (mut ahead, mut bytes, mut aside) = (0, 0, 0);
        self.judged = self.judged.max(info.ack_floor.stream_sequence);
        for _ in 0..AT_ONCE {
            let Some(message) = bus.raw(stream, self.judged + 1, filter).await.map_err(&failed)? else { break };
            if message.sequence > info.delivered.stream_sequence {
                (ahead, bytes) = (ahead + 1, bytes + message.body.len());
                if ahead > AHEAD || bytes > AHEAD_BYTES {
                    break;
                }
            }
            if let Err(fault) = message.judge().map_err(&failed)? {
                bus.put_aside(stream, stage, &message, &fault).await?;
                aside += 1;
            }
            self.judged = message.sequence;
        }
        Ok(aside)
    }
}

impl Raw {
    /// Why the client cannot take it, if so.
    fn judge(&self) -> Result<Result<(), Fault>, String> {
        let header = STANDARD.decode(&self.header).map_err(|error| causes(&error))?;
        Ok(judge(&self.subject, &header))
    }
}

/// What async-nats does with a message's subject and header: whatever it would fail at, or panic.
fn judge(subject: &str, header: &[u8]) -> Result<(), Fault> {
    // The broker puts the replacement character where a byte is no text.
    if subject.contains(char::REPLACEMENT_CHARACTER) || subject.split_whitespace().count() != 1 {
        return Err(Fault::Subject(subject.to_owned()));
    }
    if header.is_empty() {
        return Ok(());
    }
    let mut lines = std::str::from_utf8(header)?.lines().peekable();
    let first = lines.next().unwrap_or_default();
    let told =
        first.strip_prefix("NATS/1.0").map(str::trim).map(|told| told.split_once(' ').map_or(told, |(told, _)| told));
    if !told.is_some_and(|status| status.is_empty() || StatusCode::from_str(status.trim()).is_ok()) {
        return Err(Fault::Version(first.to_owned()));
    }
    while let Some(line) = lines.next() {
        if line.is_empty() {
            continue;
        }
        let unreadable = || Fault::Line(line.to_owned());
        let (name, value) = line.split_once(':').ok_or_else(unreadable)?;
        HeaderName::from_str(name).map_err(|_| unreadable())?;
        let mut value = value.trim_start().to_owned();
        while let Some(more) = lines.next_if(|line| line.starts_with(char::is_whitespace)) {
            value.push_str(more);
        }
        HeaderValue::from_str(value.trim_end()).map_err(|_| Fault::Value(name.to_owned()))?;
    }
    Ok(())
}

impl Bus {
    /// The sequence of a subject's first message from one on, if the client cannot take it.
    pub(crate) async fn untakeable(&self, stream: &str, from: u64, subject: &str) -> Result<Option<u64>, Error> {
        let failed = |message: String| Error::Read { what: format!("message {from} of stream {stream}"), message };
        let Some(message) = self.raw(stream, from, subject).await.map_err(failed)? else { return Ok(None) };
        Ok(message.judge().map_err(failed)?.is_err().then_some(message.sequence))
    }

    /// The first message of a subject from a sequence on, if there is one.
    async fn raw(&self, stream: &str, seq: u64, next_by_subj: &str) -> Result<Option<Raw>, String> {
        let wanted = Wanted { seq, next_by_subj };
        let answer = self.jetstream.request(broker::message_get(stream), &wanted).await;
        let answer: Answer = answer.map_err(|error| causes(&error))?;
        match answer.error {
            Some(error) if error.error_code() == ErrorCode::NO_MESSAGE_FOUND => Ok(None),
            Some(error) => Err(causes(&error)),
            None => Ok(answer.message),
        }
    }

    /// Keeps a message as a dead letter, then removes it. Another worker that finds it at the same time changes nothing.
    async fn put_aside(&self, stream: &str, stage: Option<Stage>, message: &Raw, fault: &Fault) -> Result<(), Error> {
        let (sequence, subject) = (message.sequence, &message.subject);
        let failed = |message: String| Error::Read { what: format!("message {sequence} of {stream}"), message };
        tracing::error!(error = %fault, stream, sequence, subject, "a message that the client cannot take was put aside");
        if let Some(stage) = stage {
            let body = STANDARD.decode(&message.body).map_err(|error| failed(causes(&error)))?;
            let queued = humantime::parse_rfc3339(&message.time).map_err(|error| failed(causes(&error)))?;
            let queued = queued.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
            let id = LetterId::Message { stage, sequence };
            let cause = format!("the message cannot be taken from its queue: {fault}");
            self.letters().bury_untaken(&id, subject, queued.as_millis() as u64, &cause, body).await?;
        }
        let stream = self.jetstream.get_stream_no_info(stream).await.map_err(|error| failed(causes(&error)))?;
        if let Err(error) = stream.delete_message(sequence).await {
            tracing::debug!(error = %causes(&error), sequence, "the message was not removed; another worker may have done it");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_client_cannot_take_is_told_from_what_it_can() {
        for header in [
            "",
            "NATS/1.0\r\n\r\n",
            "NATS/1.0 404 No Messages\r\nA: b\r\n\r\n",
            "NATS/1.0\r\nA: b\r\n  and more\r\nB:\r\nC: \u{e9}:\r\n\r\n",
        ] {
            assert_eq!(judge("a.b", header.as_bytes()), Ok(()), "{header:?}");
        }
        let fault = |header: &[u8]| judge("a.b", header).unwrap_err();
        assert!(matches!(fault(b"NATS/1.0\r\nX: \xff\r\n\r\n"), Fault::Text(_)));
        assert!(matches!(fault(b"HTTP/1.1\r\n\r\n"), Fault::Version(_)));
        assert!(matches!(fault(b"NATS/1.0 many\r\n\r\n"), Fault::Version(_)));
        assert!(matches!(fault(b"NATS/1.0\r\nX\r\n\r\n"), Fault::Line(_)));
        assert!(matches!(fault(b"NATS/1.0\r\nX y: z\r\n\r\n"), Fault::Line(_)));
        assert!(matches!(fault(b"NATS/1.0\r\nX: a\rb\r\n\r\n"), Fault::Value(_)));
        assert!(matches!(fault(b"NATS/1.0\r\nX: a\r\n\tb\rc\r\n\r\n"), Fault::Value(_)));
        for subject in ["a.\u{fffd}.b", "a.\u{2003}.b", ""] {
            assert!(matches!(judge(subject, b""), Err(Fault::Subject(_))), "{subject:?}");
        }
    }
}
