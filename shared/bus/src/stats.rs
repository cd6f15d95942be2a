//! How the pipeline is doing: what each worker counts and tells every second, and a watch over all of them and the queues.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use async_nats::jetstream;
use baton_contract::{
    Name, causes,
    stats::{Counts, Queue, Snapshot, Worker},
    subject::Stage,
};
use futures::{TryStreamExt, future::try_join_all};
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, MissedTickBehavior, interval, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{Bus, Error, connection::Heard, roles::PlannerWatch, unix_ms};

/// How often workers tell, and the queues are looked at.
pub const EVERY: Duration = Duration::from_secs(1);
/// Who was not heard of for so long is not there.
const FORGOTTEN: Duration = Duration::from_secs(5);
/// How long a worker that stops tries to say so.
const LAST_WORD: Duration = Duration::from_millis(500);

/// What a worker counts. Cheap to clone; clones count together, without locks.
#[derive(Clone, Debug, Default)]
pub struct Counters(Arc<Cells>);

#[derive(Debug, Default)]
struct Cells {
    busy: AtomicU64,
    jobs_done: AtomicU64,
    jobs_failed: AtomicU64,
    prompt_tokens: AtomicU64,
    cached_tokens: AtomicU64,
    completion_tokens: AtomicU64,
    kv_raw_bytes: AtomicU64,
    kv_put_bytes: AtomicU64,
    kv_get_bytes: AtomicU64,
    compute_us: AtomicU64,
    engine_batch: AtomicU64,
}

impl Counters {
    /// Counts a job as held until the guard is dropped.
    pub fn hold(&self) -> Held {
        self.0.busy.fetch_add(1, Relaxed);
        Held(self.clone())
    }

    /// A job was passed on, or came to an end; whether as `failed`.
    pub fn job(&self, failed: bool) {
        let jobs = if failed { &self.0.jobs_failed } else { &self.0.jobs_done };
        jobs.fetch_add(1, Relaxed);
    }

    /// Tokens of prompts were read, computed or brought, `cached` of them from the store.
    pub fn prompt(&self, tokens: usize, cached: usize) {
        self.0.prompt_tokens.fetch_add(tokens as u64, Relaxed);
        self.0.cached_tokens.fetch_add(cached as u64, Relaxed);
    }

    /// A token of an answer was told.
    pub fn completion_token(&self) {
        self.0.completion_tokens.fetch_add(1, Relaxed);
    }

    /// So many bytes of KV cache were stored as `written` packed bytes, 0 if they were there already.
    pub fn kv_put(&self, raw: u64, written: u64) {
        self.0.kv_raw_bytes.fetch_add(raw, Relaxed);
        self.0.kv_put_bytes.fetch_add(written, Relaxed);
    }

    /// So many packed bytes of KV cache were read.
    pub fn kv_got(&self, packed: u64) {
        self.0.kv_get_bytes.fetch_add(packed, Relaxed);
    }

    /// An engine has computed for so long, for a `batch` of so many sequences.
    pub fn computed(&self, took: Duration, batch: usize) {
        self.0.compute_us.fetch_add(took.as_micros() as u64, Relaxed);
        self.0.engine_batch.store(batch as u64, Relaxed);
    }

    /// An engine waits for work.
    pub fn idle(&self) {
        self.0.engine_batch.store(0, Relaxed);
    }

    fn counts(&self) -> Counts {
        let cells = &*self.0;
        Counts {
            jobs_done: cells.jobs_done.load(Relaxed),
            jobs_failed: cells.jobs_failed.load(Relaxed),
            prompt_tokens: cells.prompt_tokens.load(Relaxed),
            cached_tokens: cells.cached_tokens.load(Relaxed),
            completion_tokens: cells.completion_tokens.load(Relaxed),
            kv_raw_bytes: cells.kv_raw_bytes.load(Relaxed),
            kv_put_bytes: cells.kv_put_bytes.load(Relaxed),
            kv_get_bytes: cells.kv_get_bytes.load(Relaxed),
        }
    }
}

/// A job that a worker holds; see [`Counters::hold`].
#[derive(Debug)]
pub struct Held(Counters);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.0.busy.fetch_sub(1, Relaxed);
    }
}

/// Who a worker is.
#[derive(Clone, Debug)]
pub struct Identity {
    pub worker: String,
    pub stage: Stage,
    /// The stages that it may serve, this one with them.
    pub roles: Vec<Stage>,
    pub models: Vec<Name>,
    pub slots: usize,
}

impl Bus {
    /// What the worker that this connection is of has done.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// The same connection, for a worker that begins anew: it has done nothing yet.
    pub fn counting_anew(&self) -> Self {
        Self { counters: Counters::default(), ..self.clone() }
    }

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
        let cells = &*self.counters.0;
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
            busy: cells.busy.load(Relaxed),
            counts: self.counters.counts(),
            compute_ms: cells.compute_us.load(Relaxed) / 1_000,
            engine_batch: cells.engine_batch.load(Relaxed),
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
        Ok(Watch { snapshots, _task: Arc::new(Task(tokio::spawn(watching.run()))) })
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
    _task: Arc<Task>,
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

/// A task that ends with its last owner.
#[derive(Debug)]
pub(crate) struct Task(pub(crate) JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
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
