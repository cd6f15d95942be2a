//! Connections to the broker: how one is made, how a dead one is told from one that is interrupted, and which may die.
//!
//! Whoever may publish can send a message that async-nats cannot take: a subject or a header that is not UTF-8 costs the
//! connection, which is then made again; a carriage return within a header costs the client, whose task panics. So a process
//! has one connection that carries only what Baton and the broker say, and must live, and further ones ([`Ears`]) for what
//! others may publish. Those are made again when they die, and what they were to hear is subscribed to again.

pub mod clock;
pub mod conflict;
pub(crate) mod endpoint;
pub(crate) mod entropy;
mod login;
pub mod pressure;
pub mod trace;

use std::{
    fmt,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_nats::{AuthError, ConnectOptions, Message, Subscriber, jetstream};
use baton_contract::{backoff::Backoff, causes, without_secrets};
use futures::{FutureExt, StreamExt};
use tokio::time::sleep;
use tokio_util::task::AbortOnDropHandle;

use self::{entropy::entropy, login::Login};
use crate::{Error, Options};

/// How often the broker is asked whether it is there. A connection that stays open though nobody is at its other end (a
/// machine that lost its power, a firewall that forgot it) is given up after three questions.
const ASK_EVERY: Duration = Duration::from_secs(3);
/// The pauses of a connection that is interrupted.
const RECONNECTS: Backoff = Backoff::doubling(Duration::from_millis(50), Duration::from_millis(3_200));
/// The pause after a connection that could not be made again.
const PAUSE: Duration = Duration::from_millis(500);

/// Where the broker is, and as whom to come.
pub(crate) struct Door {
    servers: Vec<String>,
    /// The servers as they may be shown.
    shown: String,
    login: Login,
    credentials: Option<PathBuf>,
    name: String,
}

impl fmt::Debug for Door {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Door").field("servers", &self.servers).field("name", &self.name).finish_non_exhaustive()
    }
}

impl Door {
    pub(crate) fn new(options: Options) -> Result<Self, Error> {
        let (servers, login) = login::of_urls(&options.url)?;
        let shown = without_secrets(&options.url);
        Ok(Self { servers, shown, login, credentials: options.credentials, name: options.name })
    }

    /// Connects once; later interruptions are bridged by reconnecting without end. The credentials file is read for every
    /// connection, so that the one that was put there last counts.
    pub(crate) async fn connect(self: &Arc<Self>) -> Result<Connection, Error> {
        // Says what is wrong with the file.
        self.login.answer(self.credentials.as_deref(), b"")?;
        let door = self.clone();
        let answer = move |nonce: Vec<u8>| {
            let answer = door.login.answer(door.credentials.as_deref(), &nonce).map_err(AuthError::new);
            async move { answer }
        };
        let connect = ConnectOptions::with_auth_callback(answer)
            .name(&self.name)
            .ping_interval(ASK_EVERY)
            .event_callback(|event| async move {
                tracing::debug!(%event, "the broker connection changed");
            })
            .reconnect_delay_callback(|attempt| {
                RECONNECTS.pause(u32::try_from(attempt).unwrap_or(u32::MAX), entropy())
            });
        let failed = |source| Error::Connect { url: self.shown.clone(), source };
        let client = connect.connect(&self.servers).await.map_err(failed)?;
        let pulse = client.subscribe(client.new_inbox()).await;
        let pulse = pulse.map_err(|error| Error::Read { what: "the connection".into(), message: causes(&error) })?;
        Ok(Connection { jetstream: jetstream::new(client.clone()), client, pulse: Mutex::new(pulse) })
    }
}

/// A connection that is interrupted now and then, and may die.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) client: async_nats::Client,
    pub(crate) jetstream: jetstream::Context,
    /// Ends with the client's task; nothing is published to it.
    pulse: Mutex<Subscriber>,
}

impl Connection {
    /// Whether its task has ended, which nothing mends: the client answers that its channel is closed for ever.
    pub(crate) fn is_dead(&self) -> bool {
        let mut pulse = self.pulse.lock().unwrap_or_else(PoisonError::into_inner);
        matches!(pulse.next().now_or_never(), Some(None))
    }
}

/// A connection for what others may publish: made when it is first needed, and again after its death. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Ears(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    door: Arc<Door>,
    current: tokio::sync::Mutex<Option<Arc<Connection>>>,
}

impl Ears {
    pub(crate) fn new(door: Arc<Door>) -> Self {
        Self(Arc::new(Shared { door, current: tokio::sync::Mutex::default() }))
    }

    /// The connection that lives.
    pub(crate) async fn connection(&self) -> Result<Arc<Connection>, Error> {
        let mut current = self.0.current.lock().await;
        if let Some(connection) = current.as_ref().filter(|connection| !connection.is_dead()) {
            return Ok(connection.clone());
        }
        let connection = Arc::new(self.0.door.connect().await?);
        if current.replace(connection.clone()).is_some() {
            tracing::warn!("a message that the client cannot take ended a connection, which was made again");
        }
        Ok(connection)
    }

    /// Begins to listen to a subject.
    pub(crate) async fn listen(&self, subject: String) -> Result<Heard, Error> {
        let connection = self.connection().await?;
        self.listen_on(&connection, subject).await
    }

    /// The same on a connection of these ears: the broker reads it in order, so what is published on it from then on, and
    /// whatever comes of that, is heard.
    pub(crate) async fn listen_on(&self, connection: &Connection, subject: String) -> Result<Heard, Error> {
        let subscriber = subscribe(connection, &subject).await?;
        Ok(Heard { ears: self.clone(), subject, subscriber, again: None })
    }

    /// Subscribes once that is possible.
    async fn subscribe_again(self, subject: String) -> Subscriber {
        loop {
            let subscribed = async { subscribe(&*self.connection().await?, &subject).await };
            match subscribed.await {
                Ok(subscriber) => return subscriber,
                Err(error) => {
                    tracing::debug!(error = %causes(&error), subject, "a subject can't be listened to; trying again")
                }
            }
            sleep(PAUSE).await;
        }
    }
}

async fn subscribe(connection: &Connection, subject: &str) -> Result<Subscriber, Error> {
    let failed = |error: async_nats::SubscribeError| Error::Read { what: subject.into(), message: causes(&error) };
    connection.client.subscribe(subject.to_owned()).await.map_err(failed)
}

/// What is published to a subject, across the deaths of connections; what was published in between is missed.
#[derive(Debug)]
pub(crate) struct Heard {
    ears: Ears,
    subject: String,
    subscriber: Subscriber,
    again: Option<AbortOnDropHandle<Subscriber>>,
}

impl Heard {
    /// The next message. May be given up and called again without losing anything.
    pub(crate) async fn next(&mut self) -> Message {
        loop {
            if self.again.is_none() {
                if let Some(message) = self.subscriber.next().await {
                    return message;
                }
                let again = self.ears.clone().subscribe_again(self.subject.clone());
                self.again = Some(AbortOnDropHandle::new(tokio::spawn(again)));
            }
            if let Some(again) = &mut self.again
                && let Ok(subscriber) = again.await
            {
                self.subscriber = subscriber;
            }
            self.again = None;
        }
    }
}
