//! How the pipeline is doing: what each worker counts and tells every second, and a watch over all of them and the queues.

use std::{collections::BTreeMap, convert::Infallible, fmt, sync::Arc, time::Duration};

use async_nats::jetstream;
use baton_contract::{
    Name, causes,
    stats::{Queue, Snapshot, Upstream, Worker},
    subject::Stage,
};
use futures::{TryStreamExt, future::try_join_all};
use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior, interval, timeout},
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use crate::{Bus, Error, connection::Heard, duty::roles::PlannerWatch, unix_ms};

/// How often workers tell, and the queues are looked at.
pub const EVERY: Duration = Duration::from_secs(1);
/// Who was not heard of for so long is not there.
const FORGOTTEN: Duration = Duration::from_secs(5);
/// How long a worker that stops tries to say so.
const LAST_WORD: Duration = Duration::from_millis(500);

/// What is known of the foreign engines that a worker asks, at any moment.
#[derive(Clone)]
pub struct Upstreams(pub Arc<dyn Fn() -> Vec<Upstream> + Send + Sync>);

impl Default for Upstreams {
    /// There are none.
    fn default() -> Self {
        Self(Arc::new(Vec::new))
    }
}

impl fmt::Debug for Upstreams {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0()).finish()
    }
}

/// Who a worker is.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Its name.
    pub worker: String,
    /// The stage that it serves.
    pub stage: Stage,
    /// The stages that it may serve, this one with them.
    pub roles: Vec<Stage>,
    /// The models that it serves; none for ingest.
    pub models: Vec<Name>,
    /// Jobs that it takes at once, without those of foreign engines.
    pub slots: usize,
    /// The foreign engines that it asks.
    pub upstreams: Upstreams,
}

impl Bus {
    /// Does `work`, a worker's whole life, and tells meanwhile every second how it is doing: also when it begins, when it is
    /// asked to drain, and when it ends. Nothing of that holds the work up.
    pub async fn telling<T>(
        &self,
        identity: Identity,
        draining: &CancellationToken,
        work: impl Future<Output = T>,
    ) -> T {
        let started_ms = unix_ms();
        let done = tokio::select! {
            biased;
            done = work => done,
            never = self.keep_telling(&identity, started_ms, draining) => match never {},
        };
        let last_word = async {
            self.tell(&identity, started_ms, true, true).await;
            let _ = self.client.flush().await;
        };
        let _ = timeout(LAST_WORD, last_word).await;
        done
    }

    async fn keep_telling(&self, identity: &Identity, started_ms: u64, draining: &CancellationToken) -> Infallible {
        let mut ticks = interval(EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let drains = draining.is_cancelled();
            tokio::select! {
                _ = ticks.tick() => {}
                () = draining.cancelled(), if !drains => {}
            }
            self.tell(identity, started_ms, draining.is_cancelled(), false).await;
        }
    }

    /// Publishes how the worker is doing; whether anybody hears it does not matter to it.
    async fn tell(&self, identity: &Identity, started_ms: u64, draining: bool, ended: bool) {
        let worker = Worker {
            worker: identity.worker.clone(),
            stage: identity.stage,
            roles: identity.roles.clone(),
            models: identity.models.clone(),
            started_ms,
            at_ms: unix_ms(),
            draining,
            ended,
            slots: identity.slots as u64,
            busy: self.counters.busy(),
            counts: self.counters.counts(),
            compute_ms: self.counters.compute_ms(),
            engine_batch: self.counters.engine_batch(),
            upstreams: (identity.upstreams.0)(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        let subject = self.layout.stats(identity.stage, &identity.worker);
        match serde_json::to_vec(&worker) {
            Ok(said) => drop(self.client.publish(subject, said.into()).await),
            Err(error) => tracing::debug!(error = %causes(&error), "a worker's statistics were not published"),
        }
    }

    /// Begins to watch the workers and the queues; [`Bus::provision`] must have run once. Returns with a first look at the
    /// queues; workers are heard of within a second.
    pub async fn watch_stats(&self) -> Result<Watch, Error> {
        let words = self.ears.listen(self.layout.all_stats()).await?;
        let planner = self.watch_planner().await?;
        let first = Snapshot { at_ms: unix_ms(), queues: self.queues().await?, ..Snapshot::default() };
        let (sender, snapshots) = watch::channel((Arc::new(first), Instant::now()));
        let watching = Watching { bus: self.clone(), words, planner, heard: BTreeMap::new(), sender };
        Ok(Watch { snapshots, _task: Arc::new(AbortOnDropHandle::new(tokio::spawn(watching.run()))) })
    }

    /// What waits in every queue that has messages or had a worker once, and what workers hold.
    pub async fn queues(&self) -> Result<Vec<Queue>, Error> {
        // In the order in which jobs pass them.
        let waiting = self.counts(self.layout.waiting_stream());
        let (waiting, of_stages) =
            tokio::try_join!(waiting, try_join_all(Stage::ALL.map(|stage| self.queues_of(stage))))?;
        let mut queues: Vec<Queue> = of_stages.into_iter().flatten().collect();
        for (line, _, jobs) in waiting {
            let (stage, model, lane) = (Stage::Prefill, Some(line.model), line.lane);
            match queues.iter_mut().find(|queue| queue.stage == stage && queue.model == model && queue.lane == lane) {
                Some(queue) => queue.waiting += jobs,
                None => queues.push(Queue { stage, model, lane, waiting: jobs, delivered: 0 }),
            }
        }
        Ok(queues)
    }

    async fn queues_of(&self, stage: Stage) -> Result<Vec<Queue>, Error> {
        let name = self.layout.stage_stream(stage);
        let failed = |message: String| Error::Read { what: format!("the queues of stream {name}"), message };
        let stream = self.jetstream.get_stream_no_info(&name).await.map_err(|error| failed(causes(&error)))?;
        // Both at once, so that they tell of about the same moment: a message in a queue is either held or waits.
        let consumers = stream.consumers().try_collect::<Vec<jetstream::consumer::Info>>();
        let consumers = async { consumers.await.map_err(|error| failed(causes(&error))) };
        let subjects = async {
            let subjects = stream.info_with_subjects(">").await.map_err(|error| failed(causes(&error)))?;
            subjects.try_collect::<Vec<(String, usize)>>().await.map_err(|error| failed(causes(&error)))
        };
        let (consumers, subjects) = tokio::try_join!(consumers, subjects)?;
        let mut queues: BTreeMap<(Option<Name>, Name), (u64, u64)> = BTreeMap::new();
        for (subject, messages) in subjects {
            if let Some(queue) = self.layout.parse_queue(stage, &subject) {
                queues.entry(queue).or_default().0 += messages as u64;
            }
        }
        for consumer in consumers {
            if let Some(queue) = self.layout.parse_queue(stage, &consumer.config.filter_subject) {
                queues.entry(queue).or_default().1 += consumer.num_ack_pending as u64;
            }
        }
        let queue = |((model, lane), (all, delivered)): (_, (u64, u64))| {
            let waiting = all.saturating_sub(delivered);
            Queue { stage, model, lane, waiting, delivered }
        };
        Ok(queues.into_iter().map(queue).collect())
    }
}

/// The pipeline, looked at every second. Cheap to clone; the last clone ends the watch.
#[derive(Clone, Debug)]
pub struct Watch {
    snapshots: watch::Receiver<(Arc<Snapshot>, Instant)>,
    _task: Arc<AbortOnDropHandle<()>>,
}

impl Watch {
    /// The last look. While the broker does not answer it stays the same, and its `at_ms` grows old.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshots.borrow().0.clone()
    }

    /// How long ago that was.
    pub fn age(&self) -> Duration {
        self.snapshots.borrow().1.elapsed()
    }

    /// The next look that this clone has not been given.
    pub async fn next(&mut self) -> Arc<Snapshot> {
        // The sender ends with the last watch only.
        let _ = self.snapshots.changed().await;
        self.snapshots.borrow_and_update().0.clone()
    }
}

struct Watching {
    bus: Bus,
    words: Heard,
    planner: PlannerWatch,
    /// Each process's last word, and when it came.
    heard: BTreeMap<(Stage, String, u64), (Worker, Instant)>,
    sender: watch::Sender<(Arc<Snapshot>, Instant)>,
}

impl Watching {
    async fn run(mut self) {
        let mut ticks = interval(EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                message = self.words.next() => self.hear(&message.payload),
                _ = ticks.tick() => self.look().await,
            }
        }
    }

    fn hear(&mut self, said: &[u8]) {
        let worker: Worker = match serde_json::from_slice(said) {
            Ok(worker) => worker,
            Err(error) => return tracing::debug!(error = %causes(&error), "a worker's statistics could not be read"),
        };
        let key = (worker.stage, worker.worker.clone(), worker.started_ms);
        if worker.ended {
            self.heard.remove(&key);
        } else {
            self.heard.insert(key, (worker, Instant::now()));
        }
    }

    async fn look(&mut self) {
        let queues = match self.bus.queues().await {
            Ok(queues) => queues,
            // The snapshot's age tells it.
            Err(error) => return tracing::debug!(error = %causes(&error), "the queues could not be looked at"),
        };
        self.heard.retain(|_, (_, at)| at.elapsed() < FORGOTTEN);
        let workers = self.heard.values().map(|(worker, _)| worker.clone()).collect();
        let planner = self.planner.last();
        let snapshot = Snapshot { at_ms: unix_ms(), workers, queues, planner };
        self.sender.send_replace((Arc::new(snapshot), Instant::now()));
    }
}
