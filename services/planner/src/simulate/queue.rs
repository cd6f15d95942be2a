//! What the workers of a stage share: its queue, and the turns in which they are served.

use std::collections::VecDeque;

use super::{jobs::JobId, time::Nanos};

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
    /// For workers that take no jobs yet, each with at least one slot.
    pub(super) fn new(slots: usize, workers: usize) -> Self {
        Self { slots: slots.max(1), workers: vec![(0, false); workers], ..Self::default() }
    }

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
