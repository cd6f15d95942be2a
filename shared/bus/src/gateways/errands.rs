//! What gateways have to do, whichever of them: durable messages in a work queue of their own, a permit for each, heartbeats
//! as long as one is at work, and another delivery when nothing is heard of it.

use std::{collections::HashMap, sync::Arc, time::Duration};

use async_nats::jetstream::{
    consumer::{PullConsumer, pull},
    stream::{Config, DiscardPolicy, RetentionPolicy},
};
use baton_contract::{Name, causes, message_id, subject::Layout};
use bytes::Bytes;
use futures::TryStreamExt;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{
    Bus, Error, HeaderMap,
    provision::wanted::Wanted,
    repair::screen::Screen,
    stage::{
        delivery::Delivery,
        intake::{Came, Intake},
        pull::{Receiver, with_heartbeat},
    },
};

/// How long the broker holds a question for a message.
const ASKED: Duration = Duration::from_secs(10);
/// The pause after a question that failed.
const PAUSE: Duration = Duration::from_secs(1);
/// How long a shutdown waits for what was given back.
const DRAIN: Duration = Duration::from_secs(5);

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A batch of requests is to be driven.
    Batch,
    /// A webhook is to be called.
    Webhook,
}

impl Kind {
    pub(crate) const ALL: [Self; 2] = [Self::Batch, Self::Webhook];

    fn as_str(self) -> &'static str {
        match self {
            Self::Batch => "batch",
            Self::Webhook => "webhook",
        }
    }

    /// How its stream is kept.
    pub(crate) fn config(self, layout: &Layout, replicas: usize) -> Config {
        Config {
            name: self.stream(layout),
            subjects: vec![layout.errands(self.as_str())],
            retention: RetentionPolicy::WorkQueue,
            discard: DiscardPolicy::New,
            num_replicas: replicas,
            ..Default::default()
        }
    }

    fn stream(self, layout: &Layout) -> String {
        match self {
            Self::Batch => layout.batch_task_stream(),
            Self::Webhook => layout.webhook_task_stream(),
        }
    }
}

/// The errands of one kind. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Errands {
    bus: Bus,
    kind: Kind,
    consumer: PullConsumer,
    replicas: usize,
    ack_wait: Duration,
}

impl Bus {
    /// The errands of a kind; creates what it needs. One that is not heard of for `ack_wait` goes to another gateway.
    pub async fn errands(&self, kind: Kind, replicas: usize, ack_wait: Duration) -> Result<Errands, Error> {
        let consumer = self.errand_consumer(kind, replicas, ack_wait).await?;
        Ok(Errands { bus: self.clone(), kind, consumer, replicas, ack_wait })
    }

    async fn errand_consumer(&self, kind: Kind, replicas: usize, ack_wait: Duration) -> Result<PullConsumer, Error> {
        let stream = kind.config(&self.layout, replicas);
        let name = stream.name.clone();
        self.create_missing(&Wanted::stream(stream)).await?;
        let consumer = pull::Config {
            durable_name: Some(kind.as_str().into()),
            ack_wait,
            // They count their own tries.
            max_deliver: -1,
            max_ack_pending: 100_000,
            ..Default::default()
        };
        self.shared_consumer(&name, consumer).await
    }
}

impl Errands {
    /// Leaves an errand for a tenant; returns once it is stored. Repeating it under the same `id` of that tenant within two
    /// minutes changes nothing.
    pub async fn leave(&self, tenant: &Name, id: &str, payload: Vec<u8>) -> Result<(), Error> {
        let subject = self.bus.layout.errand(self.kind.as_str(), tenant);
        self.bus
            .publish_durably(subject, Some(&message_id::task(tenant, id)), HeaderMap::new(), payload)
            .await
            .map(drop)
    }

    /// The tenant of a delivered errand.
    pub fn tenant(delivery: &Delivery) -> Option<Name> {
        tenant_of(delivery.subject())
    }

    /// The tenants and payloads of all errands that are not done, those in somebody's hands included, and how often each is there.
    pub async fn open(&self) -> Result<HashMap<(Name, Bytes), usize>, Error> {
        let layout = &self.bus.layout;
        let mut waiting =
            self.bus.messages_of(self.kind.stream(layout), layout.errands(self.kind.as_str())).await?.tasks;
        let mut open = HashMap::new();
        while let Some(message) = waiting.try_next().await? {
            if let Some(tenant) = tenant_of(&message.subject) {
                *open.entry((tenant, message.payload)).or_default() += 1;
            }
        }
        Ok(open)
    }

    /// How many errands are not done, those in somebody's hands included.
    pub async fn waiting(&self) -> Result<u64, Error> {
        let name = self.kind.stream(&self.bus.layout);
        let failed = |message: String| Error::Read { what: format!("stream {name}"), message };
        let stream = self.bus.jetstream.get_stream(&name).await.map_err(|error| failed(error.to_string()))?;
        Ok(stream.cached_info().state.messages)
    }

    /// Runs errands, up to `slots` at once, until `shutdown`; then gives back what is not done.
    pub async fn run<R: Receiver>(&self, slots: usize, receiver: Arc<R>, shutdown: CancellationToken) {
        let permits = Arc::new(Semaphore::new(slots));
        let (mut intake, mut screen) = (None, Screen::default());
        loop {
            let permit = tokio::select! {
                () = shutdown.cancelled() => break,
                permit = permits.clone().acquire_owned() => permit,
            };
            let Ok(permit) = permit else { break };
            let taken = tokio::select! {
                () = shutdown.cancelled() => break,
                taken = self.take(&mut intake, &mut screen) => taken,
            };
            match taken {
                Ok(Some(delivery)) => {
                    drop(tokio::spawn(self.clone().work(delivery, permit, receiver.clone(), shutdown.clone())))
                }
                Ok(None) => {}
                Err(error) => {
                    tracing::warn!(error = %causes(&error), kind = self.kind.as_str(), "errands could not be asked for; trying again");
                    // Their stream may have been removed, with all that it had.
                    let again = async {
                        if let Err(error) = self.bus.errand_consumer(self.kind, self.replicas, self.ack_wait).await {
                            tracing::debug!(error = %causes(&error), "the stream of errands is not there, and could not be made again");
                        }
                        sleep(PAUSE).await;
                    };
                    tokio::select! {
                        () = shutdown.cancelled() => break,
                        () = again => {}
                    }
                }
            }
        }
        let all = u32::try_from(slots).unwrap_or(u32::MAX);
        let _ = timeout(DRAIN, permits.acquire_many(all)).await;
    }

    /// The next errand, if one comes soon.
    async fn take(&self, slot: &mut Option<Intake>, screen: &mut Screen) -> Result<Option<Delivery>, Error> {
        let failed = |error: async_nats::Error| Error::Read {
            what: format!("errands ({})", self.kind.as_str()),
            message: causes(error.as_ref()),
        };
        let mut intake = match slot.take().filter(|intake| !intake.is_stale()) {
            Some(intake) => intake,
            None => Intake::open(&self.bus, &self.consumer).await.map_err(failed)?,
        };
        let deadline = intake.ask(1, Some(ASKED)).await.map_err(failed)?;
        let delivery = match intake.next(deadline).await.map_err(failed)? {
            Came::Message(message) => {
                let context = self.bus.jetstream.clone();
                Some(Delivery::new(async_nats::jetstream::Message { message, context }, &self.bus.client)?)
            }
            Came::Over => None,
            Came::Lost => {
                // The message that may have ended the connection is not to end the next.
                screen.look(&self.bus, &self.consumer, None).await?;
                return Ok(None);
            }
        };
        *slot = Some(intake);
        Ok(delivery)
    }

    async fn work<R: Receiver>(
        self,
        delivery: Delivery,
        permit: OwnedSemaphorePermit,
        receiver: Arc<R>,
        shutdown: CancellationToken,
    ) {
        let settle = tokio::select! {
            settle = with_heartbeat(&delivery, self.ack_wait / 3, receiver.receive(&delivery)) => settle,
            () = shutdown.cancelled() => receiver.give_back(&delivery).await,
        };
        delivery.settle(settle).await;
        drop(permit);
    }
}

fn tenant_of(subject: &str) -> Option<Name> {
    Name::new(subject.rsplit('.').next()?).ok()
}
