//! Taking messages from the work queues: a permit first, then as many messages as there are permits, never more.

use std::{sync::Arc, time::Duration};

use async_nats::{
    HeaderMap,
    jetstream::{AckKind, consumer::PullConsumer},
};
use baton_contract::{
    Name,
    subject::{Layout, Stage},
};
use futures::StreamExt;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinSet,
    time::{MissedTickBehavior, interval, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{Bus, Error};

/// How long one pull waits at an empty queue.
const WAIT: Duration = Duration::from_secs(5);
/// The same where slots are few: an empty queue must not keep them from a full one.
const SHORT_WAIT: Duration = Duration::from_millis(200);
/// The broker answers a pull that does not wait at once; beyond this the answer was lost with a connection.
const ANSWER: Duration = Duration::from_secs(5);
/// Messages taken by one pull at most.
const BURST: usize = 64;

/// One work queue: all workers that serve it share its messages.
pub(crate) struct Queue {
    pub(crate) stage: Stage,
    /// Every stage but ingest has one queue a model.
    model: Option<Name>,
    lane: Name,
}

impl Queue {
    /// The name of the durable consumer.
    pub(crate) fn durable(&self) -> String {
        match &self.model {
            Some(model) => format!("{model}-{}", self.lane),
            None => self.lane.to_string(),
        }
    }

    pub(crate) fn subject(&self, layout: &Layout) -> String {
        let any = "*";
        let model = self.model.as_ref().map_or(any, Name::as_str);
        let kind = match self.stage {
            Stage::Ingest => "req",
            Stage::Prefill | Stage::Decode => self.stage.as_str(),
        };
        format!("{}.{kind}.{model}.{}", layout.root(), self.lane)
    }
}

/// How a worker takes messages.
#[derive(Clone, Debug)]
pub struct Options {
    pub stage: Stage,
    /// The models whose queues the worker serves; none for ingest, which has one queue a lane.
    pub models: Vec<Name>,
    pub lanes: Vec<Name>,
    /// Messages held at once.
    pub slots: usize,
    /// After this long without a sign of life the broker gives a message to another worker; heartbeats come thrice as often.
    pub ack_wait: Duration,
    /// Deliveries after which a job fails instead of being tried again.
    pub max_deliver: u64,
    /// How long a shutdown waits for what is being worked on before it hands the rest back.
    pub drain: Duration,
}

impl Options {
    fn queues(&self) -> Vec<Queue> {
        let stage = self.stage;
        let queue = |model: Option<&Name>, lane: &Name| Queue { stage, model: model.cloned(), lane: lane.clone() };
        match stage {
            Stage::Ingest => self.lanes.iter().map(|lane| queue(None, lane)).collect(),
            Stage::Prefill | Stage::Decode => {
                let lanes = |model| self.lanes.iter().map(move |lane| queue(Some(model), lane));
                self.models.iter().flat_map(lanes).collect()
            }
        }
    }
}

/// One delivery of a message.
pub struct Delivery {
    message: async_nats::jetstream::Message,
    /// The message's sequence in its stream.
    pub sequence: u64,
    /// How often the broker has delivered the message, this time included.
    pub attempt: u64,
    /// When the broker stored the message, in milliseconds since 1970.
    pub published_ms: u64,
}

/// What becomes of a delivered message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Settle {
    /// Done, and its successor is durable: remove it, and wait until the broker has.
    Ack,
    /// Deliver it again, after a pause if one is given.
    Nak(Option<Duration>),
    /// Never deliver it again.
    Term,
    /// Another delivery of the same message is at work: touch nothing.
    Leave,
}

impl Delivery {
    fn new(message: async_nats::jetstream::Message) -> Result<Self, Error> {
        let info = message
            .info()
            .map_err(|error| Error::Read { what: "a message's delivery data".into(), message: error.to_string() })?;
        let sequence = info.stream_sequence;
        let attempt = info.delivered.max(1) as u64;
        let published_ms = (info.published.unix_timestamp_nanos() / 1_000_000) as u64;
        Ok(Self { sequence, attempt, published_ms, message })
    }

    pub fn subject(&self) -> &str {
        self.message.subject.as_str()
    }

    pub fn payload(&self) -> &[u8] {
        &self.message.payload
    }

    pub fn headers(&self) -> Option<&HeaderMap> {
        self.message.headers.as_ref()
    }

    async fn heartbeat(&self) {
        if let Err(error) = self.message.ack_with(AckKind::Progress).await {
            tracing::warn!(%error, "a heartbeat was not sent; the broker may deliver the message again");
        }
    }

    async fn settle(&self, settle: Settle) {
        let done = match settle {
            Settle::Ack => self.message.double_ack().await,
            Settle::Nak(pause) => self.message.ack_with(AckKind::Nak(pause)).await,
            Settle::Term => self.message.ack_with(AckKind::Term).await,
            Settle::Leave => Ok(()),
        };
        if let Err(error) = done {
            // The broker delivers the message again, and the claim shows then that its work is done.
            tracing::warn!(%error, subject = self.subject(), "a message was not settled");
        }
    }
}

/// What a stage does with a delivery.
pub trait Receiver: Send + Sync + 'static {
    fn receive(&self, delivery: &Delivery) -> impl Future<Output = Settle> + Send;

    /// Called when [`Receiver::receive`] was cut short by a shutdown, before the message goes back.
    fn give_back(&self, _delivery: &Delivery) -> impl Future<Output = ()> + Send {
        async {}
    }
}

/// Takes and settles messages until `shutdown`, then drains.
pub async fn run<R: Receiver>(
    bus: &Bus,
    options: &Options,
    receiver: Arc<R>,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let queues = options.queues();
    let slots = Arc::new(Semaphore::new(options.slots));
    // Fires when the drain's time is over: whoever still works then hands its message back.
    let abandon = CancellationToken::new();
    let mut pullers = JoinSet::new();
    for queue in &queues {
        let consumer = bus.consumer(queue, options.ack_wait).await?;
        let puller = Puller {
            consumer,
            slots: slots.clone(),
            wait: if options.slots < 2 * queues.len() { SHORT_WAIT } else { WAIT },
            heartbeat: options.ack_wait / 3,
            receiver: receiver.clone(),
            abandon: abandon.clone(),
        };
        pullers.spawn(puller.run(shutdown.clone()));
    }
    while pullers.join_next().await.is_some() {}
    // Every slot free again means that every message is settled.
    let all = options.slots as u32;
    if timeout(options.drain, slots.acquire_many(all)).await.is_err() {
        abandon.cancel();
        let _ = timeout(Duration::from_secs(5), slots.acquire_many(all)).await;
    }
    bus.flush().await
}

struct Puller<R> {
    consumer: PullConsumer,
    slots: Arc<Semaphore>,
    wait: Duration,
    heartbeat: Duration,
    receiver: Arc<R>,
    abandon: CancellationToken,
}

impl<R: Receiver> Puller<R> {
    async fn run(self, shutdown: CancellationToken) {
        let mut failures = 0u32;
        loop {
            let permit = tokio::select! {
                permit = self.slots.clone().acquire_owned() => permit,
                () = shutdown.cancelled() => return,
            };
            let Ok(permit) = permit else { return };
            match self.take(permit, &shutdown).await {
                Ok(()) => failures = 0,
                Err(error) => {
                    failures += 1;
                    let pause = Duration::from_millis(100 << failures.min(6));
                    tracing::warn!(%error, ?pause, "a pull failed and is tried again");
                    tokio::select! {
                        () = sleep(pause) => {}
                        () = shutdown.cancelled() => return,
                    }
                }
            }
        }
    }

    /// Takes what waits already, up to the free slots; if nothing does, waits for one message.
    async fn take(&self, permit: OwnedSemaphorePermit, shutdown: &CancellationToken) -> Result<(), async_nats::Error> {
        let mut permits = vec![permit];
        while permits.len() < BURST
            && let Ok(permit) = self.slots.clone().try_acquire_owned()
        {
            permits.push(permit);
        }
        let mut waiting = self.consumer.fetch().max_messages(permits.len()).messages().await?;
        let mut taken = false;
        // Not ended by a shutdown: dropping a half-read batch would cost its messages ack_wait and an attempt.
        while let Some(message) =
            timeout(ANSWER, waiting.next()).await.map_err(|_| "the broker did not answer a pull in time")?
        {
            taken = true;
            self.spawn(message?, &mut permits);
        }
        permits.truncate(1);
        if taken || permits.is_empty() {
            return Ok(());
        }
        let mut next = self.consumer.batch().max_messages(1).expires(self.wait).messages().await?;
        tokio::select! {
            message = next.next() => {
                if let Some(message) = message {
                    self.spawn(message?, &mut permits);
                }
            }
            // A message that arrives just now goes back to the queue when ack_wait has passed.
            () = shutdown.cancelled() => {}
        }
        Ok(())
    }

    fn spawn(&self, message: async_nats::jetstream::Message, permits: &mut Vec<OwnedSemaphorePermit>) {
        // Never empty: a pull asks for as many messages as there are permits.
        let permit = permits.pop();
        let (receiver, abandon, heartbeat) = (self.receiver.clone(), self.abandon.clone(), self.heartbeat);
        tokio::spawn(async move {
            let _permit = permit;
            let delivery = match Delivery::new(message) {
                Ok(delivery) => delivery,
                Err(error) => return tracing::error!(%error, "a message without delivery data was dropped"),
            };
            let settle = tokio::select! {
                settle = with_heartbeat(&delivery, heartbeat, receiver.receive(&delivery)) => settle,
                () = abandon.cancelled() => {
                    receiver.give_back(&delivery).await;
                    Settle::Nak(None)
                }
            };
            delivery.settle(settle).await;
        });
    }
}

async fn with_heartbeat(delivery: &Delivery, every: Duration, work: impl Future<Output = Settle>) -> Settle {
    let mut beat = interval(every);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    beat.tick().await;
    tokio::pin!(work);
    loop {
        tokio::select! {
            settle = &mut work => return settle,
            _ = beat.tick() => delivery.heartbeat().await,
        }
    }
}
