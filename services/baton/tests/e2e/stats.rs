//! What workers tell of themselves, and what a watch makes of it.

use std::sync::Arc;

use baton_bus::duty::stats::Watch;
use baton_contract::{
    stats::{Snapshot, Worker},
    subject::Stage,
};
use serde_json::json;
use tokio::time::{Duration, Instant, timeout};

use crate::support::{self, Ground, PATIENCE, job_id, name};

/// The first look of which `holds` is true.
async fn look(watch: &mut Watch, what: &str, holds: impl Fn(&Snapshot) -> bool) -> Arc<Snapshot> {
    let mut last = watch.snapshot();
    let looking = async {
        while !holds(&last) {
            last = watch.next().await;
        }
    };
    if timeout(PATIENCE, looking).await.is_err() {
        panic!("{what}: {:#?}", watch.snapshot());
    }
    last
}

fn worker(snapshot: &Snapshot, stage: Stage) -> &Worker {
    snapshot.workers.iter().find(|worker| worker.stage == stage).unwrap()
}

#[tokio::test]
async fn queues_and_workers_are_seen_and_what_workers_count_is_what_results_say() {
    let ground = Ground::sim(&["store.chunk_tokens=32", "stages.decode.slots=3"]).await;
    let ingest = ground.worker("ingest", "in.gest > 1").await;
    let bus = ground.bus().await;
    let (tenant, lane) = (name("acme"), name("batch"));
    let mut follower = bus.follow(&tenant).await.unwrap();
    let mut watch = bus.watch_stats().await.unwrap();
    let beginning = "the same long beginning of every prompt ".repeat(5);
    for number in 0..6 {
        let prompt = format!("{beginning}{number}");
        let request = json!({ "id": format!("job-{number}"), "prompt": prompt, "max_tokens": 5 });
        bus.submit(&tenant, &lane, request.to_string().into_bytes()).await.unwrap();
    }
    // Nobody has served prefill yet: it has no consumer, and its messages wait all the same.
    let waiting = look(&mut watch, "six jobs wait", |seen| seen.depth(Stage::Prefill) == (6, 0)).await;
    assert_eq!(waiting.depth(Stage::Ingest), (0, 0));
    let queue = waiting.queues.iter().find(|queue| queue.stage == Stage::Prefill).unwrap();
    assert_eq!((queue.model.as_ref(), &queue.lane), (Some(&name("sim")), &lane));
    let counted = |seen: &Snapshot| seen.workers.iter().any(|worker| worker.counts.jobs_done == 6);
    let read = look(&mut watch, "ingest has told", counted).await;
    assert_eq!(worker(&read, Stage::Ingest).worker, "in.gest > 1");

    let prefill = ground.worker("prefill", "prefill-1").await;
    let decode = ground.worker("decode", "decode-1").await;
    let mut outcomes = Vec::new();
    for number in 0..6 {
        outcomes.push(support::result(&mut follower, &job_id(&format!("job-{number}"))).await);
    }
    let sum = |of: fn(&baton_contract::outcome::Outcome) -> u64| outcomes.iter().map(of).sum::<u64>();
    let prompts = sum(|outcome| u64::from(outcome.usage.prompt_tokens));
    let cached = sum(|outcome| u64::from(outcome.usage.cached_tokens));
    let completions = sum(|outcome| u64::from(outcome.usage.completion_tokens));
    assert!(cached > 0 && completions == 30);
    let ended = |seen: &Snapshot| {
        let done = |stage| seen.workers.iter().any(|worker| worker.stage == stage && worker.counts.jobs_done == 6);
        done(Stage::Prefill) && done(Stage::Decode) && seen.workers.iter().all(|worker| worker.busy == 0)
    };
    let done = look(&mut watch, "all is done", ended).await;
    assert!(done.queues.iter().all(|queue| queue.waiting + queue.delivered == 0), "{:?}", done.queues);
    let [ingested, prefilled, decoded] = Stage::ALL.map(|stage| worker(&done, stage));
    assert_eq!(ingested.counts.prompt_tokens, prompts);
    assert_eq!((prefilled.counts.prompt_tokens, prefilled.counts.cached_tokens), (prompts, cached));
    assert_eq!((decoded.counts.completion_tokens, decoded.counts.prompt_tokens), (completions, 0));
    assert_eq!(decoded.counts.jobs_failed, 0);
    assert_eq!((decoded.slots, decoded.models.as_slice()), (3, &[name("sim")][..]));
    assert!(decoded.counts.kv_get_bytes > 0 && decoded.counts.kv_put_bytes == 0);
    // What another prompt had stored is handed to the store again at most, and not written.
    let stored = sum(|outcome| outcome.timings.kv_stored_bytes);
    assert!((1..=stored).contains(&prefilled.counts.kv_put_bytes), "{} of {stored}", prefilled.counts.kv_put_bytes);
    assert_eq!(prefilled.counts.kv_raw_bytes, sum(|outcome| outcome.timings.kv_raw_bytes));

    // Who stops says so; nobody waits until it is forgotten.
    let began = Instant::now();
    for worker in [ingest, prefill, decode] {
        worker.drain().await;
    }
    let drained = began.elapsed();
    look(&mut watch, "nobody is left", |seen| seen.workers.is_empty()).await;
    assert!(began.elapsed() < drained + Duration::from_secs(4), "the workers' last words were not heard");
}
