//! What a worker counts.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use baton_contract::stats::Counts;

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
    fallback_jobs: AtomicU64,
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

    /// So many tokens of an answer were told.
    pub fn completion(&self, tokens: usize) {
        self.0.completion_tokens.fetch_add(tokens as u64, Relaxed);
    }

    /// A job of a foreign engine is answered by a model of Baton's.
    pub fn fallback(&self) {
        self.0.fallback_jobs.fetch_add(1, Relaxed);
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

    /// The jobs that are held now.
    pub(crate) fn busy(&self) -> u64 {
        self.0.busy.load(Relaxed)
    }

    /// How long the engine has computed, in milliseconds.
    pub(crate) fn compute_ms(&self) -> u64 {
        self.0.compute_us.load(Relaxed) / 1_000
    }

    /// The sequences that the engine computes for.
    pub(crate) fn engine_batch(&self) -> u64 {
        self.0.engine_batch.load(Relaxed)
    }

    pub(crate) fn counts(&self) -> Counts {
        let cells = &*self.0;
        Counts {
            jobs_done: cells.jobs_done.load(Relaxed),
            jobs_failed: cells.jobs_failed.load(Relaxed),
            prompt_tokens: cells.prompt_tokens.load(Relaxed),
            cached_tokens: cells.cached_tokens.load(Relaxed),
            completion_tokens: cells.completion_tokens.load(Relaxed),
            fallback_jobs: cells.fallback_jobs.load(Relaxed),
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
