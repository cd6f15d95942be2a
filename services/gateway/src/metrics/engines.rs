//! Foreign engines as the workers that ask them tell of them.

use baton_contract::stats::{Snapshot, Upstream};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Labels {
    stage: &'static str,
    worker: String,
    model: String,
    /// Without secrets.
    url: String,
}

/// A metric's name, what it tells, and where that is found.
type Told<T> = (&'static str, &'static str, fn(&Upstream) -> T);

const GAUGES: [Told<Option<u64>>; 4] = [
    ("up", "Whether an instance of a foreign engine takes requests", |engine| Some(engine.up.into())),
    ("limit", "Requests that a worker may have at an instance", |engine| Some(engine.limit)),
    ("running", "Requests that a worker has at an instance", |engine| Some(engine.running)),
    ("waiting", "Requests of everybody that wait inside an engine, where it tells", |engine| engine.waiting),
];

const COUNTERS: [Told<u64>; 5] = [
    ("answered", "Requests that an instance answered to their end", |engine| engine.answered),
    ("put_off", "Requests that an instance had no room for (429, 503)", |engine| engine.put_off),
    ("failed", "Requests that an instance refused or did not answer", |engine| engine.failed),
    ("transfers", "KV caches of prompts that came from another instance", |engine| engine.transfers),
    ("transfer_fallbacks", "Prompts computed again because their KV cache did not come", |engine| {
        engine.transfer_fallbacks
    }),
];

/// What the workers say of the engines that they ask.
pub(super) fn tell(snapshot: &Snapshot, registry: &mut Registry) {
    let gauges = GAUGES.map(|_| Family::<Labels, Gauge>::default());
    let counters = COUNTERS.map(|_| Family::<Labels, Counter>::default());
    let mut any = false;
    for worker in &snapshot.workers {
        for engine in &worker.upstreams {
            any = true;
            let labels = Labels {
                stage: worker.stage.as_str(),
                worker: worker.worker.clone(),
                model: engine.model.clone(),
                url: engine.url.clone(),
            };
            for ((_, _, read), gauge) in GAUGES.iter().zip(&gauges) {
                if let Some(value) = read(engine) {
                    gauge.get_or_create(&labels).set(i64::try_from(value).unwrap_or(i64::MAX));
                }
            }
            for ((_, _, read), counter) in COUNTERS.iter().zip(&counters) {
                counter.get_or_create(&labels).inc_by(read(engine));
            }
        }
    }
    // Most pipelines have none, and their pages stay as they are.
    if !any {
        return;
    }
    for ((name, help, _), gauge) in GAUGES.into_iter().zip(gauges) {
        registry.register(format!("upstream_{name}"), help, gauge);
    }
    for ((name, help, _), counter) in COUNTERS.into_iter().zip(counters) {
        registry.register(format!("upstream_{name}"), help, counter);
    }
}
