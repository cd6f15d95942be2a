//! The stage loop: claims, redelivery, attempts, shutdown.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use baton_bus::{
    Bus, HeaderMap,
    duty::stats::{Identity, Upstreams},
    inspect::why::WaitReason,
    stage::{self, Handler, Next, Retry, StageError, Work, admission::Admitted, pull},
};
use baton_contract::{
    envelope::{self, PrefillTask},
    job::Answer,
    outcome::{Code, Failure, Status, Timings},
    record::{self, State},
    stats::Upstream,
    subject::Stage,
};
use tokio::{sync::Notify, time::timeout};
use tokio_util::sync::CancellationToken;

use crate::support::{Broker, PATIENCE, job, job_id, name, prefill, result};

fn task(id: &str) -> PrefillTask {
    PrefillTask { job: job(id), timings: Timings::default(), ask: None }
}

async fn publish(bus: &Bus, id: &str) {
    let task = task(id);
    let subject = bus.layout().prefill(&task.job.model, &task.job.lane, &task.job.tenant);
    let payload = envelope::encode(&task).unwrap();
    bus.begin(subject, &task.job, record::Source::KEPT, Default::default(), payload).await.unwrap();
}

fn options(max_deliver: u64) -> pull::Options {
    prefill(max_deliver, Duration::from_secs(2))
}

fn finish(task: &PrefillTask) -> Next {
    Next::Finish(Box::new(task.job.completed(vec![Answer::default()], Timings::default())))
}

/// Fails a number of times, then finishes.
struct Failing {
    times: u64,
    retry: Retry,
    seen: Arc<AtomicU64>,
}

impl Handler<PrefillTask> for Failing {
    async fn handle(&self, work: Work<PrefillTask>) -> Result<Next, StageError> {
        if self.seen.fetch_add(1, Ordering::SeqCst) < self.times {
            return Err(StageError::new(self.retry, Code::Internal, "it broke"));
        }
        Ok(finish(&work.task))
    }
}

#[tokio::test]
async fn a_job_is_tried_again_until_its_attempts_are_used_up() {
    let broker = Broker::start().await;
    let bus = broker.provisioned().await;
    let mut follower = bus.follow(&name("acme")).await.unwrap();
    for (id, retry, times, max_deliver, status, handled) in [
        ("heals", Retry::Elsewhere, 2, 3, Status::Completed, 3),
        ("never-heals", Retry::Elsewhere, u64::MAX, 3, Status::Failed, 3),
        ("not-its-fault", Retry::Backoff, 2, 1, Status::Completed, 3),
    ] {
        let seen = Arc::new(AtomicU64::new(0));
        let shutdown = CancellationToken::new();
        let handler = Failing { times, retry, seen: seen.clone() };
        let running = tokio::spawn({
            let (bus, shutdown) = (bus.clone(), shutdown.clone());
            async move {
                stage::run(&bus, options(max_deliver), "w".into(), handler, CancellationToken::new(), shutdown).await
            }
        });
        publish(&bus, id).await;
        let outcome = result(&mut follower, &job_id(id)).await;
        assert_eq!(outcome.status, status);
        assert_eq!(seen.load(Ordering::SeqCst), handled);
        shutdown.cancel();
        running.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_job_says_what_it_waits_for() {
    let broker = Broker::start().await;
    let bus = broker.provisioned().await;
    let (jobs, tenant, id) = (bus.jobs().await.unwrap(), name("acme"), job_id("waits"));
    let mut follower = bus.follow(&tenant).await.unwrap();
    let unknown = WaitReason::Ingest { requests: 0, served: true };
    assert_eq!(jobs.wait_reason(&tenant, &id).await, Some(unknown));
    let source = record::Source { sequence: 1, stored_ms: 1 };
    jobs.admit(&tenant, &id, "", source).await.unwrap();
    publish(&bus, "waits").await;
    let queue = WaitReason::Queue {
        stage: Stage::Prefill,
        model: name("m"),
        lane: name("batch"),
        jobs: 1,
        turn: 0,
        served: false,
        engine: None,
    };
    assert_eq!(jobs.wait_reason(&tenant, &id).await, Some(queue));
    let shutdown = CancellationToken::new();
    for (up, served) in [(false, Some("it is down")), (true, None)] {
        let fault = served.map(str::to_owned);
        let engines = [Upstream { model: "m".into(), up, fault, ..Upstream::default() }];
        let identity = Identity {
            worker: "w".into(),
            stage: Stage::Prefill,
            roles: vec![Stage::Prefill],
            models: vec![name("m")],
            slots: 0,
            upstreams: Upstreams(Arc::new(move || engines.to_vec())),
        };
        let asked = bus.telling(identity, &shutdown, jobs.wait_reason(&tenant, &id)).await.unwrap();
        assert_eq!(asked.to_string().contains("it is down"), !up, "{asked}");
        assert!(matches!(asked, WaitReason::Queue { served: true, .. }), "{asked:?}");
    }
    let handler = Failing { times: 2, retry: Retry::Backoff, seen: Arc::default() };
    let running = tokio::spawn({
        let (bus, shutdown) = (bus.clone(), shutdown.clone());
        async move { stage::run(&bus, options(1), "w".into(), handler, CancellationToken::new(), shutdown).await }
    });
    let told = async {
        loop {
            if let Some(WaitReason::Fault { reason, again: false, .. }) = jobs.wait_reason(&tenant, &id).await {
                return reason;
            }
        }
    };
    let reason = timeout(PATIENCE, told).await.expect("the job does not say what it waits for");
    assert!(reason.contains("it broke"), "{reason}");
    assert_eq!(result(&mut follower, &id).await.status, Status::Completed);
    shutdown.cancel();
    running.await.unwrap().unwrap();
    assert_eq!(jobs.wait_reason(&tenant, &id).await, None);
    assert_eq!(jobs.get(&tenant, &id).await.unwrap().unwrap().record.waiting, None);
}

/// Works until it is told to go on, and counts how often it began.
struct Slow {
    began: Arc<AtomicU64>,
    begun: Arc<Notify>,
    go: Arc<Notify>,
}

impl Handler<PrefillTask> for Slow {
    async fn handle(&self, work: Work<PrefillTask>) -> Result<Next, StageError> {
        self.began.fetch_add(1, Ordering::SeqCst);
        self.begun.notify_one();
        self.go.notified().await;
        Ok(finish(&work.task))
    }
}

#[tokio::test]
async fn heartbeats_keep_a_job_and_a_shutdown_hands_it_over() {
    let broker = Broker::start().await;
    let bus = broker.provisioned().await;
    let mut follower = bus.follow(&name("acme")).await.unwrap();
    let (began, begun, go) = (Arc::new(AtomicU64::new(0)), Arc::new(Notify::new()), Arc::new(Notify::new()));
    let start = |worker: &str| {
        let shutdown = CancellationToken::new();
        let handler = Slow { began: began.clone(), begun: begun.clone(), go: go.clone() };
        let (bus, worker, token) = (bus.clone(), worker.to_owned(), shutdown.clone());
        (
            shutdown,
            tokio::spawn(async move {
                stage::run(&bus, options(5), worker, handler, CancellationToken::new(), token).await
            }),
        )
    };
    let (first_shutdown, first) = start("first");
    publish(&bus, "long").await;
    begun.notified().await;
    // More than twice ack_wait: only heartbeats keep the broker from giving the job to somebody else.
    let (second_shutdown, second) = start("second");
    let elsewhere = tokio::time::timeout(Duration::from_secs(5), begun.notified()).await;
    assert!(elsewhere.is_err(), "the job was delivered again although its worker lives");
    // The drain's time is short and the job is not done: it goes back and to the other worker.
    first_shutdown.cancel();
    first.await.unwrap().unwrap();
    begun.notified().await;
    go.notify_one();
    let outcome = result(&mut follower, &job_id("long")).await;
    assert_eq!(outcome.status, Status::Completed);
    assert_eq!(began.load(Ordering::SeqCst), 2);
    // A copy of a message whose job has ended is cleared away without work.
    publish(&bus, "long").await;
    second_shutdown.cancel();
    second.await.unwrap().unwrap();
    assert_eq!(began.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_job_has_one_result_whoever_publishes_another() {
    let broker = Broker::start().await;
    let bus = broker.provisioned().await;
    let jobs = bus.jobs().await.unwrap();
    let PrefillTask { job, timings, .. } = task("twice");
    let answer = |text: &str| vec![Answer { text: text.into(), tokens: vec![1], ..Answer::default() }];
    let first = job.completed(answer("first"), timings.clone());
    let second = job.failed(Failure::new(Code::Internal, "late"), answer("second"), timings);
    assert!(jobs.finish(&first, Default::default()).await.unwrap());
    assert!(!jobs.finish(&second, Default::default()).await.unwrap());
    assert_eq!(jobs.result(&job.tenant, &job.id).await.unwrap(), Some(first));
}

#[tokio::test]
async fn what_a_message_tells_of_its_job_is_believed_only_as_long_as_it_holds() {
    let broker = Broker::start().await;
    let bus = broker.provisioned().await;
    let jobs = bus.jobs().await.unwrap();
    let mut follower = bus.follow(&name("acme")).await.unwrap();
    for id in ["ended", "open"] {
        let task = task(id);
        let job = &task.job;
        let Admitted::Take(admitted) =
            jobs.admit(&job.tenant, &job.id, "", record::Source { sequence: 1, stored_ms: 1 }).await.unwrap()
        else {
            panic!("the job is new")
        };
        let mut headers = HeaderMap::new();
        admitted.carry(&mut headers);
        if id == "ended" {
            jobs.note_end(&job.tenant, &job.id, Status::Cancelled).await.unwrap();
        }
        let subject = bus.layout().prefill(&job.model, &job.lane, &job.tenant);
        bus.begin(subject, job, record::Source::KEPT, headers, envelope::encode(&task).unwrap()).await.unwrap();
    }
    let shutdown = CancellationToken::new();
    let handler = Failing { times: 0, retry: Retry::Never, seen: Arc::default() };
    // One slot: what comes second is taken when the first is settled.
    let options = pull::Options { slots: 1, ..options(5) };
    let running = tokio::spawn({
        let (bus, shutdown) = (bus.clone(), shutdown.clone());
        async move { stage::run(&bus, options, "w".into(), handler, CancellationToken::new(), shutdown).await }
    });
    assert_eq!(result(&mut follower, &job_id("open")).await.status, Status::Completed);
    shutdown.cancel();
    running.await.unwrap().unwrap();
    // Work may begin while the claim is on its way, but comes to nothing without it.
    assert_eq!(jobs.result(&name("acme"), &job_id("ended")).await.unwrap(), None);
    for (id, state) in [("ended", State::Cancelled), ("open", State::Completed)] {
        assert_eq!(jobs.get(&name("acme"), &job_id(id)).await.unwrap().unwrap().record.state, state);
    }
}
