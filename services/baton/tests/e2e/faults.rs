//! What crashes and damage do to a job: nothing that its sender could see.

use std::collections::HashSet;

use baton_bus::{clients::follower::Event, stage::jobs::Jobs};
use baton_contract::{
    JobId, Name,
    outcome::{Outcome, Status},
    record::State,
};
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::{
    dead::destroy,
    support::{self, BATON, Ground, PATIENCE, job_id, name, result},
};

fn request() -> Value {
    json!({
        "id": "story",
        "messages": [{ "role": "user", "content": format!("Continue this story: {}", "The sea was calm. ".repeat(80)) }],
        "max_tokens": 60, "temperature": 0.8, "seed": 11,
    })
}

fn one_process() -> Outcome {
    support::provisioned();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("request.jsonl");
    std::fs::write(&file, support::lines(&[request()])).unwrap();
    let output = std::process::Command::new(BATON).args(["run", "--json", "--jsonl"]).arg(file).output().unwrap();
    support::outcomes(&output).remove(0)
}

async fn until_state(jobs: &Jobs, tenant: &Name, job: &JobId, state: State) {
    let reached = async {
        while jobs.get(tenant, job).await.unwrap().is_none_or(|stored| stored.record.state != state) {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, reached).await.unwrap_or_else(|_| panic!("job {job} did not reach {state:?}"));
}

#[tokio::test]
async fn a_decode_worker_killed_mid_answer_changes_nothing() {
    let expected = one_process();
    let ground = Ground::new(&["stages.decode.ack_wait=2s"]).await;
    let [_ingest, _prefill, decode] = ground.workers().await;
    let bus = ground.bus().await;
    let tenant = name("acme");
    let mut follower = bus.follow(&tenant).await.unwrap();
    bus.submit(&tenant, &name("batch"), request().to_string().into_bytes()).await.unwrap();
    let job = job_id("story");
    let pending = HashSet::from([job.clone()]);
    loop {
        let event = timeout(PATIENCE, follower.next(&pending)).await.expect("no token in time").unwrap();
        match event {
            Event::Delta { delta, .. } if delta.index >= 10 => break,
            Event::Delta { .. } => {}
            ended => panic!("ended before it could be disturbed: {ended:?}"),
        }
    }
    decode.kill().await;
    let _second = ground.worker("decode", "decode-2").await;
    let outcome = result(&mut follower, &job).await;
    assert_eq!(outcome.status, Status::Completed, "{:?}", outcome.error);
    assert_eq!(outcome.tokens, expected.tokens);
    assert_eq!(outcome.timings.decode_worker, "decode-2");
    assert!(outcome.timings.decode_attempt >= 2);
    // The record follows the result.
    until_state(&bus.jobs().await.unwrap(), &tenant, &job, State::Completed).await;
}

#[tokio::test]
async fn damaged_and_missing_chunks_are_computed_again() {
    let expected = one_process();
    let ground = Ground::new(&[]).await;
    let _ingest = ground.worker("ingest", "ingest-1").await;
    let bus = ground.bus().await;
    let (tenant, job) = (name("acme"), job_id("story"));
    let mut follower = bus.follow(&tenant).await.unwrap();
    bus.submit(&tenant, &name("batch"), request().to_string().into_bytes()).await.unwrap();
    let prefill = ground.worker("prefill", "prefill-1").await;
    let jobs = bus.jobs().await.unwrap();
    // A prefill worker that has drained has handed its job on.
    until_state(&jobs, &tenant, &job, State::Prefill).await;
    prefill.drain().await;

    let chunks: Vec<_> = support::files(&ground.store());
    let sizes = expected.usage.prompt_tokens.div_ceil(256) as usize;
    assert_eq!(chunks.len(), sizes, "{chunks:?}");
    assert!(chunks.len() >= 2);
    let mut bytes = std::fs::read(&chunks[0]).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    std::fs::write(&chunks[0], &bytes).unwrap();
    let bytes = std::fs::read(&chunks[1]).unwrap();
    std::fs::write(&chunks[1], &bytes[..bytes.len() - 100]).unwrap();

    let mut decode = ground.worker("decode", "decode-1").await;
    let outcome = result(&mut follower, &job).await;
    assert_eq!(outcome.status, Status::Completed, "{:?}", outcome.error);
    assert_eq!(outcome.tokens, expected.tokens);
    assert!(outcome.timings.recomputed_tokens > 0);
    assert!(decode.lives());
}

#[tokio::test]
async fn a_request_that_comes_again_after_its_record_was_lost_does_not_stay_open() {
    let ground = Ground::sim(&[]).await;
    let _workers = ground.workers().await;
    let bus = ground.bus().await;
    let (tenant, job, jobs) = (name("acme"), job_id("once"), bus.jobs().await.unwrap());
    let mut follower = bus.follow(&tenant).await.unwrap();
    let body = json!({ "id": "once", "prompt": "Hello", "max_tokens": 3 }).to_string().into_bytes();
    bus.submit(&tenant, &name("batch"), body.clone()).await.unwrap();
    let first = result(&mut follower, &job).await;
    until_state(&jobs, &tenant, &job, State::Completed).await;

    // The broker still knows the message that the first request became.
    destroy(&ground, "PURGE.KV_baton_jobs").await;
    bus.submit(&tenant, &name("batch"), body).await.unwrap();
    until_state(&jobs, &tenant, &job, State::Completed).await;
    assert_eq!(result(&mut follower, &job).await, first);
}
