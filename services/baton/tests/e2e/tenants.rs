//! Tenants share a lane in turns, each within its own limits.

use std::collections::BTreeSet;

use baton_bus::{Bus, Error, clients::follower::Results};
use baton_contract::{
    envelope::{DecodeTask, PrefillTask},
    outcome::{Code, Outcome, Status},
    subject::Stage,
};
use serde_json::json;
use tokio::time::timeout;

use crate::support::{Ground, PATIENCE, name, streams};

/// Some 60 jobs a second.
const SLOW: [&str; 2] = ["stages.decode.slots=4", "models.sim.sim.decode_s_per_step=0.006"];

async fn submit(bus: &Bus, tenant: &str, jobs: std::ops::Range<usize>) {
    for n in jobs {
        let request = json!({ "id": format!("{tenant}-{n}"), "prompt": "Once upon a time", "max_tokens": 8 });
        bus.submit(&name(tenant), &name("batch"), request.to_string().into_bytes()).await.unwrap();
    }
}

/// What all tenants' jobs came to, in the order in which they ended.
struct Ends(Vec<Outcome>);

impl Ends {
    /// The next `count` results of these tenants, told apart by how their jobs are named.
    async fn of(tenants: &mut [Results], count: usize) -> Self {
        let mut ends = Vec::new();
        while ends.len() < count {
            let next = futures::future::select_all(tenants.iter_mut().map(|results| Box::pin(results.next())));
            ends.push(timeout(PATIENCE, next).await.expect("no result in time").0.unwrap());
        }
        Self(ends)
    }

    /// How many of a tenant's jobs had ended when the last of the `other`'s did.
    fn before_last(&self, tenant: &str, other: &str) -> usize {
        let last = self.0.iter().rposition(|outcome| outcome.tenant.as_str() == other).unwrap();
        self.count(last, tenant)
    }

    /// How many of the first `ends` are a tenant's.
    fn count(&self, ends: usize, tenant: &str) -> usize {
        self.0[..ends].iter().filter(|outcome| outcome.tenant.as_str() == tenant).count()
    }

    fn assert_complete(&self, jobs: usize) {
        let ids: BTreeSet<_> = self.0.iter().map(|outcome| outcome.id.clone()).collect();
        assert_eq!((ids.len(), self.0.len()), (jobs, jobs));
        for outcome in &self.0 {
            assert_eq!(outcome.status, Status::Completed, "{}: {:?}", outcome.id, outcome.error);
        }
    }
}

async fn results<const N: usize>(bus: &Bus, tenants: [&str; N]) -> Vec<Results> {
    let mut results = Vec::new();
    for tenant in tenants {
        results.push(bus.results(&name(tenant)).await.unwrap());
    }
    results
}

/// Waits until all queues together, the waiting jobs included, hold so many.
async fn until(bus: &Bus, what: &str, reached: impl Fn(u64, u64) -> bool) {
    let waits = async {
        loop {
            let queues = bus.queues().await.unwrap();
            let of = |stage| queues.iter().filter(move |queue| queue.stage == stage);
            let requests = of(Stage::Ingest).map(|queue| queue.waiting + queue.delivered).sum();
            let admitted: u64 = queues.iter().map(|queue| queue.waiting + queue.delivered).sum::<u64>() - requests;
            if reached(requests, admitted) {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, waits).await.unwrap_or_else(|_| panic!("{what}"));
}

#[tokio::test]
async fn a_backlog_is_in_no_other_tenants_way_and_survives_who_moves_it() {
    let ground = Ground::sim(&SLOW).await;
    let bus = streams(&ground).await;
    let mut tenants = results(&bus, ["a", "b"]).await;
    let (first, _prefill) = (ground.worker("ingest", "ingest-1").await, ground.worker("prefill", "prefill-1").await);
    submit(&bus, "a", 0..400).await;
    until(&bus, "the backlog was not admitted", |requests, admitted| (requests, admitted) == (0, 400)).await;
    let queued = bus.waiting::<PrefillTask>(Stage::Prefill).await.unwrap().count
        + bus.waiting::<DecodeTask>(Stage::Decode).await.unwrap().count;
    assert!((64..=80).contains(&queued), "{queued} jobs are in the queues, which are to be short");

    // The next takes over without a gap that shows: nothing but the order could tell.
    let _second = ground.worker("ingest", "ingest-2").await;
    let _decode = ground.worker("decode", "decode-1").await;
    submit(&bus, "b", 0..20).await;
    let mut ends = Ends::of(&mut tenants, 30).await;
    first.kill().await;
    ends.0.extend(Ends::of(&mut tenants, 390).await.0);
    ends.assert_complete(420);
    assert!(ends.before_last("a", "b") < 150, "{} jobs of the backlog came first", ends.before_last("a", "b"));
    until(&bus, "something is left", |requests, admitted| (requests, admitted) == (0, 0)).await;
}

#[tokio::test]
async fn turns_follow_the_weights_and_limits_hold() {
    let mut settings = SLOW.to_vec();
    settings.extend(["tenants.a.weight=3", "tenants.c.max_running=2"]);
    let ground = Ground::sim(&settings).await;
    let bus = streams(&ground).await;
    let mut tenants = results(&bus, ["a", "b", "c"]).await;
    for (tenant, jobs) in [("a", 150), ("b", 150), ("c", 10)] {
        submit(&bus, tenant, 0..jobs).await;
    }
    let _ingest = ground.worker("ingest", "ingest-1").await;
    until(&bus, "the backlog was not admitted", |requests, admitted| (requests, admitted) == (0, 310)).await;
    let _prefill = ground.worker("prefill", "prefill-1").await;
    let _decode = ground.worker("decode", "decode-1").await;
    let ends = Ends::of(&mut tenants, 310).await;
    ends.assert_complete(310);
    // The first 64 came before anybody had to wait. Of the next turns, three of four jobs are a's, but for the few of c.
    let (a, b) = (ends.count(160, "a") - ends.count(70, "a"), ends.count(160, "b") - ends.count(70, "b"));
    assert!((2.4..3.6).contains(&(a as f64 / b as f64)), "{a} jobs of a, {b} of b");
}

#[tokio::test]
async fn a_tenant_over_its_limit_is_told_to_try_later_and_the_others_are_not() {
    let ground = Ground::sim(&["limits.tenant_backlog=20", "tenants.a.max_running=1"]).await;
    // The streams get their limits from the pipeline, which the first worker brings.
    let _ingest = ground.worker("ingest", "ingest-1").await;
    let bus = ground.bus().await;
    let mut tenants = results(&bus, ["a", "b"]).await;
    let mut taken = 0;
    // One runs, twenty wait, and as many requests.
    let filled = async {
        while taken < 41 {
            let request = json!({ "id": format!("a-{taken}"), "prompt": "Hello", "max_tokens": 2 });
            match bus.submit(&name("a"), &name("batch"), request.to_string().into_bytes()).await {
                Ok(_) => taken += 1,
                Err(error) => assert!(matches!(error, Error::TryLater { .. }), "{error}"),
            }
        }
    };
    timeout(PATIENCE, filled).await.expect("there was less room");
    until(&bus, "what fits was not admitted", |requests, admitted| (requests, admitted) == (20, 21)).await;
    assert_eq!(bus.waiting_for_turns().await.unwrap(), 20, "more than one runs");
    let more = json!({ "id": "more", "prompt": "Hello" }).to_string().into_bytes();
    let refused = bus.submit(&name("a"), &name("batch"), more).await.unwrap_err();
    assert!(refused.to_string().contains("try again later"), "{refused}");
    let _prefill = ground.worker("prefill", "prefill-1").await;
    let decode = ground.worker("decode", "decode-1").await;
    submit(&bus, "b", 0..15).await;
    Ends::of(&mut tenants[1..], 15).await.assert_complete(15);
    Ends::of(&mut tenants[..1], taken).await.assert_complete(taken);
    decode.drain().await;
}

#[tokio::test]
async fn a_waiting_job_is_cancelled_expires_and_is_not_lost() {
    let ground = Ground::sim(&["tenants.a.max_running=1"]).await;
    let bus = streams(&ground).await;
    let mut tenants = results(&bus, ["a"]).await;
    let _ingest = ground.worker("ingest", "ingest-1").await;
    // One after the other, for ingest works on several at a time.
    let admitted = async |jobs| until(&bus, "a job was not admitted", |_, admitted| admitted == jobs).await;
    for n in 0..3 {
        submit(&bus, "a", n..n + 1).await;
        admitted(n as u64 + 1).await;
    }
    let expiring = json!({ "id": "expiring", "prompt": "Hello", "max_tokens": 2, "deadline": 0.5 });
    bus.submit(&name("a"), &name("batch"), expiring.to_string().into_bytes()).await.unwrap();
    admitted(4).await;
    until(&bus, "a request is left", |requests, _| requests == 0).await;
    assert_eq!(bus.waiting_for_turns().await.unwrap(), 3);
    let report = bus.reconcile(false).await.unwrap();
    assert_eq!((report.open, report.waiting), (4, 4), "{report:?}");

    // Nobody has to come for it to end.
    bus.cancel(&name("a"), &"a-1".parse().unwrap()).await.unwrap();
    let ended = Ends::of(&mut tenants, 1).await.0.remove(0);
    assert_eq!((ended.id.as_str(), ended.status), ("a-1", Status::Cancelled));

    let clock = bus.clock();
    let deadline = clock.now_ms().await.unwrap() + 500;
    let passed = async {
        while clock.now_ms().await.unwrap() <= deadline {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, passed).await.unwrap();
    let _prefill = ground.worker("prefill", "prefill-1").await;
    let _decode = ground.worker("decode", "decode-1").await;
    let ends = Ends::of(&mut tenants, 3).await.0;
    let ended = ends.iter().map(|outcome| (outcome.id.as_str(), outcome.status)).collect::<Vec<_>>();
    assert_eq!(ended, [("a-0", Status::Completed), ("a-2", Status::Completed), ("expiring", Status::Expired)]);
    let failure = ends[2].error.as_ref().unwrap();
    assert_eq!((failure.code, failure.message.contains("waited for its turn")), (Code::DeadlineExceeded, true));
    until(&bus, "something is left", |requests, admitted| (requests, admitted) == (0, 0)).await;
}
