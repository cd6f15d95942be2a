//! Taking messages from the work queues: a permit first, then as many messages as there are permits, never more.

mod order;
mod slots;

use std::{sync::Arc, time::Duration};

use async_nats::jetstream::consumer::PullConsumer;
use baton_contract::{Name, backoff::Backoff, causes, subject::Stage};
use futures::{
    FutureExt, StreamExt, TryStreamExt,
    future::BoxFuture,
    stream::{self, FuturesUnordered},
};
use tokio::{
    sync::{OwnedSemaphorePermit, watch},
    time::{Instant, MissedTickBehavior, interval_at, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use self::{
    order::{Turn, Turns},
    slots::Slots,
};
use crate::{
    Bus, Error,
    connection::entropy::entropy,
    provision::wanted::AT_ONCE,
    repair::screen::Screen,
    stage::{
        delivery::{Delivery, Settle},
        intake::{Came, Intake},
        queue::Queue,
    },
};

/// The pauses of a queue whose pulls fail.
const FAILED: Backoff = Backoff::doubling(Duration::from_millis(200), Duration::from_millis(6_400));

/// How a worker takes messages.
#[derive(Clone, Debug)]
pub struct Options {
    /// The stage whose queues are served.
    pub stage: Stage,
    /// The models whose queues the worker serves; none for ingest, which has one queue a lane.
    pub models: Vec<Name>,
    /// The most urgent first.
    pub lanes: Vec<Name>,
    /// Messages worked on at once. Where slots are many and queues several, one more for each further queue: a slot waits at
    /// every idle one, and the busy one must not miss it.
    pub slots: usize,
    /// How many of the slots there are now, if that changes while the worker runs. Fewer come into force as messages are settled.
    pub room: Option<watch::Receiver<usize>>,
    /// After this long without a sign of life the broker gives a message to another worker; heartbeats come thrice as often.
    pub ack_wait: Duration,
    /// Deliveries after which a job fails instead of being tried again.
    pub max_deliver: u64,
    /// How long a shutdown waits for what is being worked on before it hands the rest back.
    pub drain: Duration,
}

impl Options {
    fn queues(&self) -> Vec<Queue> {
        Queue::all(self.stage, &self.models, &self.lanes)
    }
}

/// What a stage does with a delivery.
pub trait Receiver: Send + Sync + 'static {
    /// Works on a message, and says what becomes of it.
    fn receive(&self, delivery: &Delivery) -> impl Future<Output = Settle> + Send;

    /// Called when [`Receiver::receive`] was cut short by a shutdown, for the message to go back.
    fn give_back(&self, _delivery: &Delivery) -> impl Future<Output = Settle> + Send {
        async { Settle::Nak(None) }
    }
}

/// Takes and settles messages until `shutdown`, then drains.
pub async fn run<R: Receiver>(
    bus: &Bus,
    options: &Options,
    receiver: Arc<R>,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    // Fires when the drain's time is over: whoever still works then hands its message back.
    let abandon = CancellationToken::new();
    let queues = options.queues();
    let mut pullers = Vec::new();
    let lanes: Vec<_> =
        queues.iter().map(|queue| options.lanes.iter().take_while(|&lane| *lane != queue.lane).count()).collect();
    // In a list, not as they are taken: the compiler can't tell that the latter may be sent to another thread.
    let consumers: Vec<_> = queues.iter().map(|queue| bus.consumer_once_elected(queue, options.ack_wait)).collect();
    let consumers: Vec<_> = stream::iter(consumers).buffered(AT_ONCE).try_collect().await?;
    for (index, (queue, consumer)) in queues.into_iter().zip(consumers).enumerate() {
        pullers.push(Some(Puller {
            index,
            bus: bus.clone(),
            consumer,
            queue,
            intake: None,
            screen: Screen::default(),
            failures: 0,
            ack_wait: options.ack_wait,
            receiver: receiver.clone(),
            abandon: abandon.clone(),
            shutdown: shutdown.clone(),
        }));
    }
    let mut slots = Slots::new(options.slots, options.room.clone());
    let turns = Turns::new(&lanes, slots.room());
    take(pullers, turns, &mut slots, &shutdown).await;
    if timeout(options.drain, slots.all_back()).await.is_err() {
        abandon.cancel();
        let _ = timeout(Duration::from_secs(5), slots.all_back()).await;
    }
    bus.flush().await
}

/// Gives each free slot to the queue whose turn it is, until `shutdown`, and then waits for the pulls.
async fn take<R: Receiver>(
    mut pullers: Vec<Option<Puller<R>>>,
    mut turns: Turns,
    slots: &mut Slots,
    shutdown: &CancellationToken,
) {
    let room = slots.room();
    slots.resize(room + turns.waiting_slots());
    let (free, changes) = (slots.semaphore(), slots.can_change());
    let mut pulls: FuturesUnordered<BoxFuture<'static, Ended<R>>> = FuturesUnordered::new();
    while !shutdown.is_cancelled() {
        let permit = tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            Some(ended) = pulls.next() => {
                let puller = match ended {
                    Ended::Pull(puller, turn, taken) => {
                        turns.ended(turn, taken, Instant::now());
                        puller
                    }
                    Ended::Failed(puller, pause) => {
                        turns.failed(puller.index);
                        pulls.push(puller.rest(pause).boxed());
                        continue;
                    }
                    Ended::Rest(puller) => {
                        turns.rested(puller.index);
                        puller
                    }
                };
                let index = puller.index;
                pullers[index] = Some(puller);
                continue;
            }
            () = slots.changed(), if changes => {
                let room = slots.room();
                turns.share(room);
                slots.resize(room + turns.waiting_slots());
                continue;
            }
            permit = free.clone().acquire_owned(), if turns.wanted(Instant::now()) => permit,
        };
        let Ok(permit) = permit else { return };
        let Some(permit) = slots.keep(permit) else { continue };
        if let Some(turn) = turns.next(1 + slots.free(), Instant::now())
            && let Some(puller) = pullers[turn.queue].take()
        {
            let mut permits = vec![permit];
            while permits.len() < turn.count
                && let Some(permit) = slots.another()
            {
                permits.push(permit);
            }
            pulls.push(puller.serve(Turn { count: permits.len(), ..turn }, permits).boxed());
        }
    }
    while pulls.next().await.is_some() {}
}

/// What a puller comes back from.
enum Ended<R> {
    /// With so many messages.
    Pull(Puller<R>, Turn, usize),
    Failed(Puller<R>, Duration),
    Rest(Puller<R>),
}

/// Asks for the messages of one queue.
struct Puller<R> {
    index: usize,
    bus: Bus,
    consumer: PullConsumer,
    queue: Queue,
    intake: Option<Intake>,
    screen: Screen,
    /// Pulls that failed since the last that did not.
    failures: u32,
    ack_wait: Duration,
    receiver: Arc<R>,
    abandon: CancellationToken,
    shutdown: CancellationToken,
}

/// How a pull ended.
enum Pulled {
    /// With so many messages.
    Over(usize),
    /// With this many taken, when the connection was made anew or died: the broker may have forgotten the pull.
    Lost(usize),
    /// By a shutdown.
    Closed,
}

impl<R: Receiver> Puller<R> {
    async fn serve(mut self, turn: Turn, permits: Vec<OwnedSemaphorePermit>) -> Ended<R> {
        let mut intake = self.intake.take();
        match self.pull(&mut intake, turn.wait, permits).await {
            Ok(pulled) => {
                self.failures = 0;
                let taken = match pulled {
                    Pulled::Over(taken) => {
                        self.intake = intake;
                        taken
                    }
                    Pulled::Lost(taken) => {
                        self.look().await;
                        taken
                    }
                    Pulled::Closed => 0,
                };
                Ended::Pull(self, turn, taken)
            }
            Err(error) => {
                let pause = FAILED.pause(self.failures, entropy());
                self.failures = self.failures.saturating_add(1);
                tracing::warn!(error = %causes(error.as_ref()), ?pause, "a pull failed and is tried again");
                self.make_again().await;
                Ended::Failed(self, pause)
            }
        }
    }

    async fn rest(self, pause: Duration) -> Ended<R> {
        tokio::select! {
            () = sleep(pause) => {}
            () = self.shutdown.cancelled() => {}
        }
        Ended::Rest(self)
    }

    /// Asks for a message for each permit, and takes them as they come until all are there or the pull's time is over; without a
    /// time to wait, those that are there.
    async fn pull(
        &self,
        slot: &mut Option<Intake>,
        wait: Option<Duration>,
        mut permits: Vec<OwnedSemaphorePermit>,
    ) -> Result<Pulled, async_nats::Error> {
        let opened = match slot.take().filter(|intake| !intake.is_stale()) {
            Some(intake) => intake,
            None => Intake::open(&self.bus, &self.consumer).await?,
        };
        let intake = slot.insert(opened);
        let asked = permits.len();
        let deadline = intake.ask(asked, wait).await?;
        while !permits.is_empty() {
            let came = tokio::select! {
                came = intake.next(deadline) => came?,
                // One for several is over soon, and what it brings until then would be lost for ack_wait.
                () = self.shutdown.cancelled(), if asked == 1 && wait.is_some() => {
                    self.hand_back(slot.take()).await;
                    return Ok(Pulled::Closed);
                }
            };
            match came {
                Came::Message(message) => self.spawn(self.message(message), &mut permits),
                Came::Over => return Ok(Pulled::Over(asked - permits.len())),
                Came::Lost => return Ok(Pulled::Lost(asked - permits.len())),
            }
        }
        Ok(Pulled::Over(asked))
    }

    /// Makes the consumer again, should it be gone.
    async fn make_again(&mut self) {
        match self.bus.consumer(&self.queue, self.ack_wait).await {
            Ok(consumer) => self.consumer = consumer,
            Err(error) => {
                tracing::debug!(error = %causes(&error), "a consumer is not there, and could not be made again");
                self.bus.doubt();
            }
        }
    }

    /// Looks for the message that may have ended the connection, so that it does not end the next.
    async fn look(&mut self) {
        match self.screen.look(&self.bus, &self.consumer, Some(self.queue.stage)).await {
            Ok(0) => {}
            Ok(aside) => tracing::warn!(aside, "messages that nobody can take were put aside as dead letters"),
            Err(error) => {
                tracing::warn!(error = %causes(&error), "it was not looked for messages that nobody can take")
            }
        }
    }

    /// Ends the intake, and gives back what the broker had sent before it knew.
    async fn hand_back(&self, intake: Option<Intake>) {
        let Some(intake) = intake else { return };
        for message in intake.close().await {
            if let Ok(delivery) = Delivery::new(self.message(message), &self.bus.client) {
                delivery.settle(Settle::Nak(None)).await;
            }
        }
    }

    fn message(&self, message: async_nats::Message) -> async_nats::jetstream::Message {
        async_nats::jetstream::Message { message, context: self.bus.jetstream.clone() }
    }

    fn spawn(&self, message: async_nats::jetstream::Message, permits: &mut Vec<OwnedSemaphorePermit>) {
        // Never empty: a pull asks for as many messages as there are permits.
        let permit = permits.pop();
        let (receiver, abandon, heartbeat) = (self.receiver.clone(), self.abandon.clone(), self.ack_wait / 3);
        let (client, held) = (self.bus.client.clone(), self.bus.counters.hold());
        tokio::spawn(async move {
            let _permit = (permit, held);
            let delivery = match Delivery::new(message, &client) {
                Ok(delivery) => delivery,
                Err(error) => {
                    return tracing::error!(error = %causes(&error), "a message without delivery data was dropped");
                }
            };
            let settle = tokio::select! {
                settle = with_heartbeat(&delivery, heartbeat, receiver.receive(&delivery)) => settle,
                () = abandon.cancelled() => receiver.give_back(&delivery).await,
            };
            delivery.settle(settle).await;
        });
    }
}

pub(crate) async fn with_heartbeat(delivery: &Delivery, every: Duration, work: impl Future<Output = Settle>) -> Settle {
    // Not from now on: the first tick of all would come with the clock's next millisecond, and the work wait for it.
    let mut beat = interval_at(Instant::now() + every, every);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    tokio::pin!(work);
    loop {
        tokio::select! {
            settle = &mut work => return settle,
            _ = beat.tick() => delivery.heartbeat().await,
        }
    }
}
