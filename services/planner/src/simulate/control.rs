//! A planner in the loop: it sees what a planner of a running pipeline would see, and its flips are done.

use baton_contract::Role;

use super::{
    Worker,
    measure::Change,
    queue::Shared,
    time::{Nanos, nanos, seconds},
    world::{Event, World},
};
use crate::decide::{self, Decision, Flip, Planner, Statistics};

pub(super) struct Control {
    planner: Planner,
    every: Nanos,
    pause: Nanos,
    last: Counters,
    changes: Vec<Change>,
}

/// Sums since the beginning, as two observations are compared.
#[derive(Clone, Copy, Default)]
struct Counters {
    at: Nanos,
    arrived: u64,
    prompt_tokens: u64,
    output_tokens: u64,
    prefill: PoolCounters,
    decode: PoolCounters,
}

#[derive(Clone, Copy, Default)]
struct PoolCounters {
    done: u64,
    busy: u128,
    held: u128,
    present: u128,
}

impl Control {
    pub(super) fn new(options: decide::Options, world: &mut World<'_>) -> Self {
        let (every, pause) = (nanos(options.interval_s.max(0.1)), nanos(options.switch.drain_s));
        world.at(every, Event::Tick);
        Self { planner: Planner::new(options), every, pause, last: Counters::default(), changes: Vec::new() }
    }

    /// How long a drained worker takes until it serves in its new role.
    pub(super) fn switch_nanos(&self) -> Nanos {
        self.pause
    }

    pub(super) fn into_changes(self) -> Vec<Change> {
        self.changes
    }

    /// Asks the planner; returns the worker to drain, and what it becomes.
    pub(super) fn tick(&mut self, world: &mut World<'_>, workers: &[Worker]) -> Option<(usize, Role)> {
        world.at(world.now + self.every, Event::Tick);
        let now = Counters::of(world);
        let statistics = now.since(&self.last, world);
        self.last = now;
        let Decision { flip, reason, .. } = self.planner.decide(&statistics);
        let to = flip.map(|Flip { to }| to)?;
        // One that is not draining already.
        let serves = |worker: &usize| match &workers[*worker] {
            Worker::Prefill(it) => to == Role::Decode && !it.drains(),
            Worker::Decode(it) => to == Role::Prefill && !it.drains(),
            Worker::Starting(_) => false,
        };
        let worker = (0..workers.len()).rev().find(serves)?;
        self.changes.push(Change { at_s: seconds(world.now), to, reason });
        Some((worker, to))
    }
}

impl Counters {
    fn of(world: &World<'_>) -> Self {
        let pool = |pool: &Shared| PoolCounters {
            done: pool.done,
            busy: pool.busy_nanos,
            held: pool.held_nanos,
            present: pool.present_nanos,
        };
        Self {
            at: world.now,
            arrived: world.measure.arrived,
            prompt_tokens: world.measure.computed_tokens,
            output_tokens: world.measure.generated_tokens(),
            prefill: pool(&world.prefill),
            decode: pool(&world.decode),
        }
    }

    fn since(&self, earlier: &Self, world: &World<'_>) -> Statistics {
        let window_s = seconds(self.at - earlier.at).max(1e-9);
        let rate = |now: u64, before: u64| (now - before) as f64 / window_s;
        let share = |part: u128, whole: u128| if whole == 0 { 0.0 } else { (part as f64 / whole as f64).min(1.0) };
        let (prefill, before) = (&self.prefill, &earlier.prefill);
        let prefill = decide::Pool {
            workers: world.prefill.present,
            busy: share(prefill.busy - before.busy, prefill.present - before.present),
            done_per_s: rate(prefill.done, before.done),
            waiting: world.prefill.queue.len(),
        };
        let (decode, before) = (&self.decode, &earlier.decode);
        let slots = world.options.decode.slots.max(1) as u128;
        let decode = decide::Pool {
            workers: world.decode.present,
            busy: share(decode.held - before.held, (decode.present - before.present) * slots),
            done_per_s: rate(decode.done, before.done),
            waiting: world.decode.queue.len(),
        };
        Statistics {
            at_s: seconds(self.at),
            window_s,
            arrivals_per_s: rate(self.arrived, earlier.arrived),
            prompt_tokens_per_s: rate(self.prompt_tokens, earlier.prompt_tokens),
            output_tokens_per_s: rate(self.output_tokens, earlier.output_tokens),
            prefill,
            decode,
        }
    }
}
