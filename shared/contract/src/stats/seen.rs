//! The last looks at a pipeline, of which rates are made.

use std::{collections::VecDeque, sync::Arc};

use super::{Snapshot, Worker, view::View};

/// Looks that rates are made of: those of some seconds, so that figures can be read.
const LOOKS: usize = 5;

/// The last looks at a pipeline.
#[derive(Default)]
pub struct Seen {
    looks: VecDeque<Arc<Snapshot>>,
}

impl Seen {
    /// Takes a look, and tells its figures with the rates since some looks before.
    pub fn see(&mut self, now: Arc<Snapshot>) -> View {
        if self.looks.len() == LOOKS {
            self.looks.pop_front();
        }
        self.looks.push_back(now.clone());
        View::of(&earliest(&self.looks, &now), &now)
    }
}

/// The first of the looks at each worker: one that was heard of later than others has rates since then.
fn earliest(looks: &VecDeque<Arc<Snapshot>>, now: &Snapshot) -> Snapshot {
    let first = |worker: &Worker| {
        let mut words = looks.iter().flat_map(|look| &look.workers);
        words.find(|before| worker.follows(before)).cloned()
    };
    Snapshot { at_ms: now.at_ms, workers: now.workers.iter().filter_map(first).collect(), ..Snapshot::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(at_ms: u64, workers: &[(&str, u64)]) -> Snapshot {
        let worker = |(name, tokens): &(&str, u64)| {
            let said = serde_json::json!({
                "worker": name, "stage": "decode", "roles": ["decode"], "models": [], "started_ms": 1, "at_ms": at_ms,
                "draining": false, "slots": 1, "busy": 1, "completion_tokens": tokens, "compute_ms": 0, "engine_batch": 0,
            });
            serde_json::from_value(said).unwrap()
        };
        Snapshot { at_ms, workers: workers.iter().map(worker).collect(), ..Snapshot::default() }
    }

    #[test]
    fn a_worker_that_the_first_look_did_not_hear_of_has_rates_since_the_second() {
        let now = look(4_000, &[("a", 500), ("b", 90)]);
        let looks = [look(1_000, &[]), look(2_000, &[("a", 100)]), look(3_000, &[("a", 300), ("b", 40)]), now.clone()];
        let looks: VecDeque<_> = looks.into_iter().map(Arc::new).collect();
        let view = View::of(&earliest(&looks, &now), &now);
        let rates: Vec<_> = view.workers.iter().map(|worker| worker.rates.completion_tokens_per_s).collect();
        assert_eq!(rates, [200.0, 50.0]);
        assert_eq!(view.stages[2].rates.completion_tokens_per_s, 250.0);
    }
}
