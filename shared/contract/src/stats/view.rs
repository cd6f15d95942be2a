//! What is shown of a pipeline: figures of each stage and worker, made of two looks at it.

use serde::Serialize;

use super::{Planning, Queue, Rate, Snapshot, Worker};
use crate::subject::Stage;

/// A pipeline at a moment.
#[derive(Clone, Debug, Serialize)]
pub struct View {
    /// Milliseconds since 1970.
    pub at_ms: u64,
    /// In the order that jobs pass them.
    pub stages: Vec<StageView>,
    /// By stage and name.
    pub workers: Vec<WorkerView>,
    /// What a planner thinks, if one runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub planner: Option<Planning>,
}

/// A stage: its queues and all of its workers together.
#[derive(Clone, Debug, Serialize)]
pub struct StageView {
    /// The stage.
    pub stage: Stage,
    /// Its workers.
    pub workers: usize,
    /// Jobs that they hold at once, at most.
    pub slots: u64,
    /// Jobs that they hold now.
    pub busy: u64,
    /// Jobs that no worker holds.
    pub waiting: u64,
    /// Jobs that workers hold.
    pub held: u64,
    /// Its queues, by model and lane.
    pub queues: Vec<Queue>,
    /// What happens in a second.
    #[serde(flatten)]
    pub rates: Rates,
}

/// A worker as it describes itself, and what it does in a second.
#[derive(Clone, Debug, Serialize)]
pub struct WorkerView {
    /// What it says of itself.
    #[serde(flatten)]
    pub worker: Worker,
    /// What happens in a second.
    pub rates: Rates,
}

/// What happens in a second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Rates {
    /// Jobs that were done.
    pub jobs_per_s: f64,
    /// Jobs that failed.
    pub failed_per_s: f64,
    /// Prompt tokens of the jobs that were done.
    pub prompt_tokens_per_s: f64,
    /// Of the prompt tokens those that were not computed, 0 to 1.
    pub cached_share: f64,
    /// Tokens of answers.
    pub completion_tokens_per_s: f64,
    /// KV cache put into the store.
    pub kv_put_bytes_per_s: f64,
    /// KV cache got from the store.
    pub kv_get_bytes_per_s: f64,
    /// Engines that are busy, on average.
    pub computing: f64,
}

impl From<Rate> for Rates {
    fn from(rate: Rate) -> Self {
        let cached_share = if rate.prompt_tokens > 0.0 { rate.cached_tokens / rate.prompt_tokens } else { 0.0 };
        Self {
            jobs_per_s: rate.jobs_done,
            failed_per_s: rate.jobs_failed,
            prompt_tokens_per_s: rate.prompt_tokens,
            cached_share,
            completion_tokens_per_s: rate.completion_tokens,
            kv_put_bytes_per_s: rate.kv_put_bytes,
            kv_get_bytes_per_s: rate.kv_get_bytes,
            computing: rate.compute,
        }
    }
}

impl View {
    /// The figures of `now`, with the rates since the `earlier` look.
    pub fn of(earlier: &Snapshot, now: &Snapshot) -> Self {
        let rates = now.rates(earlier);
        let stages = Stage::ALL.map(|stage| {
            let of_stage = || now.workers.iter().filter(move |worker| worker.stage == stage);
            let (waiting, held) = now.depth(stage);
            StageView {
                stage,
                workers: of_stage().count(),
                slots: of_stage().map(Worker::room).sum(),
                busy: of_stage().map(|worker| worker.busy).sum(),
                waiting,
                held,
                queues: now.queues.iter().filter(|queue| queue.stage == stage).cloned().collect(),
                rates: rates.get(&stage).copied().unwrap_or_default().into(),
            }
        });
        let workers = now.workers.iter().map(|worker| {
            let before = earlier.workers.iter().find(|before| worker.follows(before));
            let rate = before.and_then(|before| worker.rate(before)).unwrap_or_default();
            WorkerView { worker: worker.clone(), rates: rate.into() }
        });
        Self { at_ms: now.at_ms, stages: stages.into(), workers: workers.collect(), planner: now.planner.clone() }
    }
}

impl StageView {
    /// The figure that tells best how the stage is doing, and its unit.
    pub fn pulse(&self) -> (f64, &'static str) {
        match self.stage {
            Stage::Ingest => (self.rates.jobs_per_s, "jobs/s"),
            Stage::Prefill => (self.rates.prompt_tokens_per_s, "prompt tok/s"),
            Stage::Decode => (self.rates.completion_tokens_per_s, "output tok/s"),
        }
    }
}
