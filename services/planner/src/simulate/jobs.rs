//! The jobs that are open.

use std::ops::{Index, IndexMut};

use super::time::Nanos;

/// Names a job while it is open.
pub(super) type JobId = u32;

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
    pub(super) fn add(&mut self, job: Job) -> JobId {
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

    pub(super) fn remove(&mut self, id: JobId) -> Job {
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
