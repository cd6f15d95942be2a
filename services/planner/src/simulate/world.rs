//! What all workers of a simulation share: the clock, the events, the jobs, the queues and the store.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
    ops::{Index, IndexMut},
};

use baton_workload::Drawn;

use super::{
    Options, Pool,
    control::Change,
    machine::Machine,
    measure::{Measure, Report},
    reuse::Prefixes,
};
use crate::profile::Host;

/// Time since the beginning.
pub(super) type Nanos = u64;
/// Names a job while it is open.
pub(super) type JobId = u32;

pub(super) fn nanos(seconds: f64) -> Nanos {
    (seconds * 1e9).round() as Nanos
}

pub(super) fn seconds(nanos: Nanos) -> f64 {
    nanos as f64 / 1e9
}

/// Something that happens at a time; the last number is a worker's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Event {
    Ingested(JobId),
    /// The job's message is in decode's queue.
    Queued(JobId),
    /// A drained decode worker has handed it back.
    Handed(JobId),
    /// What another prompt computed and this one waits for is stored.
    Found(JobId, usize),
    /// The reused beginning of a prompt is in memory.
    Fetched(JobId, usize),
    Passed(usize),
    /// So many tokens of a prompt are in the store.
    Stored(JobId, u32, usize),
    /// Something has come that a decode worker may wait for.
    Poked(usize),
    /// The burst of that number has ended.
    Stepped(usize, u32),
    /// A worker of a role asks for a job again.
    Freed(Role, usize),
    Started(usize),
    Tick,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Role {
    Prefill,
    Decode,
}

impl Role {
    pub(super) fn other(self) -> Self {
        match self {
            Self::Prefill => Self::Decode,
            Self::Decode => Self::Prefill,
        }
    }
}

/// A job from its arrival to its result.
#[derive(Debug, Default)]
pub(super) struct Job {
    pub(super) arrived: Nanos,
    /// Tokens of the prompt, and of the whole answer.
    pub(super) prompt: usize,
    pub(super) output: usize,
    pub(super) blocks: Vec<u64>,
    /// Blocks at the beginning that are known to be stored.
    pub(super) found: usize,
    /// Tokens of the prompt that prefill did not compute.
    pub(super) reused: usize,
    /// Tokens of the prompt that are stored.
    pub(super) stored: usize,
    /// Tokens of the answer so far; the first comes from prefill, or where decode computes the prompt from its first step.
    pub(super) generated: usize,
    pub(super) first: Nanos,
    pub(super) last: Nanos,
    /// Whether its latencies count.
    pub(super) measured: bool,
}

/// Jobs by their numbers, which are used again.
#[derive(Default)]
pub(super) struct Jobs {
    jobs: Vec<Job>,
    free: Vec<JobId>,
}

impl Jobs {
    fn add(&mut self, job: Job) -> JobId {
        match self.free.pop() {
            Some(id) => {
                self[id] = job;
                id
            }
            None => {
                self.jobs.push(job);
                (self.jobs.len() - 1) as JobId
            }
        }
    }

    fn remove(&mut self, id: JobId) -> Job {
        self.free.push(id);
        std::mem::take(&mut self[id])
    }

    pub(super) fn open(&self) -> usize {
        self.jobs.len() - self.free.len()
    }
}

impl Index<JobId> for Jobs {
    type Output = Job;

    fn index(&self, id: JobId) -> &Job {
        &self.jobs[id as usize]
    }
}

impl IndexMut<JobId> for Jobs {
    fn index_mut(&mut self, id: JobId) -> &mut Job {
        &mut self.jobs[id as usize]
    }
}

/// A stage's queue, and the workers that have free slots: the broker serves them in the order in which they asked.
#[derive(Default)]
pub(super) struct Shared {
    pub(super) queue: VecDeque<JobId>,
    asking: VecDeque<usize>,
    /// Of each worker: free slots, and whether it takes anything.
    workers: Vec<(usize, bool)>,
    slots: usize,
    /// Workers that take jobs, and the time of all of them together until `counted`.
    pub(super) present: usize,
    pub(super) present_nanos: u128,
    counted: Nanos,
    /// Slots that hold a job, and the time of all of them together.
    pub(super) held: usize,
    pub(super) held_nanos: u128,
    /// Jobs that left the stage.
    pub(super) done: u64,
    /// Time in which engines computed, of all workers together.
    pub(super) busy_nanos: u128,
    now: Nanos,
}

impl Shared {
    fn count(&mut self) {
        let passed = u128::from(self.now - self.counted);
        self.present_nanos += passed * self.present as u128;
        self.held_nanos += passed * self.held as u128;
        self.counted = self.now;
    }

    /// The time has come to `now`.
    pub(super) fn count_until(&mut self, now: Nanos) {
        self.now = now;
        self.count();
    }

    /// The next job, and the worker that it goes to.
    pub(super) fn dispatch(&mut self) -> Option<(JobId, usize)> {
        if self.queue.is_empty() {
            return None;
        }
        let worker = self.asking.pop_front()?;
        let job = self.queue.pop_front()?;
        self.workers[worker].0 -= 1;
        self.held += 1;
        if self.workers[worker].0 > 0 {
            self.asking.push_back(worker);
        }
        Some((job, worker))
    }

    /// A worker begins to take jobs.
    pub(super) fn offer(&mut self, worker: usize) {
        self.workers[worker] = (self.slots, true);
        self.asking.push_back(worker);
    }

    /// A worker takes no more jobs.
    pub(super) fn withdraw(&mut self, worker: usize) {
        self.workers[worker].1 = false;
        self.asking.retain(|other| *other != worker);
    }

    /// A worker has a slot more.
    pub(super) fn free(&mut self, worker: usize) {
        self.held -= 1;
        let (free, takes) = &mut self.workers[worker];
        let was_full = *free == 0;
        *free = (*free + 1).min(self.slots);
        if *takes && was_full {
            self.asking.push_back(worker);
        }
    }
}

pub(super) struct World<'o> {
    pub(super) options: &'o Options,
    pub(super) now: Nanos,
    events: BinaryHeap<Reverse<(Nanos, u64, Event)>>,
    /// Events so far: orders those of the same time.
    count: u64,
    bursts: u32,
    pub(super) jobs: Jobs,
    pub(super) prefill: Shared,
    pub(super) decode: Shared,
    /// Jobs that are on their way to their first queue.
    pub(super) ingesting: usize,
    pub(super) prefixes: Prefixes,
    pub(super) measure: Measure,
    pub(super) machine: Option<Machine>,
    /// Workers that hold nothing any more and change to a role.
    pub(super) drained: Vec<(usize, Role)>,
}

impl<'o> World<'o> {
    pub(super) fn new(options: &'o Options) -> Self {
        let workers = options.prefill.workers + options.decode.workers;
        let shared =
            |slots: usize| Shared { slots: slots.max(1), workers: vec![(0, false); workers], ..Shared::default() };
        Self {
            options,
            now: 0,
            events: BinaryHeap::new(),
            count: 0,
            bursts: 0,
            jobs: Jobs::default(),
            prefill: shared(options.prefill.slots),
            decode: shared(options.decode.slots),
            ingesting: 0,
            prefixes: Prefixes::new(options.store_bytes),
            measure: Measure::new(options.slo, options.flow.filling(options)),
            machine: options.cores.map(|cores| Machine::new(cores, options.prefill.workers + options.decode.workers)),
            drained: Vec::new(),
        }
    }

    pub(super) fn pool(&mut self, role: Role) -> &mut Shared {
        match role {
            Role::Prefill => &mut self.prefill,
            Role::Decode => &mut self.decode,
        }
    }

    /// A worker has left a role's pool for the other one's.
    pub(super) fn leaves(&mut self, role: Role) {
        self.pool(role).present -= 1;
        self.pool(role.other()).present += 1;
    }

    pub(super) fn at(&mut self, time: Nanos, event: Event) {
        self.count += 1;
        self.events.push(Reverse((time.max(self.now), self.count, event)));
    }

    /// A number that no burst of the last billions had.
    pub(super) fn next_burst(&mut self) -> u32 {
        self.bursts = self.bursts.wrapping_add(1);
        self.bursts
    }

    pub(super) fn first_event(&self) -> Option<Nanos> {
        self.events.peek().map(|Reverse((time, ..))| *time)
    }

    /// A worker's engine begins to compute.
    pub(super) fn computes(&mut self, role: Role, worker: usize) {
        let threads = self.pool_options(role).threads;
        if let Some(machine) = &mut self.machine {
            machine.computes(self.now, worker, threads);
        }
    }

    /// A worker's engine would have computed all by now; returns for how much longer it is held up, if it is.
    pub(super) fn ends(&mut self, role: Role, worker: usize) -> Option<Nanos> {
        let now = self.now;
        let held_up = self.machine.as_mut().and_then(|machine| machine.ends(now, worker)).map(nanos)?;
        self.pool(role).busy_nanos += u128::from(held_up);
        Some(held_up)
    }

    /// Something of a role beside the engines takes processor time.
    pub(super) fn spend(&mut self, role: Role, cpu_s: impl FnOnce(&Host) -> f64) {
        let Some(host) = &self.pool_options(role).profile.host else { return };
        if let Some(machine) = &mut self.machine {
            machine.spend(self.now, cpu_s(host));
        }
    }

    /// The next event; its time is now.
    pub(super) fn next_event(&mut self) -> Option<Event> {
        let Reverse((time, _, event)) = self.events.pop()?;
        self.now = time;
        self.prefill.count_until(time);
        self.decode.count_until(time);
        Some(event)
    }

    pub(super) fn accept(&mut self, request: Drawn, at: Nanos) -> JobId {
        let measured = self.measure.accepted(at);
        let Drawn { prompt_tokens, max_tokens, blocks, .. } = request;
        let (prompt, output) = (prompt_tokens.max(1) as usize, max_tokens.max(1) as usize);
        self.jobs.add(Job { arrived: at, prompt, output, blocks, measured, ..Job::default() })
    }

    /// A worker is through with a job. It asks for another when what it has published is acknowledged.
    pub(super) fn free(&mut self, role: Role, worker: usize) {
        let hop = nanos(self.pool_options(role).profile.bus.hop_s);
        self.at(self.now + hop, Event::Freed(role, worker));
    }

    fn pool_options(&self, role: Role) -> &'o Pool {
        match role {
            Role::Prefill => &self.options.prefill,
            Role::Decode => &self.options.decode,
        }
    }

    /// A job has its whole answer.
    pub(super) fn complete(&mut self, job: JobId) {
        let job = self.jobs.remove(job);
        let result = self.now + nanos(self.options.decode.profile.bus.hop_s);
        self.measure.completed(&job, result);
    }

    /// A job does not fit any worker's memory.
    pub(super) fn fail(&mut self, job: JobId) {
        self.jobs.remove(job);
        self.measure.failed();
    }

    pub(super) fn report(&mut self, changes: Vec<Change>) -> Report {
        self.measure.report(&self.prefill, &self.decode, self.options, self.count, changes)
    }
}
