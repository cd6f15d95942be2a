//! Which of the waiting jobs come first.

use baton_bus::Bus;
use baton_contract::{
    envelope::{DecodeTask, PrefillTask, Task},
    outcome::Status,
    subject::Stage,
};
use serde_json::json;
use tokio::time::timeout;

use crate::support::{Ground, PATIENCE, any_result, name, streams};

const ONE_SLOT: [&str; 5] = [
    "stages.ingest.slots=1",
    "stages.prefill.slots=1",
    "stages.decode.slots=1",
    "models.sim.sim.prefill_s_per_token=0.0005",
    "models.sim.sim.decode_s_per_step=0.005",
];

async fn submit(bus: &Bus, lane: &str, jobs: usize) {
    for n in 0..jobs {
        let request = json!({ "id": format!("{lane}-{n}"), "prompt": "Once upon a time", "max_tokens": 4 });
        bus.submit(&name("acme"), &name(lane), request.to_string().into_bytes()).await.unwrap();
    }
}

async fn until_waiting<T: Task>(bus: &Bus, stage: Stage, jobs: u64) {
    let reached = async {
        while bus.waiting::<T>(stage).await.unwrap().count != jobs {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, reached).await.unwrap_or_else(|_| panic!("{jobs} jobs did not reach {stage}"));
}

#[tokio::test]
async fn urgent_jobs_pass_a_backlog() {
    let ground = Ground::sim(&ONE_SLOT).await;
    let bus = ground.bus().await;
    let _ingest = ground.worker("ingest", "ingest-1").await;
    let mut follower = bus.follow(&name("acme")).await.unwrap();
    submit(&bus, "batch", 30).await;
    until_waiting::<PrefillTask>(&bus, Stage::Prefill, 30).await;
    let _prefill = ground.worker("prefill", "prefill-1").await;
    let _decode = ground.worker("decode", "decode-1").await;
    any_result(&mut follower).await;
    submit(&bus, "interactive", 14).await;
    let (mut batch, mut interactive) = (1, 0);
    while interactive < 14 {
        let outcome = any_result(&mut follower).await;
        assert_eq!(outcome.status, Status::Completed);
        if outcome.id.as_str().starts_with("batch") { batch += 1 } else { interactive += 1 }
    }
    assert!(batch < 12, "{batch} jobs of the backlog came first");
    for _ in batch..30 {
        any_result(&mut follower).await;
    }
}

#[tokio::test]
async fn a_lane_behind_a_full_one_has_its_share() {
    let ground = Ground::sim(&ONE_SLOT).await;
    let bus = streams(&ground).await;
    let mut follower = bus.follow(&name("acme")).await.unwrap();
    submit(&bus, "batch", 10).await;
    submit(&bus, "interactive", 60).await;
    let _ingest = ground.worker("ingest", "ingest-1").await;
    let _prefill = ground.worker("prefill", "prefill-1").await;
    until_waiting::<DecodeTask>(&bus, Stage::Decode, 70).await;
    let _decode = ground.worker("decode", "decode-1").await;
    let mut batch = Vec::new();
    for n in 0..64 {
        let outcome = any_result(&mut follower).await;
        assert_eq!(outcome.status, Status::Completed);
        if outcome.id.as_str().starts_with("batch") {
            batch.push(n);
        }
    }
    // One of eight.
    assert_eq!(batch.len(), 8, "{batch:?}");
    assert!(batch.windows(2).all(|pair| pair[1] - pair[0] == 8), "{batch:?}");
}
