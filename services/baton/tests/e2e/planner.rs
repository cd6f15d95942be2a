//! Workers that change their role, by command and by the planner.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use baton_bus::{
    Bus,
    clients::follower::Follower,
    duty::{roles::Answer, stats::Watch},
};
use baton_contract::{outcome::Status, stats::Snapshot, subject::Stage};
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::{
    http::get,
    resume::{Live, TENANT, story, timeless},
    support::{Ground, PATIENCE, Worker, any_result, name},
};

/// How an autoscaler outside is told.
const KEDA: &str = include_str!("../../../../infra/kubernetes/keda.yaml");

/// Three workers that begin as prefill and three that begin as decode, worker-1 to worker-6.
async fn six(ground: &Ground) -> Vec<Worker> {
    let mut workers = Vec::new();
    for (number, role) in (1..).zip(["prefill", "prefill", "prefill", "decode", "decode", "decode"]) {
        workers.push(ground.flexible(role, &format!("worker-{number}")).await);
    }
    workers
}

async fn role(ground: &Ground, worker: &str, role: &str) -> Value {
    let output = ground.baton(&["role", worker, role, "--json"]).await;
    let (said, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    serde_json::from_str(&said).unwrap_or_else(|_| panic!("{worker} {role}: {said}{error}"))
}

#[tokio::test]
async fn all_roles_swapped_under_running_jobs_lose_nothing_and_change_no_token() {
    let settings = ["models.sim.sim.decode_s_per_step=0.005", "models.sim.sim.prefill_s_per_token=0.001"];
    let ground = Ground::sim(&settings).await;
    let ingest = ground.worker("ingest", "ingest-1").await;
    let mut workers = six(&ground).await;
    let bus = ground.bus().await;
    let requests = |prefix: &str| -> Vec<Value> { (0..9).map(|n| story(&format!("{prefix}-{n}"), n, 400)).collect() };
    let mut undisturbed = Live::submit(&bus, &requests("undisturbed")).await;
    let undisturbed = undisturbed.end().await;

    let mut live = Live::submit(&bus, &requests("moved")).await;
    live.until(15, 40).await;
    let swaps = async {
        for (to_decode, to_prefill) in [("worker-1", "worker-4"), ("worker-2", "worker-5"), ("worker-3", "worker-6")] {
            let switched = json!({ "answer": "switched", "from": "prefill", "to": "decode" });
            assert_eq!(role(&ground, to_decode, "decode").await, switched);
            let switched = json!({ "answer": "switched", "from": "decode", "to": "prefill" });
            assert_eq!(role(&ground, to_prefill, "prefill").await, switched);
        }
    };
    let (moved, ()) = tokio::join!(live.end(), swaps);
    // Whoever began an answer gave it up: each has left decode.
    let now_decode = ["worker-1", "worker-2", "worker-3"];
    for (expected, outcome) in undisturbed.values().zip(moved.values()) {
        assert_eq!(timeless(outcome, "story"), timeless(expected, "story"));
        assert_eq!(outcome.timings.recomputed_tokens, 0);
    }
    let resumed = moved.values().filter(|outcome| outcome.timings.resumed_tokens > 0).count();
    assert!(resumed > 0, "no answer was handed over");

    // They really are what they say.
    let mut after = Live::submit(&bus, &requests("after")).await;
    for (expected, outcome) in undisturbed.values().zip(after.end().await.values()) {
        assert_eq!(timeless(outcome, "story"), timeless(expected, "story"));
        let timings = &outcome.timings;
        assert!(now_decode.contains(&timings.decode_worker.as_str()), "{timings:?}");
        assert!(!now_decode.contains(&timings.prefill_worker.as_str()), "{timings:?}");
    }
    assert!(workers.iter_mut().all(Worker::lives), "a worker was started again");

    // What is asked for in vain.
    assert_eq!(role(&ground, "worker-1", "decode").await, json!({ "answer": "serves", "role": "decode" }));
    let refused = bus.change_role("worker-1", Stage::Ingest).await.unwrap();
    assert!(matches!(&refused, Answer::Refused { reason } if reason.contains("prefill or decode")), "{refused:?}");
    let output = ground.baton(&["role", "ingest-1", "decode"]).await;
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && error.contains("--roles"), "{error}");
    for worker in workers {
        worker.drain().await;
    }
    ingest.drain().await;
}

/// A load that keeps jobs under way.
struct Load {
    bus: Bus,
    follower: Follower,
    watch: Watch,
    sent: usize,
    ended: usize,
    /// What planners have done: who, when and what.
    changes: BTreeSet<(String, u64, Stage)>,
}

impl Load {
    /// Keeps so many jobs of this size under way until the pipeline is as it should be, then lets them end.
    async fn until(&mut self, prompt: usize, max_tokens: usize, arrived: impl Fn(&Snapshot) -> bool) {
        const UNDER_WAY: usize = 60;
        let reached = async {
            loop {
                while self.sent - self.ended < UNDER_WAY {
                    let request = json!({
                        "id": format!("job-{}", self.sent),
                        "prompt": format!("{:<prompt$}", format!("Story {}: ", self.sent)),
                        "max_tokens": max_tokens,
                    });
                    self.bus.submit(&name(TENANT), &name("batch"), request.to_string().into_bytes()).await.unwrap();
                    self.sent += 1;
                }
                if arrived(&*self.hear().await) {
                    break;
                }
            }
            while self.ended < self.sent {
                self.hear().await;
            }
        };
        timeout(PATIENCE, reached).await.expect("the planner did not do what it should have done");
    }

    /// Takes the next result, and looks at the pipeline.
    async fn hear(&mut self) -> Arc<Snapshot> {
        let outcome = any_result(&mut self.follower).await;
        assert_eq!(outcome.status, Status::Completed, "{:?}", outcome.error);
        self.ended += 1;
        let snapshot = self.watch.snapshot();
        if let Some(planning) = &snapshot.planner
            && let Some(last) = &planning.last
        {
            self.changes.insert((planning.planner.clone(), last.at_ms, last.to));
        }
        snapshot
    }

    /// What one planner has done.
    fn changes_of(&self, planner: &str) -> Vec<Stage> {
        self.changes.iter().filter(|(who, ..)| who == planner).map(|(.., to)| *to).collect()
    }
}

fn serving(snapshot: &Snapshot, stage: Stage) -> usize {
    snapshot.workers.iter().filter(|worker| worker.stage == stage && !worker.draining).count()
}

#[tokio::test]
async fn the_planner_follows_the_load_and_another_goes_on_for_it() {
    let ground = Ground::sim(&[
        "models.sim.sim.decode_s_per_step=0.01",
        "models.sim.sim.prefill_s_per_token=0.001",
        "models.sim.sim.kv_width=16",
        "planner.drain=1s",
    ])
    .await;
    let _ingest = ground.worker("ingest", "ingest-1").await;
    let mut workers = six(&ground).await;
    let planner = ground.process(&["planner", "--name", "planner-1"]).await;
    let _idle = ground.process(&["planner", "--dry-run"]).await;
    let bus = ground.bus().await;
    let (_gateway, url) = ground.gateway(&[]).await;
    get(&url, "/metrics").await;
    let (follower, watch) = (bus.follow(&name(TENANT)).await.unwrap(), bus.watch_stats().await.unwrap());
    let mut load = Load { bus, follower, watch, sent: 0, ended: 0, changes: BTreeSet::new() };

    // 0.4 s of prefill and next to none of decode.
    load.until(400, 8, |seen| serving(seen, Stage::Prefill) >= 5).await;
    let changes = load.changes_of("planner-1");
    assert!(!changes.is_empty() && changes.iter().all(|to| *to == Stage::Prefill), "{changes:?}");
    let top = ground.baton(&["top", "--once"]).await;
    assert!(String::from_utf8_lossy(&top.stdout).contains("planner: wants "), "{top:?}");
    let metrics = get(&url, "/metrics").await.text();
    for stage in ["prefill", "decode"] {
        let metric = format!("baton_desired_replicas{{stage=\"{stage}\"}}");
        assert!(metrics.contains(&format!("\n{metric} ")), "{metrics}");
        assert!(KEDA.contains(&format!("query: max({metric})\n")), "the example for KEDA asks for another metric");
    }

    // Its successor waits until it is not heard of any more, then acts.
    planner.kill().await;
    let successor = ground.process(&["planner", "--name", "planner-2"]).await;
    let acts = |seen: &Snapshot| seen.planner.as_ref().is_some_and(|planner| planner.planner == "planner-2");
    load.until(16, 100, |seen| acts(seen) && serving(seen, Stage::Decode) >= 4).await;
    let changes = load.changes_of("planner-2");
    // The last may not have been told when it shows.
    assert!(changes.len() >= 2 && changes.iter().all(|to| *to == Stage::Decode), "{changes:?}");
    assert!(workers.iter_mut().all(Worker::lives), "a worker was started again");
    let drained = timeout(Duration::from_secs(60), successor.drain());
    drained.await.expect("the planner did not stop");
}
