//! The subscription through which a worker gets the messages of one consumer.

use std::{sync::atomic::Ordering, time::Duration};

use async_nats::{Subscriber, jetstream::consumer::PullConsumer};
use serde::Serialize;

use crate::Bus;

/// Where the messages of a consumer arrive: one subscription for all pulls.
pub(super) struct Intake {
    client: async_nats::Client,
    /// Where the broker takes pulls.
    service: String,
    inbox: String,
    pub(super) messages: Subscriber,
    /// How often the client had connected when the intake was opened.
    connects: u64,
}

/// What a pull asks for.
#[derive(Serialize)]
struct Pull {
    batch: usize,
    /// In nanoseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    expires: Option<u64>,
    no_wait: bool,
}

impl Intake {
    pub(super) async fn open(bus: &Bus, consumer: &PullConsumer) -> Result<Self, async_nats::Error> {
        let client = bus.client.clone();
        let connects = connects(&client);
        let info = consumer.cached_info();
        let service = format!("$JS.API.CONSUMER.MSG.NEXT.{}.{}", info.stream_name, info.name);
        let inbox = client.new_inbox();
        let messages = client.subscribe(inbox.clone()).await?;
        Ok(Self { client, service, inbox, messages, connects })
    }

    /// Asks for messages, to come within some time or, without one, for those that are there.
    pub(super) async fn ask(&self, batch: usize, wait: Option<Duration>) -> Result<(), async_nats::Error> {
        let expires = wait.map(|wait| wait.as_nanos() as u64);
        let pull = serde_json::to_vec(&Pull { batch, expires, no_wait: wait.is_none() })?;
        self.client.publish_with_reply(self.service.clone(), self.inbox.clone(), pull.into()).await?;
        Ok(())
    }

    /// Whether the connection was made anew since. What the broker still sends in answer to a pull from before must not be
    /// taken for the answer to another, so the inbox is new then, too.
    pub(super) fn is_stale(&self) -> bool {
        connects(&self.client) != self.connects
    }
}

/// How often the connection was made.
fn connects(client: &async_nats::Client) -> u64 {
    client.statistics().connects.load(Ordering::Relaxed)
}
