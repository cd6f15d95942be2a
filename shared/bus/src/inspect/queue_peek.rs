//! What waits in a stage's queue, read without taking it.

use std::ops::Range;

use async_nats::jetstream::{
    context::GetStreamErrorKind,
    message::StreamMessage,
    stream::{RawMessageErrorKind, Stream as JetStream},
};
use baton_contract::{
    JobKey, causes,
    envelope::{self, Task},
    record::Source,
    subject::Stage,
};
use futures::{Stream, StreamExt, TryStreamExt, stream};

use crate::{Bus, Error, stage::delivery::job_of};

/// Messages that are asked for at once: each costs a round trip.
const AT_ONCE: u64 = 32;

/// The jobs of a stage's queue.
pub struct Waiting<T> {
    /// Messages in the queue when it was looked at.
    pub count: u64,
    /// Each that is still there when its turn comes, in no particular order.
    pub tasks: T,
}

/// A message of a stage's queue.
pub enum Read<T> {
    /// A job's.
    Task(Box<T>),
    /// Of another release, or garbage: nobody knows what it says.
    Unread(Unread),
}

/// A message that this release can't read. The stage's workers put it aside in time; whoever reads the queue goes on without.
pub struct Unread {
    /// Its place in the queue's stream.
    pub sequence: u64,
    /// When the broker stored it, in milliseconds since 1970.
    pub stored_ms: u64,
    /// The job that it was published for, if that is known.
    pub job: Option<JobKey>,
    /// Why it can't be read.
    pub error: envelope::Error,
}

impl<T: Task> Read<T> {
    fn of(message: StreamMessage) -> Self {
        match envelope::decode(&message.payload) {
            Ok(task) => Self::Task(Box::new(task)),
            Err(error) => Self::Unread(Unread {
                sequence: message.sequence,
                stored_ms: stored_ms(&message),
                job: job_of(&message.subject, Some(&message.headers)),
                error,
            }),
        }
    }
}

impl Bus {
    /// Reads every job in the queue of `stage` at this moment, those that a worker holds included: a message leaves the
    /// queue when its successor is durable. The broker's leader answers, so nothing that was stored before is left out.
    pub async fn waiting<T: Task>(
        &self,
        stage: Stage,
    ) -> Result<Waiting<impl Stream<Item = Result<Read<T>, Error>> + Unpin + use<T>>, Error> {
        let Waiting { count, tasks: messages } = self.messages(stage).await?;
        Ok(Waiting { count, tasks: messages.map_ok(Read::of) })
    }

    /// Whether a message lies in the queue of `stage` still.
    pub(crate) async fn lies_in(&self, stage: Stage, source: Source) -> Result<bool, Error> {
        let name = self.layout.stage_stream(stage);
        let stream = self.jetstream.get_stream_no_info(&name).await;
        let stream = stream.map_err(|error| unreadable(source.sequence, &name, causes(&error)))?;
        match stream.get_raw_message(source.sequence).await {
            Ok(message) => Ok(stored_ms(&message) == source.stored_ms),
            Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => Ok(false),
            // A stranger's, in a stream that was made anew.
            Err(_) if self.untakeable(&name, source.sequence, ">").await? == Some(source.sequence) => Ok(false),
            Err(error) => Err(unreadable(source.sequence, &name, causes(&error))),
        }
    }

    /// The same without reading what the messages say.
    pub(crate) async fn messages(
        &self,
        stage: Stage,
    ) -> Result<Waiting<impl Stream<Item = Result<StreamMessage, Error>> + Unpin + use<>>, Error> {
        self.messages_of(self.layout.stage_stream(stage), self.layout.stage_subjects(stage)).await
    }

    /// The same of a stream `name` that collects `subjects`.
    pub(crate) async fn messages_of(
        &self,
        name: String,
        subjects: String,
    ) -> Result<Waiting<impl Stream<Item = Result<StreamMessage, Error>> + Unpin + use<>>, Error> {
        let stream = self.jetstream.get_stream(&name).await.map_err(|error| match error.kind() {
            GetStreamErrorKind::JetStream(_) => {
                Error::NotProvisioned { root: self.layout.root().clone(), message: causes(&error) }
            }
            _ => Error::Read { what: format!("the state of stream {name}"), message: causes(&error) },
        })?;
        let state = &stream.cached_info().state;
        let spans = spans(state.first_sequence..state.last_sequence + 1);
        let count = state.messages;
        let bus = self.clone();
        let read = move |span| read(bus.clone(), stream.clone(), subjects.clone(), span).boxed();
        Ok(Waiting { count, tasks: stream::iter(spans).map(read).flatten_unordered(None) })
    }
}

/// Cuts sequences into as many runs as are read at once.
fn spans(all: Range<u64>) -> Vec<Range<u64>> {
    let length = all.end.saturating_sub(all.start).div_ceil(AT_ONCE).max(1);
    let starts = all.clone().step_by(usize::try_from(length).unwrap_or(usize::MAX));
    starts.map(|start| start..all.end.min(start + length)).collect()
}

/// The messages of a run of sequences, one after the other.
fn read(
    bus: Bus,
    stream: JetStream,
    subjects: String,
    span: Range<u64>,
) -> impl Stream<Item = Result<StreamMessage, Error>> {
    stream::try_unfold(span, move |mut span| {
        let (bus, stream, subjects) = (bus.clone(), stream.clone(), subjects.clone());
        async move {
            let name = &stream.cached_info().config.name;
            while !span.is_empty() {
                let next = stream.raw_message_builder().sequence(span.start).next_by_subject(subjects.clone());
                match next.send().await {
                    Ok(message) if message.sequence < span.end => {
                        let rest = message.sequence + 1..span.end;
                        return Ok(Some((message, rest)));
                    }
                    // What follows belongs to the next run.
                    Ok(_) => return Ok(None),
                    Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => return Ok(None),
                    // What the client cannot take is no job's, and stays until a worker puts it aside.
                    Err(error) => match bus.untakeable(name, span.start, &subjects).await? {
                        Some(sequence) => span.start = sequence + 1,
                        None => return Err(unreadable(span.start, name, causes(&error))),
                    },
                }
            }
            Ok(None)
        }
    })
    .into_stream()
}

/// When the broker stored a message, in milliseconds since 1970.
pub(crate) fn stored_ms(message: &StreamMessage) -> u64 {
    (message.time.unix_timestamp_nanos() / 1_000_000) as u64
}

fn unreadable(sequence: u64, stream: &str, message: String) -> Error {
    Error::Read { what: format!("message {sequence} of stream {stream}"), message }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_cover_every_sequence_once() {
        for all in [0..1, 1..1, 1..2, 7..39, 7..40, 1..1_000_001] {
            let spans = spans(all.clone());
            assert!(spans.len() <= AT_ONCE as usize && spans.iter().all(|span| !span.is_empty()), "{all:?}");
            let mut at = all.start;
            for span in spans {
                assert_eq!(span.start, at, "{all:?}");
                at = span.end;
            }
            assert_eq!(at, all.end.max(all.start), "{all:?}");
        }
    }
}
