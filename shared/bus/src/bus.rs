//! A connection to one pipeline.

use std::{sync::Arc, time::Duration};

use async_nats::{HeaderMap, jetstream};
use baton_contract::{causes, envelope, header, outcome::Delta, subject::Layout};
use bytes::Bytes;
use tokio::{
    sync::Notify,
    time::{sleep, timeout},
};

use crate::{
    connection::{Connection, Door, Ears, clock::Clock, conflict, pressure},
    duty::counters::Counters,
    error::Error,
    options::Options,
    provision::electing,
};

/// How often what must be the first message of its subject is published again while another is on its way there.
const FIRST_RACES: usize = 16;
/// The broker counts a message's headers, and the line that they begin with.
const HEADER_LINE: usize = 64;
/// What a request's headers, those of its trace, take at most in most cases.
const REQUEST_HEADERS: usize = 1 << 10;
const FLUSH_WITHIN: Duration = Duration::from_secs(5);
/// How often it is looked whether the connection is dead.
const PULSE_EVERY: Duration = Duration::from_millis(500);

/// A connection to one pipeline's subjects and streams. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Bus {
    pub(crate) client: async_nats::Client,
    pub(crate) jetstream: jetstream::Context,
    pub(crate) layout: Layout,
    main: Arc<Connection>,
    /// For what others may publish on core NATS.
    pub(crate) ears: Ears,
    /// For what others have published to the queues.
    pub(crate) intake: Ears,
    /// Notified when something of the broker's seems to be missing.
    pub(crate) doubts: Arc<Notify>,
    pub(crate) counters: Counters,
    clock: Clock,
}

impl Bus {
    /// Connects once; later interruptions are bridged by reconnecting without end.
    pub async fn connect(options: Options) -> Result<Self, Error> {
        let layout = options.layout.clone();
        let door = Arc::new(Door::new(options)?);
        let main = Arc::new(door.connect().await?);
        let (client, jetstream) = (main.client.clone(), main.jetstream.clone());
        let (ears, intake) = (Ears::new(door.clone()), Ears::new(door));
        let clock = Clock::new(jetstream.clone(), &layout);
        let (doubts, counters) = (Arc::default(), Counters::default());
        Ok(Self { client, jetstream, layout, main, ears, intake, doubts, counters, clock })
    }

    /// Waits until the connection is dead, which nothing mends: a process that cannot work is to end.
    pub async fn died(&self) -> Error {
        while !self.main.is_dead() {
            sleep(PULSE_EVERY).await;
        }
        Error::Died
    }

    /// The names of the pipeline's subjects, streams and keys.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// What this worker has done.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// The same connection, for a worker that begins anew: it has done nothing yet.
    pub fn counting_anew(&self) -> Self {
        Self { counters: Counters::default(), ..self.clone() }
    }

    /// The broker's clock.
    pub fn clock(&self) -> Clock {
        self.clock.clone()
    }

    /// Says that something of the broker's seems to be missing.
    pub(crate) fn doubt(&self) {
        self.doubts.notify_one();
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

    /// Bytes that a message with these headers may have besides.
    pub(crate) fn payload_room(&self, headers: &HeaderMap) -> usize {
        let of_header = |name: &str, value: &str| name.len() + value.len() + 4;
        let headers: usize = headers
            .iter()
            .flat_map(|(name, values)| values.iter().map(move |value| (name, value)))
            .map(|(name, value)| of_header(name.as_ref(), value.as_str()))
            .sum();
        self.client.max_payload().min(envelope::MAX_BYTES).saturating_sub(headers + HEADER_LINE)
    }

    /// Publishes durably: returns once the broker has stored the message, with its sequence. A message with an `id` that
    /// was stored before within the stream's dedupe window is not stored again.
    pub(crate) async fn publish_durably(
        &self,
        subject: String,
        id: Option<&str>,
        mut headers: HeaderMap,
        payload: impl Into<Bytes>,
    ) -> Result<u64, Error> {
        if let Some(id) = id {
            headers.insert(header::MESSAGE_ID, id);
        }
        publish_durably(&self.jetstream, subject, headers, payload.into()).await
    }

    /// Publishes durably what must be the first message of its subject; returns whether it was.
    pub(crate) async fn publish_first(
        &self,
        subject: String,
        mut headers: HeaderMap,
        payload: Vec<u8>,
    ) -> Result<bool, Error> {
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

    /// Publishes without durability, for live streaming.
    pub async fn publish_delta(&self, subject: String, delta: &Delta) -> Result<(), Error> {
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
pub(crate) async fn publish_durably(
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
pub(crate) fn expect_first(headers: &mut HeaderMap) {
    headers.insert(header::EXPECTED_LAST, "0");
}
