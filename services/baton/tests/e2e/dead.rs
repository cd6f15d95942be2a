//! What ends badly and what gets lost: dead letters, and jobs without a message.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use baton_bus::{
    Bus, HeaderMap,
    stage::{
        self, Handler, Next, Retry, StageError, Work,
        delivery::{Delivery, Settle},
        pull::{self, Receiver},
    },
};
use baton_contract::{
    envelope::{self, DecodeTask, PrefillTask, Task},
    job::{Answer, Job},
    outcome::{Code, Status, Timings, request_digest},
    record::Source,
    sampling::Sampling,
    subject::Stage,
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::Notify,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use crate::support::{self, Ground, PATIENCE, any_result, job_id, name, result, streams};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";

fn job(id: &str) -> Job {
    Job {
        id: job_id(id),
        tenant: name("acme"),
        lane: name("batch"),
        model: name("m"),
        prompt: vec![1, 2],
        max_tokens: 1,
        samples: 1,
        sampling: Sampling { seed: 7, ..Sampling::GREEDY },
        stop: Vec::new(),
        deadline_ms: None,
        metadata: Default::default(),
        request_digest: String::new(),
    }
}

async fn begin(bus: &Bus, id: &str) {
    let task = PrefillTask { job: job(id), timings: Timings::default(), ask: None };
    let mut headers = HeaderMap::new();
    headers.insert("traceparent", format!("00-{TRACE}-b7ad6b7169203331-01"));
    let subject = bus.layout().prefill(&task.job.model, &task.job.lane, &task.job.tenant);
    bus.begin(subject, &task.job, Source::KEPT, headers, envelope::encode(&task).unwrap()).await.unwrap();
}

fn options(max_deliver: u64) -> pull::Options {
    pull::Options {
        stage: Stage::Prefill,
        models: vec![name("m")],
        lanes: vec![name("batch")],
        slots: 2,
        room: None,
        ack_wait: Duration::from_secs(1),
        max_deliver,
        drain: Duration::from_millis(100),
    }
}

/// Runs a prefill worker until the token that it returns is cancelled.
fn work(bus: &Bus, max_deliver: u64, worker: &str, handler: impl Handler<PrefillTask>) -> CancellationToken {
    let (shutdown, bus, worker) = (CancellationToken::new(), bus.clone(), worker.to_owned());
    let stop = shutdown.clone();
    tokio::spawn(async move {
        stage::run(&bus, options(max_deliver), worker, handler, CancellationToken::new(), stop).await
    });
    shutdown
}

async fn letters(ground: &Ground) -> Vec<Value> {
    let output = ground.baton(&["dlq", "ls", "--json"]).await;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Never comes to an end.
struct Poisoned {
    seen: Arc<AtomicU64>,
    begun: Arc<Notify>,
}

impl Handler<PrefillTask> for Poisoned {
    async fn handle(&self, _: Work<PrefillTask>) -> Result<Next, StageError> {
        self.seen.fetch_add(1, Ordering::SeqCst);
        self.begun.notify_one();
        std::future::pending().await
    }
}

/// Admits a request again and again, as workers do that die of it.
struct Dying {
    bus: Bus,
    times: u64,
    done: CancellationToken,
}

impl Receiver for Dying {
    async fn receive(&self, delivery: &Delivery) -> Settle {
        let source = Source { sequence: delivery.sequence, stored_ms: delivery.published_ms };
        let (jobs, digest) = (self.bus.jobs().await.unwrap(), request_digest(delivery.payload()));
        jobs.admit(&name("acme"), &job_id("unlucky"), &digest, source).await.unwrap();
        if delivery.attempt >= self.times {
            self.done.cancel();
        }
        Settle::Nak(None)
    }
}

/// Fails as the job's id says; finishes others.
struct Fails;

impl Handler<PrefillTask> for Fails {
    async fn handle(&self, work: Work<PrefillTask>) -> Result<Next, StageError> {
        let error = |retry, code| Err(StageError::new(retry, code, "it\nbroke"));
        match work.task.job.id.as_str() {
            "breaks" => error(Retry::Never, Code::Internal),
            "breaks-everywhere" => error(Retry::Elsewhere, Code::Internal),
            "refused" => error(Retry::Never, Code::InvalidValue),
            _ => Ok(Next::Finish(Box::new(work.task.job.completed(vec![Answer::default()], Timings::default())))),
        }
    }
}

#[tokio::test]
async fn a_job_that_takes_its_workers_down_ends_as_one_dead_letter_and_can_be_tried_again() {
    let ground = Ground::new(&[]).await;
    let bus = streams(&ground).await;
    let mut follower = bus.follow(&name("acme")).await.unwrap();
    begin(&bus, "poison").await;
    let (seen, begun) = (Arc::new(AtomicU64::new(0)), Arc::new(Notify::new()));
    for worker in ["first", "second"] {
        // A runtime that is shut down takes all with it, like a process that dies.
        let process = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (options, handler) = (bus_options(&ground), Poisoned { seen: seen.clone(), begun: begun.clone() });
        process.spawn(async move {
            let bus = Bus::connect(options).await.unwrap();
            let (broken, shutdown) = (CancellationToken::new(), CancellationToken::new());
            stage::run(&bus, self::options(2), worker.into(), handler, broken, shutdown).await
        });
        timeout(PATIENCE, begun.notified()).await.expect("the job did not come back");
        process.shutdown_background();
    }
    let third = work(&bus, 2, "third", Poisoned { seen: seen.clone(), begun });
    let outcome = result(&mut follower, &job_id("poison")).await;
    assert_eq!(outcome.error.unwrap().code, Code::AttemptsExhausted);
    assert_eq!(seen.load(Ordering::SeqCst), 2, "it met more workers than max_deliver allows");
    third.cancel();

    let found = letters(&ground).await;
    assert_eq!(found.len(), 1, "{found:?}");
    let expected = json!({
        "id": "prefill.acme.poison", "stage": "prefill", "tenant": "acme", "job": "poison", "code": "attempts_exhausted",
        "attempts": 2, "worker": "third", "trace_id": TRACE, "subject": "baton.prefill.m.batch.acme",
    });
    for (key, value) in expected.as_object().unwrap() {
        assert_eq!(&found[0][key], value, "{key}");
    }
    let shown = ground.baton(&["dlq", "show", "poison", "--tenant", "acme", "--json"]).await;
    let shown: Value = serde_json::from_slice(&shown.stdout).unwrap();
    assert_eq!((&shown["request"]["prompt"], &shown["request"]["seed"]), (&json!([1, 2]), &json!(7)));

    let healthy = work(&bus, 2, "healthy", Fails);
    let retried = ground.baton(&["dlq", "retry", "prefill.acme.poison"]).await;
    assert_eq!(String::from_utf8_lossy(&retried.stdout), "poison-retry-1\n");
    assert_eq!(result(&mut follower, &job_id("poison-retry-1")).await.status, Status::Completed);
    assert_eq!(letters(&ground).await, [Value::Null; 0]);
    let again = ground.baton(&["dlq", "retry", "prefill.acme.poison"]).await;
    assert!(!again.status.success(), "a letter was retried twice");
    healthy.cancel();
}

fn bus_options(ground: &Ground) -> baton_bus::Options {
    baton_bus::Options {
        url: ground.server.url().to_owned(),
        credentials: None,
        name: "test".into(),
        layout: baton_contract::subject::Layout::new(name("baton")),
    }
}

#[tokio::test]
async fn what_is_not_the_requests_fault_leaves_a_dead_letter() {
    let ground = Ground::new(&[]).await;
    let bus = streams(&ground).await;
    let mut follower = bus.follow(&name("acme")).await.unwrap();
    let worker = work(&bus, 2, "w", Fails);
    for id in ["breaks", "breaks-everywhere", "refused", "fine"] {
        begin(&bus, id).await;
        result(&mut follower, &job_id(id)).await;
    }
    let attempts: BTreeMap<String, (u64, String)> = letters(&ground)
        .await
        .iter()
        .map(|letter| {
            assert_eq!(letter["message"], "it broke");
            let text = |key: &str| letter[key].as_str().unwrap().to_owned();
            (text("id"), (letter["attempts"].as_u64().unwrap(), text("code")))
        })
        .collect();
    let expected = [("prefill.acme.breaks", 1), ("prefill.acme.breaks-everywhere", 2)];
    assert_eq!(attempts, expected.map(|(id, n)| (id.into(), (n, "internal".into()))).into());
    let dropped = ground.baton(&["dlq", "drop", "--all"]).await;
    assert!(dropped.status.success());
    assert!(letters(&ground).await.is_empty());

    // What nobody can read belongs to no job; it goes back to its queue, and comes again as another message.
    let subject = bus.layout().prefill(&name("m"), &name("batch"), &name("acme"));
    let mut garbage = envelope::encode(&PrefillTask { job: job("x"), timings: Timings::default(), ask: None }).unwrap();
    garbage.truncate(20);
    bus.forward(subject, &job("x"), (Stage::Ingest, 1), garbage).await.unwrap();
    let mut ids: Vec<String> = Vec::new();
    for _ in 0..2 {
        let new = async {
            loop {
                let found = letters(&ground).await;
                if let Some(id) =
                    found.iter().filter_map(|letter| letter["id"].as_str()).find(|id| ids.iter().all(|seen| seen != id))
                {
                    return id.to_owned();
                }
            }
        };
        let id = timeout(PATIENCE, new).await.expect("no dead letter");
        assert!(ground.baton(&["dlq", "retry", &id]).await.status.success());
        ids.push(id);
    }
    assert!(ids.iter().all(|id| id.starts_with("prefill.") && id.split('.').count() == 2), "{ids:?}");
    worker.cancel();
}

#[tokio::test]
async fn a_request_that_ingest_gave_up_is_tried_again_as_it_was_sent() {
    let ground = Ground::sim(&[]).await;
    let bus = streams(&ground).await;
    let tenant = name("acme");
    let mut follower = bus.follow(&tenant).await.unwrap();
    let body = json!({ "id": "unlucky", "prompt": "Hello", "max_tokens": 3, "metadata": { "k": "v" } }).to_string();
    bus.submit(&tenant, &name("batch"), body.into_bytes()).await.unwrap();
    // As if five workers had died of it.
    let done = CancellationToken::new();
    let dying = Dying { bus: bus.clone(), times: 5, done: done.clone() };
    let ingest = pull::Options { stage: Stage::Ingest, models: Vec::new(), slots: 1, ..options(5) };
    pull::run(&bus, &ingest, Arc::new(dying), done).await.unwrap();
    let _workers = ground.workers().await;
    let outcome = result(&mut follower, &job_id("unlucky")).await;
    assert_eq!(outcome.error.unwrap().code, Code::AttemptsExhausted);
    let shown = ground.baton(&["dlq", "show", "ingest.acme.unlucky", "--json"]).await;
    let shown: Value = serde_json::from_slice(&shown.stdout).unwrap();
    assert_eq!((&shown["request"]["prompt"], &shown["attempts"]), (&json!("Hello"), &json!(5)));
    let retried = ground.baton(&["dlq", "retry", "--all", "--json"]).await;
    assert_eq!(serde_json::from_slice::<Value>(&retried.stdout).unwrap()["job"], "unlucky-retry-1");
    let outcome = result(&mut follower, &job_id("unlucky-retry-1")).await;
    assert_eq!((outcome.status, outcome.metadata["k"].as_str()), (Status::Completed, "v"));
}

/// Removes all messages of a stream, as a disaster may.
async fn purge(ground: &Ground, stream: &str) {
    destroy(ground, &format!("PURGE.{stream}")).await;
}

/// Has the broker do to a stream what no part of Baton does.
pub async fn destroy(ground: &Ground, what: &str) {
    let address = ground.server.url().trim_start_matches("nats://").to_owned();
    let mut broker = TcpStream::connect(address).await.unwrap();
    let asked = format!("CONNECT {{}}\r\nSUB answer 1\r\nPUB $JS.API.STREAM.{what} answer 0\r\n\r\n");
    broker.write_all(asked.as_bytes()).await.unwrap();
    let mut said = String::new();
    while !said.contains("\"success\":true") {
        let mut bytes = [0; 4096];
        let read = timeout(PATIENCE, broker.read(&mut bytes)).await.expect("no answer").unwrap();
        assert!(read > 0, "{said}");
        said.push_str(&String::from_utf8_lossy(&bytes[..read]));
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

async fn reconcile(ground: &Ground, arguments: &[&str]) -> (bool, Value) {
    let output = ground.baton(&[&["reconcile", "--json"], arguments].concat()).await;
    let errors = String::from_utf8_lossy(&output.stderr);
    (
        output.status.success(),
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {errors}")),
    )
}

#[tokio::test]
async fn jobs_that_lost_their_message_begin_again_and_end_once() {
    const JOBS: u64 = 12;
    let ground = Ground::sim(&[]).await;
    let ingest = ground.worker("ingest", "ingest-1").await;
    let bus = ground.bus().await;
    let (tenant, lane, jobs) = (name("acme"), name("batch"), bus.jobs().await.unwrap());
    let mut follower = bus.follow(&tenant).await.unwrap();
    let body = |id: &str| json!({ "id": id, "prompt": "Hello", "max_tokens": 3 }).to_string().into_bytes();
    let ids: Vec<String> = (0..JOBS).map(|n| format!("job-{n}")).collect();
    for id in &ids {
        bus.submit(&tenant, &lane, body(id)).await.unwrap();
    }
    until_waiting::<PrefillTask>(&bus, Stage::Prefill, JOBS).await;
    assert_eq!(reconcile(&ground, &[]).await.1["begun"], json!([]), "jobs that wait were taken for lost");
    // A worker has had some of them in its hands, and of one not even the request is left.
    let begun = Arc::new(Notify::new());
    let poisoned = Poisoned { seen: Arc::default(), begun: begun.clone() };
    let (shutdown, claiming) = (CancellationToken::new(), pull::Options { models: vec![name("sim")], ..options(5) });
    let gone = stage::run(&bus, claiming, "gone".into(), poisoned, CancellationToken::new(), shutdown.clone());
    let (ended, ()) = tokio::join!(gone, async {
        begun.notified().await;
        shutdown.cancel();
    });
    ended.unwrap();
    let lost = Source { sequence: 1, stored_ms: 1 };
    jobs.admit(&tenant, &job_id("lost"), &request_digest(&body("lost")), lost).await.unwrap();

    // A copy of a request that was passed on brings its job nowhere.
    ingest.drain().await;
    bus.submit(&tenant, &lane, body("job-0")).await.unwrap();
    purge(&ground, "baton_prefill").await;
    let (complete, looked) = reconcile(&ground, &["--dry-run"]).await;
    assert_eq!(looked["begun"].as_array().unwrap().len() as u64, JOBS);
    assert_eq!((complete, &looked["lost"]), (false, &json!(["acme/lost"])));
    let (_, found) = reconcile(&ground, &[]).await;
    assert_eq!(found["begun"], looked["begun"], "the dry run changed something");
    let _ingest = ground.worker("ingest", "ingest-2").await;
    bus.submit(&tenant, &lane, body("lost")).await.unwrap();
    until_waiting::<PrefillTask>(&bus, Stage::Prefill, JOBS + 1).await;
    assert_eq!(reconcile(&ground, &[]).await, (true, nothing(JOBS + 1)));

    // The next stage's messages, too; its jobs pass prefill a second time while the broker still knows the first.
    let prefill = ground.worker("prefill", "prefill-1").await;
    until_waiting::<DecodeTask>(&bus, Stage::Decode, JOBS + 1).await;
    purge(&ground, "baton_decode").await;
    assert_eq!(reconcile(&ground, &[]).await.1["begun"].as_array().unwrap().len() as u64, JOBS + 1);
    until_waiting::<DecodeTask>(&bus, Stage::Decode, JOBS + 1).await;
    let decode = ground.worker("decode", "decode-1").await;
    let mut ends: HashMap<String, u64> = HashMap::new();
    for _ in 0..JOBS + 1 {
        let outcome = any_result(&mut follower).await;
        assert_eq!(outcome.status, Status::Completed, "{:?}", outcome.error);
        *ends.entry(outcome.id.to_string()).or_default() += 1;
    }
    assert_eq!(ends.len() as u64, JOBS + 1);
    // A worker that has drained has noted the ends of its jobs.
    prefill.drain().await;
    decode.drain().await;
    assert_eq!(reconcile(&ground, &[]).await, (true, nothing(0)));
    assert_eq!(support::outcomes(&ground.baton(&["result", "job-0", "--tenant", "acme", "--json"]).await).len(), 1);
}

fn nothing(waiting: u64) -> Value {
    json!({ "dry_run": false, "open": waiting, "waiting": waiting, "begun": [], "noted": [], "lost": [], "unread": 0 })
}
