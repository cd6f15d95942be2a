//! Predicts what becomes of a workload: a simulation of discrete events, from the request's arrival to its result.
//!
//! What a worker does next is asked of [`baton_prefill::schedule`] and [`baton_decode::schedule`] themselves; how long it takes
//! comes from a [`Profile`]. Requests are drawn one by one and forgotten when they end, quantiles come from histograms of fixed
//! size, so memory is bounded by what is in flight. Steps of a batch in which nobody joins or leaves are one event.
//!
//! The events are kept in a binary heap. A framework (`nexosim` 1.0) would pass them as messages between asynchronous models that
//! can be saved and loaded; here the workers share queues, jobs and store, the schedulers are plain state, and one loop steps them
//! all: 42 million events a second against 1.9 million, measured with eight models that send and reschedule, on one core.

mod burst;
mod control;
mod decode;
mod jobs;
mod machine;
mod measure;
mod prefill;
mod queue;
mod reuse;
mod time;
mod world;

use baton_contract::Role;
use baton_workload::Drawn;

pub use self::measure::{Change, Quantiles, Report, Slo, Use};
use self::{
    control::Control,
    decode::DecodeWorker,
    prefill::PrefillWorker,
    time::{Nanos, nanos},
    world::{Event, World},
};
use crate::{decide, profile::Profile};

/// A pool of workers of one stage.
#[derive(Clone, Debug)]
pub struct Pool {
    /// How many there are.
    pub workers: usize,
    /// What they cost.
    pub profile: Profile,
    /// Jobs that a worker holds, at least 1.
    pub slots: usize,
    /// Tokens that a worker's KV memory holds.
    pub kv_tokens: usize,
    /// Cores that a worker's engine computes on; matters where [`Options::cores`] is given.
    pub threads: usize,
}

/// What is simulated.
#[derive(Clone, Debug)]
pub struct Options {
    /// The prefill workers.
    pub prefill: Pool,
    /// The decode workers.
    pub decode: Pool,
    /// Workers of ingest, at least 1.
    pub ingest_workers: usize,
    /// Tokens of a prefill pass.
    pub batch_tokens: usize,
    /// Tokens of a KV chunk.
    pub chunk_tokens: usize,
    /// Tokens of a prompt's block: what one of [`Drawn::blocks`] stands for.
    pub block_tokens: usize,
    /// Bytes of chunks that the store keeps; none keeps all. Only what prompts share is counted.
    pub store_bytes: Option<u64>,
    /// `stages.decode.prefill_tokens`: prompt tokens that decode computes itself.
    pub decode_prefills: usize,
    /// When requests come.
    pub flow: Flow,
    /// What a good request is.
    pub slo: Slo,
    /// A planner in the loop: what it decides, is done.
    pub planner: Option<decide::Options>,
    /// All workers, the broker and the client share a machine of this many cores, at least as many as the engines compute on
    /// together; without it nothing holds an engine up.
    pub cores: Option<usize>,
}

/// When requests come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// Each at its own time, whatever became of those before: an open loop.
    Planned,
    /// As soon as there is room, so that no worker ever wants for work: how much the pipeline can do.
    Saturated,
    /// Each as soon as fewer than this many are under way: a closed loop.
    Concurrency(usize),
}

impl Flow {
    /// Requests that fill the pipeline before a closed loop is in its steady state.
    fn filling(self, options: &Options) -> u64 {
        let slots = |pool: &Pool| pool.workers * pool.slots;
        let filling = match self {
            Self::Planned => 0,
            Self::Saturated => slots(&options.prefill) + slots(&options.decode),
            Self::Concurrency(most) => most,
        };
        filling as u64
    }
}

/// Jobs that wait for each prefill slot when requests come as soon as there is room.
const BACKLOG: usize = 4;

/// Simulates until every request has ended. `progress` is told now and then how many have; the first error of the requests
/// ends it.
pub fn run<E>(
    options: &Options,
    requests: impl IntoIterator<Item = Result<Drawn, E>>,
    progress: impl FnMut(u64),
) -> Result<Report, E> {
    let mut simulation = Simulation::new(options);
    simulation.run(requests.into_iter(), progress)?;
    Ok(simulation.report())
}

/// What a worker is.
enum Worker {
    Prefill(Box<PrefillWorker>),
    Decode(Box<DecodeWorker>),
    /// It has left one pool and starts in the other.
    Starting(Role),
}

struct Simulation<'o> {
    world: World<'o>,
    workers: Vec<Worker>,
    control: Option<Control>,
    /// When each ingest worker is free.
    ingest: Vec<Nanos>,
}

impl<'o> Simulation<'o> {
    fn new(options: &'o Options) -> Self {
        let mut world = World::new(options);
        let mut workers = Vec::new();
        for (role, count) in [(Role::Prefill, options.prefill.workers), (Role::Decode, options.decode.workers)] {
            for _ in 0..count {
                workers.push(Worker::Starting(role));
                world.pool(role).present += 1;
            }
        }
        let control = options.planner.as_ref().map(|planner| Control::new(planner.clone(), &mut world));
        Self { world, workers, control, ingest: vec![0; options.ingest_workers.max(1)] }
    }

    fn run<E>(
        &mut self,
        mut requests: impl Iterator<Item = Result<Drawn, E>>,
        mut progress: impl FnMut(u64),
    ) -> Result<(), E> {
        for worker in 0..self.workers.len() {
            self.start(worker);
        }
        let mut next = requests.next().transpose()?;
        let mut told = 0;
        loop {
            while let Some(request) = &next
                && self.may_come(request)
            {
                let at = match self.world.options.flow {
                    Flow::Planned => nanos(request.at.as_secs_f64()),
                    Flow::Saturated => self.world.now,
                    // The client learns first that there is room.
                    Flow::Concurrency(_) => self.world.now + nanos(self.world.options.decode.profile.bus.hop_s),
                };
                if let Some(request) = next.take() {
                    self.arrive(request, at.max(self.world.now));
                }
                next = requests.next().transpose()?;
            }
            // Nothing but the planner's clock: everything has ended.
            if next.is_none() && self.world.jobs.open() == 0 {
                return Ok(());
            }
            let Some(event) = self.world.next_event() else { return Ok(()) };
            self.handle(event);
            if self.world.measure.ended() >= told + 1024 {
                told = self.world.measure.ended();
                progress(told);
            }
        }
    }

    /// Whether the next request comes before anything else happens.
    fn may_come(&self, request: &Drawn) -> bool {
        let Options { flow, prefill, decode, decode_prefills, .. } = self.world.options;
        match flow {
            Flow::Planned => {}
            Flow::Concurrency(most) => return self.world.jobs.open() < *most,
            Flow::Saturated => {
                let early = if *decode_prefills > 0 { decode.workers * decode.slots } else { 0 };
                let room = BACKLOG * (prefill.workers * prefill.slots + early).max(1);
                // Short prompts wait for decode alone.
                let waits = if *decode_prefills > 0 { self.world.decode.queue.len() } else { 0 };
                return self.world.prefill.queue.len() + waits + self.world.ingesting < room;
            }
        }
        let at = nanos(request.at.as_secs_f64());
        self.world.first_event().is_none_or(|first| at <= first)
    }

    fn arrive(&mut self, request: Drawn, at: Nanos) {
        let bus = self.world.options.prefill.profile.bus;
        let job = self.world.accept(request, at);
        let Some(free) = self.ingest.iter_mut().min() else { return };
        *free = (*free).max(at + nanos(bus.hop_s)) + nanos(bus.ingest_s);
        let done = *free + nanos(bus.hop_s);
        self.world.ingesting += 1;
        self.world.at(done, Event::Ingested(job));
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Ingested(job) => {
                self.world.ingesting -= 1;
                self.world.spend(Role::Decode, |host| host.cpu_s_per_job);
                let (prompt, most) = (self.world.jobs[job].prompt, self.world.options.decode_prefills);
                if prompt <= most {
                    self.world.jobs[job].reused = 0;
                    self.world.decode.queue.push_back(job);
                } else {
                    self.world.prefill.queue.push_back(job);
                }
            }
            Event::Queued(job) => self.world.decode.queue.push_back(job),
            Event::Handed(job) => self.world.decode.queue.push_front(job),
            Event::Found(job, worker) => self.with_prefill(worker, |worker, world| worker.find(job, world)),
            Event::Fetched(job, worker) => self.with_prefill(worker, |worker, world| worker.fetched(job, world)),
            Event::Passed(worker) => self.with_prefill(worker, |worker, world| worker.passed(world)),
            Event::Stored(job, tokens, worker) => {
                self.with_prefill(worker, |worker, world| worker.stored(job, tokens as usize, world));
            }
            Event::Poked(worker) => self.with_decode(worker, |worker, world| worker.poked(world)),
            Event::Stepped(worker, burst) => self.with_decode(worker, |worker, world| worker.stepped(burst, world)),
            Event::Freed(role, worker) => self.world.pool(role).free(worker),
            Event::Started(worker) => self.start(worker),
            Event::Tick => {
                if let Some(mut control) = self.control.take() {
                    if let Some((worker, role)) = control.tick(&mut self.world, &self.workers) {
                        self.drain(worker, role);
                    }
                    self.control = Some(control);
                }
            }
        }
        self.settle();
    }

    /// Moves drained workers, and gives what waits to those with free slots.
    fn settle(&mut self) {
        while let Some((worker, role)) = self.world.drained.pop() {
            let pause = self.control.as_ref().map_or(0, Control::switch_nanos);
            self.world.leaves(role.other());
            self.workers[worker] = Worker::Starting(role);
            self.world.at(self.world.now + pause, Event::Started(worker));
        }
        while let Some((job, worker)) = self.world.prefill.dispatch() {
            self.with_prefill(worker, |worker, world| worker.take(job, world));
        }
        while let Some((job, worker)) = self.world.decode.dispatch() {
            self.with_decode(worker, |worker, world| worker.take(job, world));
        }
    }

    fn start(&mut self, worker: usize) {
        let Worker::Starting(role) = self.workers[worker] else { return };
        let options = self.world.options;
        self.workers[worker] = match role {
            Role::Prefill => Worker::Prefill(Box::new(PrefillWorker::new(worker, options))),
            Role::Decode => Worker::Decode(Box::new(DecodeWorker::new(worker, options))),
        };
        self.world.pool(role).offer(worker);
        self.settle();
    }

    /// Lets a worker end what it does, and then change to `role`.
    fn drain(&mut self, worker: usize, role: Role) {
        self.world.pool(role.other()).withdraw(worker);
        self.with_prefill(worker, |worker, world| worker.drain(world));
        self.with_decode(worker, |worker, world| worker.drain(world));
    }

    fn with_prefill(&mut self, worker: usize, work: impl FnOnce(&mut PrefillWorker, &mut World<'o>)) {
        // A worker that has changed its role has left nothing behind.
        if let Worker::Prefill(worker) = &mut self.workers[worker] {
            work(worker, &mut self.world);
        }
    }

    fn with_decode(&mut self, worker: usize, work: impl FnOnce(&mut DecodeWorker, &mut World<'o>)) {
        if let Worker::Decode(worker) = &mut self.workers[worker] {
            work(worker, &mut self.world);
        }
    }

    fn report(mut self) -> Report {
        let changes = self.control.map(Control::into_changes).unwrap_or_default();
        self.world.report(changes)
    }
}

#[cfg(test)]
pub(crate) mod tests;
