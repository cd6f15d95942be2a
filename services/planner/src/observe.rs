//! What the decision needs, made of what workers and queues say. Pure.
//!
//! Work is counted by what each worker has counted since it was heard of last: a word that is late or lost is made up for by the
//! next one, so that sums come out right whoever was heard of when.

use std::collections::{BTreeMap, HashMap};

use baton_contract::{
    Role,
    stats::{Counts, Snapshot, Worker},
    subject::Stage,
};

use crate::decide::{Pool, Statistics};

/// A worker that is heard of for the first time is new if it is not older than this; what it has done counts then.
const NEW_MS: u64 = 10_000;

/// Remembers what was heard of each worker last.
#[derive(Clone, Debug, Default)]
pub struct Observer {
    heard: HashMap<(Stage, String, u64), Worker>,
    /// When the last look was, in seconds, and the jobs that were in the queue to prefill then.
    last: Option<(f64, u64)>,
}

/// What the workers of one stage have done since the last look.
#[derive(Clone, Copy, Debug, Default)]
struct Done {
    jobs: u64,
    prompt_tokens: u64,
    completion_tokens: u64,
    compute_ms: u64,
}

impl Done {
    fn add(&mut self, now: &Worker, before: &Counts, compute_ms: u64) {
        let jobs = |counts: &Counts| counts.jobs_done + counts.jobs_failed;
        let computed = |counts: &Counts| counts.prompt_tokens.saturating_sub(counts.cached_tokens);
        self.jobs += jobs(&now.counts).saturating_sub(jobs(before));
        self.prompt_tokens += computed(&now.counts).saturating_sub(computed(before));
        self.completion_tokens += now.counts.completion_tokens.saturating_sub(before.completion_tokens);
        self.compute_ms += now.compute_ms.saturating_sub(compute_ms);
    }
}

impl Observer {
    /// What was seen since the last look, at `at_s` seconds of a steady clock; nothing at the first look. A worker that is
    /// `changing` its role counts to what it becomes.
    pub fn observe(&mut self, snapshot: &Snapshot, at_s: f64, changing: Option<(&str, Role)>) -> Option<Statistics> {
        let done = self.done(snapshot);
        let (waiting, delivered) = snapshot.depth(Stage::Prefill);
        let (last_s, queued) = self.last.replace((at_s, waiting + delivered))?;
        let window_s = at_s - last_s;
        if window_s <= 0.0 {
            return None;
        }
        let of = |stage| done.get(&stage).copied().unwrap_or_default();
        let (ingest, prefill, decode) = (of(Stage::Ingest), of(Stage::Prefill), of(Stage::Decode));
        let rate = |count: u64| count as f64 / window_s;
        let ingests = snapshot.workers.iter().any(|worker| worker.stage == Stage::Ingest);
        let arrived = if ingests {
            ingest.jobs
        } else {
            // Ingest says nothing: what went through prefill's queue, and what it has grown by.
            (prefill.jobs + waiting + delivered).saturating_sub(queued)
        };
        let pool = |role: Role, done: Done| {
            let stage = role.stage();
            let leaves = |worker: &&Worker| worker.draining || changing.is_some_and(|(name, _)| name == worker.worker);
            let serving: Vec<&Worker> =
                snapshot.workers.iter().filter(|worker| worker.stage == stage && !leaves(worker)).collect();
            let arriving = usize::from(changing.is_some_and(|(_, to)| to == role));
            let workers = serving.len() + arriving;
            let share = |part: f64, whole: f64| if whole > 0.0 { (part / whole).min(1.0) } else { 0.0 };
            let busy = match role {
                Role::Prefill => share(done.compute_ms as f64 / 1e3, serving.len() as f64 * window_s),
                Role::Decode => {
                    let slots: u64 = serving.iter().map(|worker| worker.room()).sum();
                    share(serving.iter().map(|worker| worker.busy).sum::<u64>() as f64, slots as f64)
                }
            };
            Pool { workers, busy, done_per_s: rate(done.jobs), waiting: snapshot.depth(stage).0 as usize }
        };
        Some(Statistics {
            at_s,
            window_s,
            arrivals_per_s: rate(arrived),
            prompt_tokens_per_s: rate(prefill.prompt_tokens),
            output_tokens_per_s: rate(decode.completion_tokens),
            prefill: pool(Role::Prefill, prefill),
            decode: pool(Role::Decode, decode),
        })
    }

    fn done(&mut self, snapshot: &Snapshot) -> BTreeMap<Stage, Done> {
        let first_look = self.last.is_none();
        let mut done: BTreeMap<Stage, Done> = BTreeMap::new();
        let mut heard = HashMap::new();
        for worker in &snapshot.workers {
            let key = (worker.stage, worker.worker.clone(), worker.started_ms);
            let of_stage = done.entry(worker.stage).or_default();
            match self.heard.get(&key) {
                Some(before) => of_stage.add(worker, &before.counts, before.compute_ms),
                None if !first_look && worker.at_ms.saturating_sub(worker.started_ms) <= NEW_MS => {
                    of_stage.add(worker, &Counts::default(), 0);
                }
                None => {}
            }
            heard.insert(key, worker.clone());
        }
        self.heard = heard;
        done
    }
}

/// The worker that gives up its role with the least to lose, of those that may take the role `to`.
pub fn candidate(snapshot: &Snapshot, to: Role) -> Option<&Worker> {
    let may =
        |worker: &&Worker| worker.stage == to.other().stage() && worker.roles.contains(&to.stage()) && !worker.draining;
    snapshot.workers.iter().filter(may).min_by_key(|worker| (worker.busy, &worker.worker))
}

#[cfg(test)]
mod tests;
