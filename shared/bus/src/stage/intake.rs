//! The subscription through which a worker gets the messages of one consumer.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use async_nats::{Message, StatusCode, Subscriber, jetstream::consumer::PullConsumer};
use baton_contract::subject::broker;
use futures::StreamExt;
use serde::Serialize;
use tokio::time::{Instant, timeout};

use crate::{Bus, connection::Connection};

/// The broker ends a pull when its time is over; this much later the answer was lost.
const ANSWER: Duration = Duration::from_secs(5);
/// How often who waits for messages looks whether the connection is still the one that it asked through.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Where the messages of a consumer arrive: one subscription for all pulls.
pub(crate) struct Intake {
    connection: Arc<Connection>,
    /// Where the broker takes pulls.
    service: String,
    inbox: String,
    pub(crate) messages: Subscriber,
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

/// What comes of a pull.
pub(crate) enum Came {
    Message(Message),
    /// No further message: its time is over, or there is none.
    Over,
    /// Nothing more: the connection was made anew or died, and the broker may have forgotten the pull.
    Lost,
}

impl Intake {
    pub(crate) async fn open(bus: &Bus, consumer: &PullConsumer) -> Result<Self, async_nats::Error> {
        let connection = bus.intake.connection().await?;
        let connects = connects(&connection);
        let info = consumer.cached_info();
        let service = broker::next_message(&info.stream_name, &info.name);
        let inbox = connection.client.new_inbox();
        let messages = connection.client.subscribe(inbox.clone()).await?;
        Ok(Self { connection, service, inbox, messages, connects })
    }

    /// Asks for messages, to come within some time or, without one, for those that are there. Returns by when the broker has
    /// ended that.
    pub(crate) async fn ask(&self, batch: usize, wait: Option<Duration>) -> Result<Instant, async_nats::Error> {
        let expires = wait.map(|wait| wait.as_nanos() as u64);
        let pull = serde_json::to_vec(&Pull { batch, expires, no_wait: wait.is_none() })?;
        self.connection.client.publish_with_reply(self.service.clone(), self.inbox.clone(), pull.into()).await?;
        Ok(Instant::now() + wait.unwrap_or_default() + ANSWER)
    }

    /// What comes next of what was asked for. May be given up and called again without losing anything.
    pub(crate) async fn next(&mut self, deadline: Instant) -> Result<Came, async_nats::Error> {
        let message = loop {
            match timeout(LOOK_EVERY, self.messages.next()).await {
                Ok(Some(message)) => break message,
                Ok(None) => return Ok(Came::Lost),
                Err(_) if self.is_stale() => return Ok(Came::Lost),
                Err(_) if Instant::now() > deadline => return Err("the broker did not answer a pull in time".into()),
                Err(_) => {}
            }
        };
        match message.status {
            // What the broker itself says has no place for an acknowledgement; a stored message may have any status.
            Some(status) if message.reply.is_none() => match status {
                StatusCode::TIMEOUT | StatusCode::NOT_FOUND => Ok(Came::Over),
                status => {
                    let described = message.description.unwrap_or_default();
                    Err(format!("the broker ended a pull with status {status} {described}").into())
                }
            },
            _ => Ok(Came::Message(message)),
        }
    }

    /// Ends the intake; what the broker had sent before it knew still comes.
    pub(crate) async fn close(mut self) -> Vec<Message> {
        let mut rest = Vec::new();
        if self.messages.drain().await.is_ok() {
            while let Ok(Some(message)) = timeout(ANSWER, self.messages.next()).await {
                rest.extend(Some(message).filter(|message| message.reply.is_some()));
            }
        }
        rest
    }

    /// Whether the connection was made anew since, or died. What the broker still sends in answer to a pull from before must
    /// not be taken for the answer to another, so the inbox is new then, too.
    pub(crate) fn is_stale(&self) -> bool {
        connects(&self.connection) != self.connects || self.connection.is_dead()
    }
}

/// How often the connection was made.
fn connects(connection: &Connection) -> u64 {
    connection.client.statistics().connects.load(Ordering::Relaxed)
}
