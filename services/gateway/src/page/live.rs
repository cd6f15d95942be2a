//! The pipeline as it is now, told to every page that is open: one watch and one text a second, however many pages there are.

use std::{
    collections::{HashMap, VecDeque},
    convert::Infallible,
    sync::{Arc, Weak},
    time::Duration,
};

use axum::{
    body::Body,
    http::{
        HeaderValue,
        header::{CACHE_CONTROL, CONTENT_TYPE},
    },
    response::Response,
};
use baton_bus::{Bus, duty::stats::Watch, provision::settings::Full};
use baton_contract::{
    stats::{Counts, Snapshot},
    subject::Stage,
};
use bytes::Bytes;
use futures::stream;
use serde_json::json;
use tokio::{
    sync::{Mutex, watch},
    time::{sleep, timeout},
};
use tokio_util::task::AbortOnDropHandle;

use crate::{Facts, State};

/// Rates are means over this many seconds: calm enough to read, fast enough to see.
const MEAN: usize = 3;
/// Shares and ratios are over this many seconds.
const SHARES: usize = 60;
/// A stream that has nothing to tell says so, which also shows whether anybody still listens.
const SIGN_OF_LIFE: Duration = Duration::from_secs(10);
/// Between two looks whether the broker has room.
const PROBLEM_LOOK: Duration = Duration::from_secs(10);

/// What all pages share. It looks at the pipeline while there is a page.
#[derive(Clone, Debug, Default)]
pub(super) struct Live(Arc<Mutex<Weak<Broadcast>>>);

/// A watch and the events made of it; the last page that lets go of it ends it.
#[derive(Debug)]
struct Broadcast {
    events: watch::Receiver<Bytes>,
    _task: AbortOnDropHandle<()>,
}

impl Live {
    /// A stream of server-sent events: how the pipeline is, now and every second. A slow reader misses some.
    pub(super) async fn follow(&self, state: &State) -> Result<Response, baton_bus::Error> {
        let broadcast = self.broadcast(state).await?;
        let mut events = broadcast.events.clone();
        events.mark_changed();
        let closing = state.closing.clone();
        let frames = stream::unfold((broadcast, events), move |(broadcast, mut events)| {
            let closing = closing.clone();
            async move {
                let news = tokio::select! {
                    news = timeout(SIGN_OF_LIFE, events.changed()) => news,
                    () = closing.cancelled() => return None,
                };
                let frame = match news {
                    Ok(Ok(())) => events.borrow_and_update().clone(),
                    Ok(Err(_)) => return None,
                    Err(_) => Bytes::from_static(b": nothing new\n\n"),
                };
                Some((Ok::<_, Infallible>(frame), (broadcast, events)))
            }
        });
        let mut response = Response::new(Body::from_stream(frames));
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
        Ok(response)
    }

    async fn broadcast(&self, state: &State) -> Result<Arc<Broadcast>, baton_bus::Error> {
        let mut shared = self.0.lock().await;
        if let Some(broadcast) = shared.upgrade() {
            return Ok(broadcast);
        }
        let watch = state.bus.watch_stats().await?;
        let mut teller = Teller::new(state.facts.clone());
        let (sender, events) = watch::channel(teller.event(watch.snapshot(), None));
        let task = AbortOnDropHandle::new(tokio::spawn(tell(state.bus.clone(), watch, teller, sender)));
        let broadcast = Arc::new(Broadcast { events, _task: task });
        *shared = Arc::downgrade(&broadcast);
        Ok(broadcast)
    }
}

async fn tell(bus: Bus, mut snapshots: Watch, mut teller: Teller, events: watch::Sender<Bytes>) {
    let (noticed, problem) = watch::channel(None);
    let look_for_problems = async {
        loop {
            noticed.send_replace(problem_of(&bus).await);
            sleep(PROBLEM_LOOK).await;
        }
    };
    let follow_snapshots = async {
        loop {
            let snapshot = snapshots.next().await;
            let problem = *problem.borrow();
            events.send_replace(teller.event(snapshot, problem));
        }
    };
    // Apart from each other, since a broker in trouble takes long to answer.
    tokio::join!(look_for_problems, follow_snapshots);
}

/// What keeps jobs from ending whatever the workers do, in words.
async fn problem_of(bus: &Bus) -> Option<&'static str> {
    // A broker that does not answer shows by the missing events.
    match bus.full(bus.room().await.ok()?).await? {
        Full::Limit { .. } => {
            Some("JetStream has used nearly all the storage that it may use; at its limit, jobs wait.")
        }
        Full::Refuses { .. } => {
            Some("The broker stores nothing: its disk or JetStream's limit is full. Jobs wait until it has room.")
        }
    }
}

/// Makes events of snapshots, with what takes several of them to know.
struct Teller {
    facts: Arc<Facts>,
    /// The last few, the newest last.
    past: VecDeque<Arc<Snapshot>>,
    /// What each process had counted when it was last heard of.
    counted: HashMap<(Stage, String, u64), Counts>,
    /// What was counted in each of the last seconds.
    seconds: VecDeque<Shares>,
}

/// What prompts and their KV caches came to.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Shares {
    prompt_tokens: u64,
    cached_tokens: u64,
    kv_raw_bytes: u64,
    kv_put_bytes: u64,
}

impl Teller {
    fn new(facts: Arc<Facts>) -> Self {
        Self { facts, past: VecDeque::new(), counted: HashMap::new(), seconds: VecDeque::new() }
    }

    fn event(&mut self, snapshot: Arc<Snapshot>, problem: Option<&'static str>) -> Bytes {
        let earlier = self.past.front().cloned().unwrap_or_default();
        let rates = snapshot.rates(&earlier);
        self.count(&snapshot);
        let shares = self.seconds.iter().fold(Shares::default(), |all, second| Shares {
            prompt_tokens: all.prompt_tokens + second.prompt_tokens,
            cached_tokens: all.cached_tokens + second.cached_tokens,
            kv_raw_bytes: all.kv_raw_bytes + second.kv_raw_bytes,
            kv_put_bytes: all.kv_put_bytes + second.kv_put_bytes,
        });
        let event = json!({
            "root": self.facts.root,
            "lanes": self.facts.lanes,
            "at_ms": snapshot.at_ms,
            "problem": problem,
            "workers": snapshot.workers,
            "queues": snapshot.queues,
            "rates": rates,
            "reuse": { "prompt_tokens": shares.prompt_tokens, "cached_tokens": shares.cached_tokens },
            "packed": { "kv_raw_bytes": shares.kv_raw_bytes, "kv_put_bytes": shares.kv_put_bytes },
        });
        self.past.push_back(snapshot);
        if self.past.len() > MEAN {
            self.past.pop_front();
        }
        format!("data: {event}\n\n").into()
    }

    /// Notes what was counted since the last snapshot by the stages that compute prompts.
    fn count(&mut self, snapshot: &Snapshot) {
        let mut second = Shares::default();
        let mut counted = HashMap::with_capacity(snapshot.workers.len());
        for worker in snapshot.workers.iter().filter(|worker| worker.stage != Stage::Ingest) {
            let key = (worker.stage, worker.worker.clone(), worker.started_ms);
            let now = worker.counts;
            // What a worker did before this gateway looked at it is of no second.
            let then = self.counted.get(&key).copied().unwrap_or(now);
            second.prompt_tokens += now.prompt_tokens.saturating_sub(then.prompt_tokens);
            second.cached_tokens += now.cached_tokens.saturating_sub(then.cached_tokens);
            second.kv_raw_bytes += now.kv_raw_bytes.saturating_sub(then.kv_raw_bytes);
            second.kv_put_bytes += now.kv_put_bytes.saturating_sub(then.kv_put_bytes);
            counted.insert(key, now);
        }
        self.counted = counted;
        self.seconds.push_back(second);
        if self.seconds.len() > SHARES {
            self.seconds.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use baton_contract::{Name, stats::Worker};

    use super::*;

    fn seen(at_ms: u64, prompt_tokens: u64, cached_tokens: u64) -> Arc<Snapshot> {
        let worker = Worker {
            worker: "prefill-1".into(),
            stage: Stage::Prefill,
            roles: vec![Stage::Prefill],
            models: Vec::new(),
            started_ms: 1,
            at_ms,
            draining: false,
            ended: false,
            slots: 1,
            busy: 0,
            counts: Counts { prompt_tokens, cached_tokens, ..Counts::default() },
            compute_ms: 0,
            engine_batch: 0,
            upstreams: Vec::new(),
            version: String::new(),
        };
        Arc::new(Snapshot { at_ms, workers: vec![worker], ..Snapshot::default() })
    }

    fn read(event: &Bytes) -> serde_json::Value {
        let text = std::str::from_utf8(event).unwrap();
        serde_json::from_str(text.strip_prefix("data: ").unwrap().strip_suffix("\n\n").unwrap()).unwrap()
    }

    #[test]
    fn rates_are_of_seconds_and_shares_of_a_minute_and_neither_counts_what_was_before() {
        let name = |text| Name::new(text).unwrap();
        let (models, lanes) = (vec![name("sim")], vec![name("batch")]);
        let (stages, engines) = (Vec::new(), Default::default());
        let facts = Facts { root: name("baton"), models, engines, default_model: name("sim"), lanes, stages };
        let mut teller = Teller::new(Arc::new(facts));
        let first = read(&teller.event(seen(1_000, 1_000_000, 900_000), None));
        assert_eq!(first["rates"]["prefill"]["prompt_tokens"], 0.0);
        assert_eq!(first["reuse"]["prompt_tokens"], 0);
        let second = read(&teller.event(seen(3_000, 1_000_400, 900_100), None));
        assert_eq!(second["rates"]["prefill"]["prompt_tokens"], 200.0);
        assert_eq!(second["reuse"]["cached_tokens"], 100);
        for second in 1..=SHARES as u64 {
            teller.event(seen(3_000 + 1_000 * second, 1_000_400, 900_100), None);
        }
        let last = read(&teller.event(seen(70_000, 1_000_410, 900_100), None));
        assert_eq!((&last["reuse"]["prompt_tokens"], &last["reuse"]["cached_tokens"]), (&json!(10), &json!(0)));
    }
}
