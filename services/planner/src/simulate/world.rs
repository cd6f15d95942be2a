//! What all workers of a simulation share: the clock, the events, the jobs, the queues and the store.

use std::{cmp::Reverse, collections::BinaryHeap};

use baton_contract::Role;
use baton_workload::Drawn;

use super::{
    Options, Pool,
    jobs::{Job, JobId, Jobs},
    machine::Machine,
    measure::{Change, Measure, Report},
    queue::Shared,
    reuse::Prefixes,
    time::{Nanos, nanos},
};
use crate::profile::Host;

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
    /// A number of tokens of a prompt are in the store.
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

/// The clock, what happens next, and what the workers share.
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
        Self {
            options,
            now: 0,
            events: BinaryHeap::new(),
            count: 0,
            bursts: 0,
            jobs: Jobs::default(),
            prefill: Shared::new(options.prefill.slots, workers),
            decode: Shared::new(options.decode.slots, workers),
            ingesting: 0,
            prefixes: Prefixes::new(options.store_bytes),
            measure: Measure::new(options.slo, options.flow.filling(options)),
            machine: options.cores.map(|cores| Machine::new(cores, workers)),
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
