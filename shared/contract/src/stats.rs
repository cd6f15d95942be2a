//! What workers tell of themselves every second, what waits in the queues, and the rates that two looks at them give.

pub mod seen;
pub mod view;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{Name, subject::Stage};

/// One worker as it describes itself on `<root>.stats.<stage>.<worker>`. Whatever is counted is counted since its start.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Worker {
    /// Its name, as in claims and results. Two processes may have the same; `started_ms` tells them apart.
    pub worker: String,
    /// The stage that it serves.
    pub stage: Stage,
    /// Its release; nothing if that is one that did not say.
    #[serde(default)]
    pub version: String,
    /// The stages whose jobs it takes.
    pub roles: Vec<Stage>,
    /// The models that it serves, in the order of their names.
    pub models: Vec<Name>,
    /// When it started, in milliseconds since 1970 by its own clock.
    pub started_ms: u64,
    /// When it said this, by the same clock.
    pub at_ms: u64,
    /// Whether it takes no more jobs and finishes those it has.
    pub draining: bool,
    /// Whether this is its last word.
    #[serde(default)]
    pub ended: bool,
    /// Jobs that it holds at once, at most, without those of foreign engines.
    pub slots: u64,
    /// Jobs that it holds now.
    pub busy: u64,
    /// What it has done since its start.
    #[serde(flatten)]
    pub counts: Counts,
    /// Milliseconds that its engines were computing; those of several models count together.
    pub compute_ms: u64,
    /// Prompts (prefill) or answers (decode) in the last pass of its engine; 0 while that waits for work.
    pub engine_batch: u64,
    /// The instances of foreign engines that it asks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub upstreams: Vec<Upstream>,
}

/// An instance of a foreign engine as one worker sees it. Whatever is counted is counted since the worker's start.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Upstream {
    /// The model that it answers for.
    pub model: String,
    /// Its URL, without secrets.
    pub url: String,
    /// Whether it takes requests, as far as is known.
    pub up: bool,
    /// Why not, if it does not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fault: Option<String>,
    /// Requests that this worker may have there at once.
    pub limit: u64,
    /// Requests that it has there.
    pub running: u64,
    /// Requests that wait inside the engine, everybody's, if the engine tells.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub waiting: Option<u64>,
    /// Requests that were answered to their end.
    pub answered: u64,
    /// Requests that the engine put off (429, 503).
    pub put_off: u64,
    /// Requests that failed otherwise.
    pub failed: u64,
    /// KV caches of prompts that came from another instance.
    pub transfers: u64,
    /// Prompts that were computed again because their KV cache did not come.
    pub transfer_fallbacks: u64,
}

/// What a worker has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Counts {
    /// Jobs that it passed on or brought to an end that is not its failure.
    pub jobs_done: u64,
    /// Jobs that it ended as failed.
    pub jobs_failed: u64,
    /// Prompt tokens: read by ingest, computed or brought from the store by prefill, computed by decode in prefill's stead.
    pub prompt_tokens: u64,
    /// Those of them that came from the store and were not computed.
    pub cached_tokens: u64,
    /// Tokens of answers that were told; decode's only, with the first, which prefill samples.
    pub completion_tokens: u64,
    /// Jobs of foreign engines that it answered with a model of Baton's in their stead.
    pub fallback_jobs: u64,
    /// KV cache that was handed to the store, in bytes before packing.
    pub kv_raw_bytes: u64,
    /// What of it was written, in bytes after packing: a chunk that was there already is not written.
    pub kv_put_bytes: u64,
    /// Packed KV chunks that were read, from the store or a cache.
    pub kv_get_bytes: u64,
}

/// The work queue of one stage, model and lane.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Queue {
    /// The stage that it feeds.
    pub stage: Stage,
    /// None for ingest, whose queues are of all models.
    pub model: Option<Name>,
    /// The lane that it is of.
    pub lane: Name,
    /// Jobs that no worker holds; prefill's with the admitted ones that wait for their tenant's turn.
    pub waiting: u64,
    /// Jobs that workers hold.
    pub delivered: u64,
}

/// What the planner tells every second on `<root>.stats.planner`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Planning {
    /// The planner's name.
    pub planner: String,
    /// When it said this, in milliseconds since 1970.
    pub at_ms: u64,
    /// How many workers of each stage the load wants, for whoever starts and stops them.
    pub desired: BTreeMap<Stage, u64>,
    /// How many there are, those that are about to serve the stage with them.
    pub present: BTreeMap<Stage, u64>,
    /// Why that many, or why nothing changes, with the figures.
    pub reason: String,
    /// Workers that changed their role since the planner started.
    pub changes: u64,
    /// A change that is under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changing: Option<RoleChange>,
    /// The last that was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<RoleChange>,
}

/// A worker that changes its role.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoleChange {
    /// The worker's name.
    pub worker: String,
    /// The stage that it serves then.
    pub to: Stage,
    /// When that was decided, in milliseconds since 1970.
    pub at_ms: u64,
    /// Why the planner decided so.
    pub reason: String,
}

/// A look at a pipeline.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// When it was taken, in milliseconds since 1970.
    pub at_ms: u64,
    /// Workers that were heard of in the last five seconds, by stage and name.
    pub workers: Vec<Worker>,
    /// By stage, model and lane.
    pub queues: Vec<Queue>,
    /// What a planner said lately.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub planner: Option<Planning>,
}

/// What happens in a second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Rate {
    /// Jobs that were passed on or completed.
    pub jobs_done: f64,
    /// Jobs that failed.
    pub jobs_failed: f64,
    /// Tokens of prompts that were read.
    pub prompt_tokens: f64,
    /// Those of them that came from the store.
    pub cached_tokens: f64,
    /// Tokens of answers.
    pub completion_tokens: f64,
    /// Bytes of KV cache that were stored, before packing.
    pub kv_raw_bytes: f64,
    /// Bytes that were written to the store.
    pub kv_put_bytes: f64,
    /// Bytes that were read from the store.
    pub kv_get_bytes: f64,
    /// Seconds of computing: the number of engines that are busy.
    pub compute: f64,
}

impl Worker {
    /// Jobs that it holds at once, at most, those of foreign engines with them.
    pub fn room(&self) -> u64 {
        self.slots + self.upstreams.iter().map(|upstream| upstream.limit).sum::<u64>()
    }

    /// Whether this is a later word of the same process.
    pub fn follows(&self, earlier: &Self) -> bool {
        self.stage == earlier.stage && self.worker == earlier.worker && self.started_ms == earlier.started_ms
    }

    /// What it did between its `earlier` word and this one, per second; nothing if it said nothing new.
    pub fn rate(&self, earlier: &Self) -> Option<Rate> {
        let seconds = self.at_ms.checked_sub(earlier.at_ms).filter(|ms| *ms > 0)? as f64 / 1e3;
        let per_second = |now: u64, then: u64| now.saturating_sub(then) as f64 / seconds;
        let (now, then) = (&self.counts, &earlier.counts);
        Some(Rate {
            jobs_done: per_second(now.jobs_done, then.jobs_done),
            jobs_failed: per_second(now.jobs_failed, then.jobs_failed),
            prompt_tokens: per_second(now.prompt_tokens, then.prompt_tokens),
            cached_tokens: per_second(now.cached_tokens, then.cached_tokens),
            completion_tokens: per_second(now.completion_tokens, then.completion_tokens),
            kv_raw_bytes: per_second(now.kv_raw_bytes, then.kv_raw_bytes),
            kv_put_bytes: per_second(now.kv_put_bytes, then.kv_put_bytes),
            kv_get_bytes: per_second(now.kv_get_bytes, then.kv_get_bytes),
            compute: per_second(self.compute_ms, earlier.compute_ms) / 1e3,
        })
    }
}

impl Rate {
    /// Both together.
    pub fn plus(&self, other: &Self) -> Self {
        Self {
            jobs_done: self.jobs_done + other.jobs_done,
            jobs_failed: self.jobs_failed + other.jobs_failed,
            prompt_tokens: self.prompt_tokens + other.prompt_tokens,
            cached_tokens: self.cached_tokens + other.cached_tokens,
            completion_tokens: self.completion_tokens + other.completion_tokens,
            kv_raw_bytes: self.kv_raw_bytes + other.kv_raw_bytes,
            kv_put_bytes: self.kv_put_bytes + other.kv_put_bytes,
            kv_get_bytes: self.kv_get_bytes + other.kv_get_bytes,
            compute: self.compute + other.compute,
        }
    }
}

impl Snapshot {
    /// What each stage's workers did between an `earlier` look and this one, per second. A worker that was not there then
    /// counts from the next look on; every stage is there.
    pub fn rates(&self, earlier: &Self) -> BTreeMap<Stage, Rate> {
        let mut rates: BTreeMap<Stage, Rate> = Stage::ALL.map(|stage| (stage, Rate::default())).into();
        for worker in &self.workers {
            let before = earlier.workers.iter().find(|before| worker.follows(before));
            if let Some(rate) = before.and_then(|before| worker.rate(before)) {
                let stage = rates.entry(worker.stage).or_default();
                *stage = stage.plus(&rate);
            }
        }
        rates
    }

    /// Jobs of a stage that wait, and that workers hold.
    pub fn depth(&self, stage: Stage) -> (u64, u64) {
        let queues = self.queues.iter().filter(|queue| queue.stage == stage);
        queues.fold((0, 0), |(waiting, delivered), queue| (waiting + queue.waiting, delivered + queue.delivered))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn worker(name: &str, started_ms: u64, at_ms: u64, tokens: u64) -> Worker {
        Worker {
            worker: name.into(),
            stage: Stage::Decode,
            roles: vec![Stage::Decode],
            models: Vec::new(),
            started_ms,
            at_ms,
            draining: false,
            ended: false,
            slots: 4,
            busy: 1,
            counts: Counts { completion_tokens: tokens, ..Counts::default() },
            compute_ms: tokens,
            engine_batch: 1,
            upstreams: Vec::new(),
            version: String::new(),
        }
    }

    #[test]
    fn rates_are_of_processes_seen_twice_and_never_negative() {
        let earlier = Snapshot {
            workers: vec![worker("a", 1, 1_000, 100), worker("b", 1, 1_500, 900), worker("silent", 1, 1_000, 5)],
            ..Snapshot::default()
        };
        let now = Snapshot {
            workers: vec![
                worker("a", 1, 3_000, 300),
                worker("b", 2_000, 2_500, 10),
                worker("silent", 1, 1_000, 5),
                worker("new", 2_000, 3_000, 1_000),
            ],
            ..Snapshot::default()
        };
        let rates = now.rates(&earlier);
        assert_eq!(rates[&Stage::Decode].completion_tokens, 100.0, "200 tokens of a in 2 s; b was started anew");
        assert_eq!(rates[&Stage::Decode].compute, 0.1);
        assert_eq!(rates[&Stage::Prefill], Rate::default());
    }

    #[test]
    fn a_worker_says_flat_json_and_may_leave_out_what_is_new() {
        let said = serde_json::to_value(worker("a", 1, 2, 3)).unwrap();
        assert_eq!((&said["completion_tokens"], &said["stage"]), (&3.into(), &"decode".into()));
        let mut older = said.clone();
        older.as_object_mut().unwrap().retain(|key, _| key != "ended" && key != "kv_get_bytes");
        assert_eq!(serde_json::from_value::<Worker>(older).unwrap(), worker("a", 1, 2, 3));
    }
}
