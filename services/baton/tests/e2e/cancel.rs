//! What ends a job early, what is the same job, and what happens when there is no room for one.

use std::collections::{BTreeMap, HashSet};

use baton_bus::{
    Bus, Error,
    clients::follower::{Event, Follower},
    stage::cancel::Answer,
};
use baton_contract::{
    JobId,
    envelope::{DecodeTask, PrefillTask, Task},
    outcome::{Code, Outcome, Status},
    record::State,
    subject::Stage,
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use crate::support::{self, Ground, PATIENCE, job_id, name, result, streams};

/// Takes some seconds with steps of 20 ms.
fn long(id: &str) -> Value {
    json!({ "id": id, "prompt": "Once upon a time", "max_tokens": 400 })
}

async fn submit(bus: &Bus, lane: &str, request: &Value) -> JobId {
    bus.submit(&name("acme"), &name(lane), request.to_string().into_bytes()).await.unwrap();
    job_id(request["id"].as_str().unwrap())
}

async fn until_waiting<T: Task>(bus: &Bus, stage: Stage, jobs: u64) {
    let reached = async {
        while bus.waiting::<T>(stage).await.unwrap().count != jobs {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, reached).await.unwrap_or_else(|_| panic!("{jobs} jobs did not reach {stage}"));
}

/// Follows a job until it has told this many tokens, or ended.
async fn until_token(follower: &mut Follower, job: &JobId, tokens: u32) {
    let pending = HashSet::from([job.clone()]);
    loop {
        match timeout(PATIENCE, follower.next(&pending)).await.expect("no token in time").unwrap() {
            Event::Delta { delta, .. } if delta.index + 1 >= tokens => return,
            Event::Delta { .. } => {}
            ended => panic!("ended before it could be disturbed: {ended:?}"),
        }
    }
}

/// Exit status, and what was printed as JSON.
async fn cancel(ground: &Ground, job: &str) -> (bool, Value) {
    let output = ground.baton(&["cancel", job, "--tenant", "acme", "--json"]).await;
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.success(), serde_json::from_slice(&output.stdout).unwrap_or(Value::String(errors)))
}

fn assert_cancelled(outcome: &Outcome, tokens: usize) {
    assert_eq!((outcome.status, outcome.finish_reason), (Status::Cancelled, None), "{:?}", outcome.error);
    assert_eq!(outcome.error.as_ref().unwrap().code, Code::Cancelled);
    assert_eq!(outcome.tokens.len(), tokens);
}

/// Asks the broker something.
async fn ask(ground: &Ground, subject: &str, body: &str) -> Value {
    let mut broker = TcpStream::connect(ground.server.url().trim_start_matches("nats://")).await.unwrap();
    let asked = format!("CONNECT {{}}\r\nSUB answer 1\r\nPUB {subject} answer {}\r\n{body}\r\n", body.len());
    broker.write_all(asked.as_bytes()).await.unwrap();
    let mut said = String::new();
    loop {
        if let Some((head, rest)) = said.split_once("MSG answer 1 ").and_then(|(_, told)| told.split_once("\r\n"))
            && let Some(answer) = rest.get(..head.parse().unwrap())
        {
            return serde_json::from_str(answer).unwrap();
        }
        let mut bytes = [0; 4096];
        let read = timeout(PATIENCE, broker.read(&mut bytes)).await.expect("no answer").unwrap();
        assert!(read > 0, "{said}");
        said.push_str(&String::from_utf8_lossy(&bytes[..read]));
    }
}

/// How many messages lie under each subject of the stream of results.
async fn results(ground: &Ground, kind: &str) -> BTreeMap<String, u64> {
    let filter = json!({ "subjects_filter": format!("baton.{kind}.>") }).to_string();
    let answer = ask(ground, "$JS.API.STREAM.INFO.baton_res", &filter).await;
    let subjects: Option<_> =
        serde_json::from_value(answer["state"]["subjects"].clone()).unwrap_or_else(|error| panic!("{error}: {answer}"));
    subjects.unwrap_or_default()
}

async fn until_refused(ground: &Ground) {
    let refused = async {
        while results(ground, "rej").await.is_empty() {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, refused).await.expect("nothing was refused");
}

async fn assert_one_result_each(ground: &Ground, jobs: usize) {
    let results = results(ground, "res").await;
    assert!(results.len() == jobs && results.values().all(|count| *count == 1), "{results:?}");
}

#[tokio::test]
async fn a_job_is_cancelled_wherever_it_is_and_has_one_result() {
    let ground = Ground::sim(&["models.sim.sim.decode_s_per_step=0.02"]).await;
    let (bus, tenant) = (ground.bus().await, name("acme"));
    let (alone, error) = cancel(&ground, "nobody-there").await;
    assert!(!alone && error.as_str().unwrap().contains("no ingest worker runs"), "{error}");
    streams(&ground).await;
    let mut follower = bus.follow(&tenant).await.unwrap();
    // Who answers calls, but takes no request yet.
    let (calls, served) = (bus.calls().await.unwrap(), CancellationToken::new());
    let serving = tokio::spawn(calls.serve_until(served.clone().cancelled_owned()));
    let unknown = json!({ "id": "never-seen", "answer": "unknown", "state": null });
    assert_eq!(cancel(&ground, "never-seen").await, (false, unknown));

    // A later request of that id is not the one that was cancelled.
    let in_ingest = submit(&bus, "batch", &long("in-ingest")).await;
    submit(&bus, "batch", &json!({ "id": "in-ingest", "prompt": "another" })).await;
    let told = json!({ "id": "in-ingest", "answer": "cancelling", "state": "accepted" });
    assert_eq!(cancel(&ground, "in-ingest").await, (true, told.clone()));
    assert_eq!(cancel(&ground, "in-ingest").await, (true, told));
    let _ingest = ground.worker("ingest", "ingest-1").await;
    served.cancel();
    serving.await.unwrap();
    let outcome = result(&mut follower, &in_ingest).await;
    until_refused(&ground).await;
    assert_cancelled(&outcome, 0);
    assert_eq!(
        outcome.request_digest,
        baton_contract::outcome::request_digest(long("in-ingest").to_string().as_bytes())
    );

    let in_prefill = submit(&bus, "batch", &long("in-prefill")).await;
    until_waiting::<PrefillTask>(&bus, Stage::Prefill, 1).await;
    assert_eq!(cancel(&ground, "in-prefill").await.1["state"], "accepted");
    let _prefill = ground.worker("prefill", "prefill-1").await;
    assert_cancelled(&result(&mut follower, &in_prefill).await, 0);
    assert!(
        !ground.store().join("kv").exists() || support::files(&ground.store().join("kv")).is_empty(),
        "a cancelled job was prefilled"
    );

    let in_decode = submit(&bus, "batch", &long("in-decode")).await;
    until_waiting::<DecodeTask>(&bus, Stage::Decode, 1).await;
    assert_eq!(cancel(&ground, "in-decode").await.1["state"], "prefill");
    let _decode = ground.worker("decode", "decode-1").await;
    assert_cancelled(&result(&mut follower, &in_decode).await, 0);

    let running = submit(&bus, "batch", &long("running")).await;
    until_token(&mut follower, &running, 10).await;
    assert_eq!(bus.cancel(&tenant, &running).await.unwrap(), Answer::Cancelling { state: State::Decode });
    let (mut last, pending) = (10, HashSet::from([running.clone()]));
    let outcome = loop {
        match timeout(PATIENCE, follower.next(&pending)).await.expect("no result in time").unwrap() {
            Event::Delta { delta, .. } => last = delta.index as usize + 1,
            Event::Result(outcome) => break *outcome,
            Event::Refused(refusal) => panic!("{refusal:?}"),
        }
    };
    assert_cancelled(&outcome, last);
    assert!(!outcome.text.is_empty());

    let ended = json!({ "id": "running", "answer": "ended", "state": "cancelled" });
    assert_eq!(cancel(&ground, "running").await, (true, ended));
    let complete = submit(&bus, "batch", &json!({ "id": "complete", "prompt": "Hello", "max_tokens": 2 })).await;
    assert_eq!(result(&mut follower, &complete).await.status, Status::Completed);
    let ended = json!({ "id": "complete", "answer": "ended", "state": "completed" });
    assert_eq!(cancel(&ground, "complete").await, (false, ended));
    assert_one_result_each(&ground, 5).await;
    assert_eq!(results(&ground, "rej").await.len(), 1, "the second request under the first id");
}

#[tokio::test]
async fn a_cancellation_that_no_worker_heard_of_is_found_and_keeps_what_there_is() {
    let ground = Ground::sim(&["models.sim.sim.decode_s_per_step=0.02", "stages.decode.ack_wait=2s"]).await;
    let [_ingest, _prefill, decode] = ground.workers().await;
    let (bus, tenant) = (ground.bus().await, name("acme"));
    let mut follower = bus.follow(&tenant).await.unwrap();

    // The mark alone, as if the connection had been lost when the workers were told.
    let unheard = submit(&bus, "batch", &long("unheard")).await;
    until_token(&mut follower, &unheard, 5).await;
    let mut record = bus.jobs().await.unwrap().get(&tenant, &unheard).await.unwrap().unwrap().record;
    record.cancelled = true;
    let stored = ask(&ground, "$KV.baton_jobs.acme.unheard", &serde_json::to_string(&record).unwrap()).await;
    assert_eq!(stored["stream"], "KV_baton_jobs", "{stored}");
    let outcome = result(&mut follower, &unheard).await;
    assert!((5..399).contains(&outcome.tokens.len()));
    assert_cancelled(&outcome, outcome.tokens.len());

    let orphaned = submit(&bus, "batch", &long("orphaned")).await;
    until_token(&mut follower, &orphaned, 40).await;
    decode.kill().await;
    assert_eq!(bus.cancel(&tenant, &orphaned).await.unwrap(), Answer::Cancelling { state: State::Decode });
    let _second = ground.worker("decode", "decode-2").await;
    let outcome = result(&mut follower, &orphaned).await;
    assert!((10..60).contains(&outcome.tokens.len()), "{} tokens", outcome.tokens.len());
    assert_cancelled(&outcome, outcome.tokens.len());
    assert_one_result_each(&ground, 2).await;
}

/// Waits until the broker's clock has passed a deadline of this many seconds from now on.
async fn pass(bus: &Bus, seconds: f64) {
    let clock = bus.clock();
    let end = clock.now_ms().await.unwrap() + (seconds * 1e3) as u64;
    let passed = async {
        while clock.now_ms().await.unwrap() <= end {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, passed).await.expect("the broker's clock stands still");
}

#[tokio::test]
async fn expired_work_is_dropped_before_each_stage_and_ends_in_the_middle_of_one() {
    let ground = Ground::sim(&["models.sim.sim.decode_s_per_step=0.02"]).await;
    let bus = ground.bus().await;
    let _ingest = ground.worker("ingest", "ingest-1").await;
    let mut follower = bus.follow(&name("acme")).await.unwrap();
    let expiring = |id: &str, seconds: f64| {
        let mut request = long(id);
        request["deadline"] = seconds.into();
        request
    };
    let message = |outcome: Outcome| {
        assert_eq!((outcome.status, outcome.error.as_ref().map(|error| error.code)), {
            (Status::Expired, Some(Code::DeadlineExceeded))
        });
        outcome.error.unwrap().message
    };
    let job = submit(&bus, "batch", &expiring("before-prefill", 0.2)).await;
    until_waiting::<PrefillTask>(&bus, Stage::Prefill, 1).await;
    pass(&bus, 0.2).await;
    let _prefill = ground.worker("prefill", "prefill-1").await;
    assert_eq!(message(result(&mut follower, &job).await), "the deadline passed before prefill");
    assert!(
        !ground.store().join("kv").exists() || support::files(&ground.store().join("kv")).is_empty(),
        "an expired job was prefilled"
    );

    let job = submit(&bus, "batch", &expiring("before-decode", 2.0)).await;
    until_waiting::<DecodeTask>(&bus, Stage::Decode, 1).await;
    pass(&bus, 2.0).await;
    let _decode = ground.worker("decode", "decode-1").await;
    assert_eq!(message(result(&mut follower, &job).await), "the deadline passed before decode");

    let job = submit(&bus, "batch", &expiring("in-decode", 1.5)).await;
    let outcome = result(&mut follower, &job).await;
    assert!((10..100).contains(&outcome.tokens.len()), "{} tokens in 1.5 s", outcome.tokens.len());
    assert_eq!(message(outcome), "the deadline passed while the job was worked on");
}

async fn submit_and_wait(ground: &Ground, request: &Value) -> (bool, Value) {
    let file = ground.directory.path().join(format!("{}.jsonl", uuid::Uuid::now_v7()));
    std::fs::write(&file, support::lines(std::slice::from_ref(request))).unwrap();
    let output =
        ground.baton(&["submit", "--tenant", "acme", "--wait", "--json", "--jsonl", file.to_str().unwrap()]).await;
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    (
        output.status.success(),
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {errors}")),
    )
}

#[tokio::test]
async fn the_same_request_is_the_same_job_and_another_one_a_conflict() {
    let ground = Ground::sim(&["models.sim.sim.decode_s_per_step=0.02"]).await;
    let _workers = ground.workers().await;
    let bus = ground.bus().await;
    // Nothing that follows may rest on the broker's own memory of what it has seen.
    for stream in ["baton_req", "baton_prefill", "baton_decode", "baton_res"] {
        let mut config = ask(&ground, &format!("$JS.API.STREAM.INFO.{stream}"), "").await["config"].clone();
        config["duplicate_window"] = 100_000_000.into();
        let updated = ask(&ground, &format!("$JS.API.STREAM.UPDATE.{stream}"), &config.to_string()).await;
        assert_eq!(updated["config"]["duplicate_window"], 100_000_000, "{updated}");
    }
    let mut follower = bus.follow(&name("acme")).await.unwrap();
    let mut other = long("story");
    other["max_tokens"] = 7.into();

    let job = submit(&bus, "batch", &long("story")).await;
    until_token(&mut follower, &job, 5).await;
    // Twice: a refusal that is there already must not keep the next sender waiting.
    for _ in 0..2 {
        let (complete, refusal) = submit_and_wait(&ground, &other).await;
        assert!(!complete);
        assert_eq!((&refusal["error"]["code"], &refusal["status"]), (&json!("conflict"), &Value::Null), "{refusal}");
    }
    let (complete, second) = submit_and_wait(&ground, &long("story")).await;
    let first = result(&mut follower, &job).await;
    assert_eq!((complete, &second), (true, &serde_json::to_value(&first).unwrap()));
    assert_eq!(first.tokens.len(), 400);

    pass(&bus, 0.2).await;
    let (complete, again) = submit_and_wait(&ground, &long("story")).await;
    assert_eq!((complete, again), (true, second));
    let (complete, refusal) = submit_and_wait(&ground, &other).await;
    assert_eq!((complete, &refusal["error"]["code"]), (false, &json!("conflict")));
    // All that was submitted has been dealt with when this has.
    let last = submit(&bus, "batch", &json!({ "id": "last", "prompt": "Hello", "max_tokens": 2 })).await;
    result(&mut follower, &last).await;
    until_waiting::<PrefillTask>(&bus, Stage::Prefill, 0).await;
    until_waiting::<DecodeTask>(&bus, Stage::Decode, 0).await;
    assert_one_result_each(&ground, 2).await;
}

#[tokio::test]
async fn a_full_queue_makes_everybody_wait_and_nobody_lose() {
    const JOBS: usize = 50;
    let ground = Ground::sim(&["limits.backlog_messages=3", "models.sim.sim.decode_s_per_step=0.005"]).await;
    let _decode = ground.worker("decode", "decode-1").await;
    let bus = ground.bus().await;
    let request = |n: usize| json!({ "id": format!("job-{n}"), "prompt": format!("Hello {n}"), "max_tokens": 4 });
    for n in 0..3 {
        bus.submit(&name("default"), &name("batch"), request(n).to_string().into_bytes()).await.unwrap();
    }
    let refused = bus.submit(&name("default"), &name("batch"), request(3).to_string().into_bytes()).await;
    assert!(matches!(refused, Err(Error::TryLater { .. })), "{refused:?}");
    assert!(refused.unwrap_err().to_string().contains("try again later"));

    let file = ground.directory.path().join("requests.jsonl");
    std::fs::write(&file, support::lines(&(0..JOBS).map(request).collect::<Vec<_>>())).unwrap();
    let arguments = ["submit", "--wait", "--json", "--jsonl", file.to_str().unwrap()];
    let workers = async {
        let ingest = ground.worker("ingest", "ingest-1").await;
        // As much as fits has come as far as it can.
        until_waiting::<PrefillTask>(&bus, Stage::Prefill, 3).await;
        (ingest, ground.worker("prefill", "prefill-1").await)
    };
    let (output, _workers) = tokio::join!(ground.baton(&arguments), workers);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(errors.contains("its queue or its disk is full"), "{errors}");
    let outcomes = support::outcomes(&output);
    let ids: HashSet<_> = outcomes.iter().map(|outcome| outcome.id.clone()).collect();
    assert_eq!((ids.len(), outcomes.len()), (JOBS, JOBS), "{errors}");
    assert!(outcomes.iter().all(|outcome| outcome.status == Status::Completed));
    assert_one_result_each(&ground, JOBS).await;
}
