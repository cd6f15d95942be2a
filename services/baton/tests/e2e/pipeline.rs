//! The pipeline's answers are those of the one-process engine, and its workers share the work.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use baton_bus::clients::follower::Event;
use baton_contract::outcome::{Outcome, Status};
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::{
    seaweed::Seaweed,
    support::{self, BATON, Ground, PATIENCE, job_id, name},
};

const MAX_TOKENS: u32 = 32;

/// Every reference prompt, greedy and with a seed.
fn requests() -> Vec<Value> {
    let greedy = support::reference_requests(MAX_TOKENS);
    let seeded = greedy.iter().cloned().map(|mut request| {
        request["id"] = format!("{}-seeded", request["id"].as_str().unwrap()).into();
        request["seed"] = 7.into();
        request["temperature"] = 0.9.into();
        request["top_p"] = 0.95.into();
        request
    });
    let seeded: Vec<Value> = seeded.collect();
    greedy.into_iter().chain(seeded).collect()
}

/// What the engine answers in one process.
fn one_process(requests: &[Value]) -> BTreeMap<String, Outcome> {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("requests.jsonl");
    std::fs::write(&file, support::lines(requests)).unwrap();
    support::provisioned();
    let output = std::process::Command::new(BATON).args(["run", "--json", "--jsonl"]).arg(&file).output().unwrap();
    support::outcomes(&output).into_iter().map(|outcome| (outcome.id.to_string(), outcome)).collect()
}

fn assert_same(expected: &BTreeMap<String, Outcome>, outcomes: &[Outcome], place: &str) {
    for outcome in outcomes {
        let expected = &expected[outcome.id.as_str()];
        assert_eq!(outcome.status, Status::Completed, "{place}, {}: {:?}", outcome.id, outcome.error);
        assert_eq!(outcome.tokens, expected.tokens, "{place}, {}: {:?}", outcome.id, outcome.text);
        assert_eq!(outcome.text, expected.text, "{place}, {}", outcome.id);
        assert_eq!(outcome.finish_reason, expected.finish_reason, "{place}, {}", outcome.id);
        assert_eq!(outcome.timings.recomputed_tokens, 0, "{place}, {}: the KV cache was not used", outcome.id);
    }
}

#[tokio::test]
async fn answers_are_those_of_one_process_with_every_codec_and_store() {
    let requests = requests();
    let expected = one_process(&requests);
    assert_eq!(expected.len(), requests.len());
    let seaweed = Seaweed::start().await;
    for codec in ["raw", "lossless"] {
        let setting = format!("store.codec={codec}");
        let ground = Ground::new(&[&setting]).await;
        let workers = ground.workers().await;
        let outcomes = ground.submit_all(&requests).await;
        assert_same(&expected, &outcomes, &format!("{codec}, local directory"));
        let stored: u64 = outcomes.iter().map(|outcome| outcome.timings.kv_stored_bytes).sum();
        let raw: u64 = outcomes.iter().map(|outcome| outcome.timings.kv_raw_bytes).sum();
        assert_eq!(codec == "lossless", stored < raw * 3 / 4, "{codec}: {stored} of {raw} bytes");
        for worker in workers {
            worker.drain().await;
        }

        let url = format!("store.url={}", seaweed.url(codec));
        let ground = Ground::new(&[&setting, &url]).await.environment(seaweed.vars());
        let _workers = ground.workers().await;
        assert_same(&expected, &ground.submit_all(&requests).await, &format!("{codec}, S3"));
    }
}

#[tokio::test]
async fn workers_share_jobs_each_runs_once_and_more_join_any_time() {
    let ground = Ground::sim(&[
        "models.sim.sim.prefill_s_per_token=0.001",
        "models.sim.sim.decode_s_per_step=0.01",
        "stages.decode.slots=4",
    ])
    .await;
    let mut workers = vec![ground.worker("ingest", "ingest-1").await];
    for prefill in ["prefill-1", "prefill-2"] {
        workers.push(ground.worker("prefill", prefill).await);
    }
    for decode in ["decode-1", "decode-2"] {
        workers.push(ground.worker("decode", decode).await);
    }
    let bus = ground.bus().await;
    let (tenant, lane) = (name("acme"), name("batch"));
    let mut follower = bus.follow(&tenant).await.unwrap();
    let mut pending = HashSet::new();
    for number in 0..40 {
        if number == 20 {
            // The third decode worker comes while the others work.
            workers.push(ground.worker("decode", "decode-3").await);
        }
        let id = format!("job-{number}");
        let request = json!({ "id": id, "prompt": format!("prompt number {number}"), "max_tokens": 60 });
        bus.submit(&tenant, &lane, request.to_string().into_bytes()).await.unwrap();
        pending.insert(job_id(&id));
    }
    let (mut prefills, mut decodes, mut ends) = (BTreeSet::new(), BTreeSet::new(), 0);
    while !pending.is_empty() {
        let event = timeout(PATIENCE, follower.next(&pending)).await.expect("no result in time").unwrap();
        if let Event::Result(outcome) = event {
            pending.remove(&outcome.id);
            ends += 1;
            assert_eq!(outcome.status, Status::Completed, "{:?}", outcome.error);
            assert_eq!(outcome.tokens.len(), 60);
            let timings = &outcome.timings;
            assert_eq!((timings.prefill_attempt, timings.decode_attempt), (1, 1), "{} ran twice", outcome.id);
            prefills.insert(timings.prefill_worker.clone());
            decodes.insert(timings.decode_worker.clone());
        }
    }
    assert_eq!(ends, 40);
    assert_eq!(prefills.len(), 2, "{prefills:?}");
    assert_eq!(decodes.len(), 3, "{decodes:?}");
}
