//! Reading all of a stream that is kept by age, without taking anything from it.

use std::time::Duration;

use async_nats::jetstream::{
    consumer::{AckPolicy, DeliverPolicy, pull},
    message::StreamMessage,
};
use baton_contract::causes;
use futures::{Stream, StreamExt, TryStreamExt, stream};
use tokio::time::timeout;

use crate::{Bus, Error};

/// Messages that are asked for at a time.
const AT_ONCE: usize = 500;
/// The broker answers at once; beyond this the answer was lost with a connection.
const ANSWER: Duration = Duration::from_secs(5);
/// When the broker forgets a reader that is not heard of any more.
const FORGOTTEN: Duration = Duration::from_secs(30);

/// What is to be read.
pub(crate) struct Scan {
    pub(crate) stream: String,
    /// Leaves the bodies out.
    pub(crate) headers_only: bool,
    /// The sequence to begin at; what is older is left out.
    pub(crate) from: u64,
}

impl Scan {
    /// All of a stream.
    pub(crate) fn all(stream: String) -> Self {
        Self { stream, headers_only: false, from: 0 }
    }
}

/// The messages of a stream, oldest first, until there are no more. What a lost connection swallows is an error.
pub(crate) async fn messages(
    bus: &Bus,
    scan: Scan,
) -> Result<impl Stream<Item = Result<StreamMessage, Error>> + Unpin + use<>, Error> {
    messages_of(bus, scan, String::new()).await
}

/// The same, of the subjects that match a filter.
pub(crate) async fn messages_of(
    bus: &Bus,
    scan: Scan,
    filter_subject: String,
) -> Result<impl Stream<Item = Result<StreamMessage, Error>> + Unpin + use<>, Error> {
    let what = format!("stream {}", scan.stream);
    let unreadable = move |message: String| Error::Read { what: what.clone(), message };
    let deliver_policy = match scan.from {
        0 => DeliverPolicy::All,
        start_sequence => DeliverPolicy::ByStartSequence { start_sequence },
    };
    let config = pull::Config {
        ack_policy: AckPolicy::None,
        deliver_policy,
        headers_only: scan.headers_only,
        filter_subject,
        inactive_threshold: FORGOTTEN,
        memory_storage: true,
        num_replicas: 1,
        ..Default::default()
    };
    let consumer = bus.jetstream.create_consumer_on_stream(config, &scan.stream).await;
    let consumer = consumer.map_err(|error| unreadable(causes(&error)))?;
    let batches = stream::try_unfold((consumer, 1u64), move |(consumer, mut next)| {
        let unreadable = unreadable.clone();
        async move {
            let failed = |error: String| unreadable(error);
            let batch = consumer.fetch().max_messages(AT_ONCE).messages().await;
            let mut batch = batch.map_err(|error| failed(causes(&error)))?;
            let mut messages = Vec::new();
            loop {
                let message = timeout(ANSWER, batch.next()).await;
                let message = message.map_err(|_| failed("the broker did not answer in time; try again".into()))?;
                let Some(message) = message.transpose().map_err(|error| failed(causes(error.as_ref())))? else { break };
                let info = message.info().map_err(|error| failed(causes(error.as_ref())))?;
                if info.consumer_sequence != next {
                    return Err(failed("the connection was lost in between; try again".into()));
                }
                next += 1;
                let (sequence, time) = (info.stream_sequence, info.published);
                let (message, _) = message.split();
                messages.push(StreamMessage {
                    subject: message.subject,
                    sequence,
                    headers: message.headers.unwrap_or_default(),
                    payload: message.payload,
                    time,
                });
            }
            Ok((!messages.is_empty()).then(|| (stream::iter(messages.into_iter().map(Ok)), (consumer, next))))
        }
    });
    Ok(batches.try_flatten().boxed())
}
