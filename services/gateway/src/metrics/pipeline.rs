//! Queues and workers as the bus tells of them.

use baton_contract::stats::{Counts, Planning, Snapshot};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use super::engines;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct QueueLabels {
    stage: &'static str,
    /// Empty for ingest, whose queues are of all models.
    model: String,
    lane: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct WorkerLabels {
    stage: &'static str,
    worker: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct StageLabels {
    stage: &'static str,
}

/// A counter's name, what it counts, and where that is found.
type Counted = (&'static str, &'static str, fn(&Counts) -> u64);

const COUNTED: [Counted; 9] = [
    ("jobs_done", "Jobs passed on, or brought to an end that is no failure", |counts| counts.jobs_done),
    ("jobs_failed", "Jobs ended as failed", |counts| counts.jobs_failed),
    ("prompt_tokens", "Prompt tokens read, computed or brought from the store", |counts| counts.prompt_tokens),
    ("cached_tokens", "Prompt tokens that came from the store", |counts| counts.cached_tokens),
    ("completion_tokens", "Tokens of answers", |counts| counts.completion_tokens),
    ("fallback_jobs", "Jobs of foreign engines that Baton's own models answered", |counts| counts.fallback_jobs),
    ("kv_raw_bytes", "KV cache handed to the store, before packing", |counts| counts.kv_raw_bytes),
    ("kv_put_bytes", "Packed KV chunks written", |counts| counts.kv_put_bytes),
    ("kv_get_bytes", "Packed KV chunks read", |counts| counts.kv_get_bytes),
];

/// One look at the pipeline as metrics. Workers count since their start, so a worker that starts again begins at zero.
/// Where the broker does not tell how it is doing, `baton_pipeline_up` is 0, and nothing else is told.
pub(super) fn registry(snapshot: Option<&Snapshot>) -> Registry {
    let mut registry = Registry::with_prefix("baton");
    let up = Gauge::<i64>::default();
    up.set(snapshot.is_some().into());
    registry.register("pipeline_up", "Whether the broker tells how the pipeline is doing", up);
    let Some(snapshot) = snapshot else { return registry };
    let (waiting, delivered) = (Family::<QueueLabels, Gauge>::default(), Family::<QueueLabels, Gauge>::default());
    for queue in &snapshot.queues {
        let labels = QueueLabels {
            stage: queue.stage.as_str(),
            model: queue.model.as_ref().map_or_else(String::new, ToString::to_string),
            lane: queue.lane.to_string(),
        };
        waiting.get_or_create(&labels).set(queue.waiting as i64);
        delivered.get_or_create(&labels).set(queue.delivered as i64);
    }
    registry.register("queue_waiting", "Jobs that no worker holds", waiting);
    registry.register("queue_delivered", "Jobs that workers hold", delivered);

    let (slots, busy) = (Family::<WorkerLabels, Gauge>::default(), Family::<WorkerLabels, Gauge>::default());
    let computing = Family::<WorkerLabels, Counter<f64, std::sync::atomic::AtomicU64>>::default();
    let counters = COUNTED.map(|_| Family::<WorkerLabels, Counter>::default());
    for worker in &snapshot.workers {
        let labels = WorkerLabels { stage: worker.stage.as_str(), worker: worker.worker.clone() };
        slots.get_or_create(&labels).set(worker.slots as i64);
        busy.get_or_create(&labels).set(worker.busy as i64);
        computing.get_or_create(&labels).inc_by(worker.compute_ms as f64 / 1e3);
        for ((_, _, count), counter) in COUNTED.iter().zip(&counters) {
            counter.get_or_create(&labels).inc_by(count(&worker.counts));
        }
    }
    registry.register("worker_slots", "Jobs that a worker holds at most", slots);
    registry.register("worker_busy", "Jobs that a worker holds", busy);
    registry.register("worker_compute_seconds", "Time that a worker's engines were computing", computing);
    for ((name, help, _), counter) in COUNTED.into_iter().zip(counters) {
        registry.register(format!("worker_{name}"), help, counter);
    }
    engines::tell(snapshot, &mut registry);
    if let Some(planning) = &snapshot.planner {
        tell(planning, &mut registry);
    }
    registry
}

/// What a planner thinks, for those who start and stop workers.
fn tell(planning: &Planning, registry: &mut Registry) {
    let each = [
        ("desired_replicas", "Workers that the load wants, by the planner", &planning.desired),
        ("replicas", "Workers that serve a stage or are about to, by the planner", &planning.present),
    ];
    for (name, help, counts) in each {
        let gauges = Family::<StageLabels, Gauge>::default();
        for (stage, count) in counts {
            let count = i64::try_from(*count).unwrap_or(i64::MAX);
            gauges.get_or_create(&StageLabels { stage: stage.as_str() }).set(count);
        }
        registry.register(name, help, gauges);
    }
    let changes = Counter::<u64>::default();
    changes.inc_by(planning.changes);
    registry.register("role_changes", "Workers that the planner had change their role", changes);
}

#[cfg(test)]
mod tests {
    use baton_contract::{
        Name,
        stats::{Queue, Upstream, Worker},
        subject::Stage,
    };
    use prometheus_client::encoding::text::encode;

    use super::*;

    #[test]
    fn queues_and_workers_are_told_with_their_names() {
        let queue = Queue {
            stage: Stage::Decode,
            model: Name::new("m").ok(),
            lane: Name::new("l").unwrap(),
            waiting: 7,
            delivered: 2,
        };
        let worker = Worker {
            worker: "decode-1".into(),
            stage: Stage::Decode,
            roles: Vec::new(),
            models: Vec::new(),
            started_ms: 0,
            at_ms: 0,
            draining: false,
            ended: false,
            slots: 16,
            busy: 3,
            counts: Counts { completion_tokens: 42, ..Counts::default() },
            compute_ms: 1_500,
            engine_batch: 0,
            upstreams: vec![Upstream {
                model: "m".into(),
                url: "http://a:8000".into(),
                up: true,
                limit: 12,
                answered: 9,
                ..Upstream::default()
            }],
            version: String::new(),
        };
        let mut text = String::new();
        let planner = Planning {
            planner: "planner-1".into(),
            at_ms: 0,
            desired: [(Stage::Prefill, 2), (Stage::Decode, 5)].into(),
            present: [(Stage::Prefill, 3), (Stage::Decode, 3)].into(),
            reason: String::new(),
            changes: 4,
            changing: None,
            last: None,
        };
        let snapshot = Snapshot { at_ms: 0, workers: vec![worker], queues: vec![queue], planner: Some(planner) };
        encode(&mut text, &registry(Some(&snapshot))).unwrap();
        for line in [
            "baton_pipeline_up 1",
            "baton_queue_waiting{stage=\"decode\",model=\"m\",lane=\"l\"} 7",
            "baton_worker_busy{stage=\"decode\",worker=\"decode-1\"} 3",
            "baton_worker_completion_tokens_total{stage=\"decode\",worker=\"decode-1\"} 42",
            "baton_worker_compute_seconds_total{stage=\"decode\",worker=\"decode-1\"} 1.5",
            "baton_upstream_up{stage=\"decode\",worker=\"decode-1\",model=\"m\",url=\"http://a:8000\"} 1",
            "baton_upstream_limit{stage=\"decode\",worker=\"decode-1\",model=\"m\",url=\"http://a:8000\"} 12",
            "baton_upstream_answered_total{stage=\"decode\",worker=\"decode-1\",model=\"m\",url=\"http://a:8000\"} 9",
            "baton_desired_replicas{stage=\"decode\"} 5",
            "baton_role_changes_total 4",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
        assert!(!text.contains("baton_upstream_waiting{"), "that is not known of this engine");
    }

    #[test]
    fn of_a_pipeline_that_is_not_heard_of_nothing_old_is_told() {
        let mut text = String::new();
        encode(&mut text, &registry(None)).unwrap();
        assert!(text.contains("baton_pipeline_up 0") && !text.contains("baton_queue_waiting"), "{text}");
    }
}
