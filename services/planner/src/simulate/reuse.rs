//! Which prefixes are stored, which are being computed, and which jobs wait for these.

use std::collections::HashMap;

use baton_storage::cache::Index;

use super::jobs::JobId;

/// The blocks of all prompts, by their names.
pub(super) struct Prefixes {
    stored: Index<u64>,
    /// Blocks that a prompt computes: its job, and the jobs that wait for it, each with its worker.
    computing: HashMap<u64, (JobId, Vec<(JobId, usize)>)>,
}

/// Where a prompt's block is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Stored,
    /// Another prompt computes it.
    Computing,
    Nowhere,
}

impl Prefixes {
    pub(super) fn new(budget: Option<u64>) -> Self {
        Self { stored: Index::new(budget.unwrap_or(u64::MAX)), computing: HashMap::new() }
    }

    /// Where a block is; using it keeps it.
    pub(super) fn find(&mut self, block: u64) -> Place {
        if self.stored.touch(&block) {
            Place::Stored
        } else if self.computing.contains_key(&block) {
            Place::Computing
        } else {
            Place::Nowhere
        }
    }

    /// A job waits for a block that another computes.
    pub(super) fn wait(&mut self, block: u64, job: JobId, worker: usize) {
        if let Some((_, waiting)) = self.computing.get_mut(&block) {
            waiting.push((job, worker));
        }
    }

    /// A job computes a block, unless another does already.
    pub(super) fn claim(&mut self, block: u64, job: JobId) {
        self.computing.entry(block).or_insert((job, Vec::new()));
    }

    /// A job has stored a block of `bytes` bytes. Returns the jobs that waited for it.
    pub(super) fn store(&mut self, block: u64, bytes: u64, job: JobId) -> Vec<(JobId, usize)> {
        self.stored.insert(block, bytes);
        match self.computing.get(&block) {
            Some((owner, _)) if *owner == job => {
                self.computing.remove(&block).map_or(Vec::new(), |(_, waiting)| waiting)
            }
            _ => Vec::new(),
        }
    }

    /// A job gives up what it has claimed. Returns the jobs that waited for it.
    pub(super) fn abandon(&mut self, blocks: &[u64], job: JobId) -> Vec<(JobId, usize)> {
        let mine =
            |computing: &HashMap<u64, (JobId, _)>, block: &u64| computing.get(block).is_some_and(|it| it.0 == job);
        let mut waiting = Vec::new();
        for block in blocks {
            if mine(&self.computing, block)
                && let Some((_, mut those)) = self.computing.remove(block)
            {
                waiting.append(&mut those);
            }
        }
        waiting
    }
}
