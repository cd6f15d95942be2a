//! Jobs that a foreign engine answers: streamed, cancelled, refused, put off, and gone on with after a crash of either side.

use std::collections::{BTreeMap, HashSet};

use baton_bus::{
    Bus,
    clients::follower::{Event, Follower},
};
use baton_contract::{
    JobId,
    outcome::{Code, Delta, FinishReason, Outcome, Status},
};
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::{
    engine::{Act, Engine, text},
    support::{Ground, PATIENCE, Worker, any_result, job_id, name, streams},
};

/// A pipeline whose only model is the engine's.
async fn ground(engine: &Engine, settings: &[&str]) -> Ground {
    let urls = format!("models.tiny.urls={}", engine.url);
    let mut all = vec!["models.tiny.source=openai", &urls, "default_model=tiny", "stages.decode.ack_wait=2s"];
    all.extend(settings);
    Ground::new(&all).await
}

/// A worker of each stage that there is something to do for.
async fn workers(ground: &Ground) -> [Worker; 2] {
    [ground.worker("ingest", "ingest-1").await, ground.worker("decode", "decode-1").await]
}

/// Jobs as one follows them live.
struct Live {
    follower: Follower,
    pending: HashSet<JobId>,
    /// The text of each piece, as it was told last.
    pieces: BTreeMap<JobId, Vec<String>>,
    restarts: usize,
    outcomes: BTreeMap<JobId, Outcome>,
}

impl Live {
    async fn submit(bus: &Bus, requests: &[Value]) -> Self {
        let follower = bus.follow(&name("acme")).await.unwrap();
        for request in requests {
            bus.submit(&name("acme"), &name("batch"), request.to_string().into_bytes()).await.unwrap();
        }
        let pending = requests.iter().map(|request| job_id(request["id"].as_str().unwrap())).collect();
        Self { follower, pending, pieces: BTreeMap::new(), restarts: 0, outcomes: BTreeMap::new() }
    }

    async fn next(&mut self) {
        match timeout(PATIENCE, self.follower.next(&self.pending)).await.expect("nothing came in time").unwrap() {
            Event::Delta { job, delta: Delta { index, restart: true, .. } } => {
                let pieces = self.pieces.entry(job).or_default();
                self.restarts += usize::from((index as usize) < pieces.len());
                pieces.truncate(index as usize);
            }
            Event::Delta { job, delta } => {
                let pieces = self.pieces.entry(job).or_default();
                assert_eq!(delta.index as usize, pieces.len(), "no piece is left out, none comes twice");
                pieces.push(delta.text);
            }
            Event::Result(outcome) => {
                self.pending.remove(&outcome.id);
                self.outcomes.insert(outcome.id.clone(), *outcome);
            }
            event => panic!("{event:?}"),
        }
    }

    /// Follows until so many pieces of each of so many jobs were told.
    async fn until(&mut self, jobs: usize, pieces: usize) {
        while self.pieces.len() < jobs || self.pieces.values().any(|told| told.len() < pieces) {
            self.next().await;
        }
    }

    /// Follows until all jobs have ended; what was told live is what the result says.
    async fn end(&mut self) -> Vec<Outcome> {
        while !self.pending.is_empty() {
            self.next().await;
        }
        for (job, outcome) in &self.outcomes {
            let told = self.pieces.get(job).map(|pieces| pieces.concat()).unwrap_or_default();
            assert_eq!(told, outcome.text, "{job}");
        }
        std::mem::take(&mut self.outcomes).into_values().collect()
    }
}

fn chat(id: &str, content: &str) -> Value {
    json!({ "id": id, "messages": [{ "role": "user", "content": content }] })
}

#[tokio::test]
async fn an_engines_answer_comes_piece_by_piece_and_is_one_result() {
    let parts = vec![
        json!({ "role": "assistant", "content": "" }),
        json!({ "reasoning_content": "I " }),
        json!({ "reasoning_content": "see." }),
        json!({ "content": "Yes" }),
        json!({ "tool_calls": [{ "index": 0, "id": "c", "type": "function", "function": { "name": "f", "arguments": "{" } }] }),
        json!({ "tool_calls": [{ "index": 0, "function": { "arguments": "}" } }] }),
    ];
    let engine = Engine::start([Act::Waits(20, 40), Act::Parts(parts, "tool_calls")]).await;
    let ground = ground(&engine, &["models.tiny.model=real-name"]).await;
    let _workers = workers(&ground).await;
    let bus = streams(&ground).await;
    let mut live = Live::submit(&bus, &[chat("plain", "word")]).await;
    // They are told as they come: the engine does not go on before they were.
    live.until(1, 20).await;
    engine.go_on();
    let outcomes = live.end().await;
    let outcome = &outcomes[0];
    assert_eq!((outcome.status, &outcome.error), (Status::Completed, &None));
    assert_eq!((&*outcome.text, outcome.finish_reason), (&*text("word", 40), Some(FinishReason::Stop)));
    assert_eq!((outcome.usage.prompt_tokens, outcome.usage.completion_tokens), (5, 40));
    let timings = &outcome.timings;
    assert!(timings.first_token_ms > 0.0 && timings.total_ms >= timings.first_token_ms, "{timings:?}");
    assert_eq!((&*timings.decode_worker, timings.decode_attempt), ("decode-1", 1));
    assert_eq!(outcome.model_fingerprint.as_ref().map(String::len), Some(64));
    let asked = &engine.asked()[0];
    assert_eq!((&asked["model"], &asked["stream"]), (&json!("real-name"), &json!(true)));

    let rich = json!({ "id": "rich", "messages": [{ "role": "user", "content": "x" }], "engine": { "tools": [] } });
    let mut live = Live::submit(&bus, &[rich]).await;
    let outcome = live.end().await.remove(0);
    assert_eq!((&*outcome.text, outcome.finish_reason), ("Yes", Some(FinishReason::ToolCalls)));
    let call = json!({ "id": "c", "type": "function", "function": { "name": "f", "arguments": "{}" } });
    assert_eq!(
        Value::Object(outcome.message),
        json!({ "reasoning_content": "I see.", "tool_calls": [call] }),
        "the parts are one message"
    );
    assert_eq!(live.pieces[&job_id("rich")].len(), 6, "an empty piece is none, the end is one");
}

#[tokio::test]
async fn a_cancelled_job_leaves_the_engine_and_has_what_there_was() {
    let engine = Engine::start([Act::Waits(5, 10)]).await;
    let ground = ground(&engine, &[]).await;
    let _workers = workers(&ground).await;
    let bus = streams(&ground).await;
    let deadline = json!({ "id": "late", "prompt": "b", "deadline": 5 });
    let mut live = Live::submit(&bus, &[chat("stopped", "a")]).await;
    live.until(1, 5).await;
    bus.cancel(&name("acme"), &job_id("stopped")).await.unwrap();
    let stopped = live.end().await.remove(0);
    assert_eq!((stopped.status, &*stopped.text), (Status::Cancelled, &*text("a", 5)));
    engine.until_left(1).await;
    let late = Live::submit(&bus, &[deadline]).await.end().await.remove(0);
    assert_eq!(late.status, Status::Expired);
    assert!(text("b", 5).starts_with(&late.text), "{}", late.text);
}

#[tokio::test]
async fn an_engine_that_dies_in_mid_answer_and_comes_back_gives_one_answer() {
    let mut engine = Engine::start([Act::Waits(20, 30)]).await;
    // No try counts: one is all that there is.
    let ground = ground(&engine, &["stages.decode.max_deliver=1"]).await;
    let _workers = workers(&ground).await;
    let bus = streams(&ground).await;
    let requests: Vec<_> = (0..4).map(|number| chat(&format!("job-{number}"), &format!("w{number}-"))).collect();
    let mut live = Live::submit(&bus, &requests).await;
    live.until(4, 20).await;
    engine.die().await;
    // Nothing comes meanwhile, and the record says why.
    let reason = until_reason(&ground, "job-0").await;
    assert!(reason.contains("fault of decode"), "{reason}");
    engine.plays([Act::Says(30)]);
    engine.come_back().await;
    for (number, outcome) in live.end().await.into_iter().enumerate() {
        assert_eq!((outcome.status, &outcome.error), (Status::Completed, &None));
        assert_eq!(outcome.text, text(&format!("w{number}-"), 30));
        assert!(outcome.timings.decode_attempt > 1);
    }
    assert_eq!(live.restarts, 4, "an engine of which nothing is known begins again, and readers are told");
}

/// What `baton job` says that a job waits for, once it is a fault.
async fn until_reason(ground: &Ground, job: &str) -> String {
    let told = async {
        loop {
            let output = ground.baton(&["job", job, "--tenant", "acme"]).await;
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            if text.contains("fault of") {
                return text;
            }
        }
    };
    timeout(PATIENCE, told).await.expect("no reason was told")
}

#[tokio::test]
async fn a_worker_that_dies_in_mid_answer_leaves_it_to_another() {
    let engine = Engine::start([Act::Waits(20, 30), Act::Says(30)]).await;
    let ground = ground(&engine, &[]).await;
    let [_ingest, decode] = workers(&ground).await;
    let bus = streams(&ground).await;
    let mut live = Live::submit(&bus, &[chat("job", "x")]).await;
    live.until(1, 20).await;
    decode.kill().await;
    engine.until_left(1).await;
    let _other = ground.worker("decode", "decode-2").await;
    let outcome = live.end().await.remove(0);
    assert_eq!((outcome.status, &*outcome.text), (Status::Completed, &*text("x", 30)));
    assert_eq!(&*outcome.timings.decode_worker, "decode-2");
    assert_eq!((live.restarts, engine.asked().len()), (1, 2));
}

#[tokio::test]
async fn a_worker_that_is_asked_to_stop_hands_its_answers_over() {
    let engine = Engine::start([Act::Waits(20, 30), Act::Says(30)]).await;
    // Nobody waits for the broker to find out.
    let ground = ground(&engine, &["stages.decode.ack_wait=10m", "stages.decode.max_deliver=1"]).await;
    let [_ingest, decode] = workers(&ground).await;
    let bus = streams(&ground).await;
    let mut live = Live::submit(&bus, &[chat("job", "x")]).await;
    live.until(1, 20).await;
    let _other = ground.worker("decode", "decode-2").await;
    decode.drain().await;
    let outcome = live.end().await.remove(0);
    assert_eq!((outcome.status, &*outcome.text), (Status::Completed, &*text("x", 30)));
    engine.until_left(1).await;
}

#[tokio::test]
async fn a_busy_engine_is_waited_for_and_a_refused_request_fails_in_its_words() {
    let busy = Act::Answers(429, "retry-after: 0\r\n", r#"{"error":{"message":"too many"}}"#);
    let refused = r#"{"error":{"message":"temperature must be at most 2","type":"BadRequestError"}}"#;
    let engine = Engine::start([busy.clone(), busy.clone(), busy, Act::Says(3)]).await;
    let ground = ground(&engine, &["stages.decode.max_deliver=1"]).await;
    let _workers = workers(&ground).await;
    let bus = streams(&ground).await;
    let outcome = Live::submit(&bus, &[chat("patient", "a")]).await.end().await.remove(0);
    assert_eq!((outcome.status, &*outcome.text), (Status::Completed, &*text("a", 3)), "no try counted");
    assert_eq!(engine.asked().len(), 4);

    engine.plays([Act::Answers(400, "", refused)]);
    let outcome = Live::submit(&bus, &[chat("refused", "a")]).await.end().await.remove(0);
    let error = outcome.error.unwrap();
    assert_eq!((outcome.status, error.code), (Status::Failed, Code::InvalidValue));
    assert!(error.message.contains("temperature must be at most 2"), "{error}");
    assert_eq!(engine.asked().len(), 5, "once is enough");

    // What may be the request's fault is tried as often as the pipeline says.
    engine.plays([Act::Answers(500, "", "oops")]);
    let outcome = Live::submit(&bus, &[chat("broken", "a")]).await.end().await.remove(0);
    assert_eq!((outcome.status, engine.asked().len()), (Status::Failed, 6));
}

/// What an instance of vLLM that only prefills answers.
const PREFILLED: &str = r#"{"choices":[{"index":0,"message":{"role":"assistant","content":"x"},"finish_reason":"length"}],
    "kv_transfer_params":{"do_remote_prefill":true,"do_remote_decode":false,"remote_engine_id":"e","remote_block_ids":[[1]],
    "remote_request_id":"r","remote_host":"127.0.0.1","remote_port":5601,"tp_size":1}}"#;

#[tokio::test]
async fn a_prompt_that_another_instance_prefilled_is_fetched_once_and_computed_where_it_can_not_be() {
    let mut prefill = Engine::start([Act::Answers(200, "", PREFILLED)]).await;
    let mut decode = Engine::start([Act::Waits(3, 5), Act::Says(5)]).await;
    let urls = format!("models.tiny.prefill_urls={}", prefill.url);
    let ground = ground(&decode, &["models.tiny.engine=vllm", &urls]).await;
    let _workers = workers(&ground).await;
    let _prefill = ground.worker("prefill", "prefill-1").await;
    let bus = streams(&ground).await;
    let mut live = Live::submit(&bus, &[chat("fetched", "a")]).await;
    live.until(1, 3).await;
    assert_eq!(prefill.asked()[0]["kv_transfer_params"]["do_remote_decode"], true);
    assert_eq!(decode.asked()[0]["kv_transfer_params"]["remote_engine_id"], "e");
    decode.die().await;
    decode.come_back().await;
    let outcome = live.end().await.remove(0);
    assert_eq!((outcome.status, &*outcome.text), (Status::Completed, &*text("a", 5)));
    assert_eq!(outcome.timings.recomputed_tokens, 5, "what was kept for the first try is gone");

    prefill.die().await;
    let outcome = Live::submit(&bus, &[chat("computed", "b")]).await.end().await.remove(0);
    assert_eq!((outcome.status, &*outcome.text), (Status::Completed, &*text("b", 5)));
    let later = &decode.asked()[1..];
    assert!(later.iter().all(|asked| asked.get("kv_transfer_params").is_none()), "{later:?}");
    let mut watch = bus.watch_stats().await.unwrap();
    let counted = async {
        loop {
            let snapshot = watch.next().await;
            let told = snapshot.workers.iter().flat_map(|worker| &worker.upstreams);
            let counts = told.map(|told| (told.transfers, told.transfer_fallbacks));
            let (came, did_not) = counts.fold((0, 0), |all, one| (all.0 + one.0, all.1 + one.1));
            if came == 1 && did_not >= 2 {
                return;
            }
        }
    };
    timeout(PATIENCE, counted).await.expect("transfers were not counted");
}

#[tokio::test]
async fn a_model_of_batons_answers_while_the_engine_is_gone_and_no_longer() {
    let mut engine = Engine::start([Act::Says(3), Act::Waits(3, 5), Act::Says(3)]).await;
    let fallback = ["models.tiny.fallback=sim", "models.tiny.fallback_after=1s", "models.sim.source=sim"];
    let ground = ground(&engine, &fallback).await;
    let _workers = workers(&ground).await;
    let bus = streams(&ground).await;
    let before = Live::submit(&bus, &[chat("before", "a")]).await.end().await.remove(0);
    assert_eq!((before.status, &*before.text), (Status::Completed, &*text("a", 3)));

    let mut begun = Live::submit(&bus, &[chat("begun", "b")]).await;
    begun.until(1, 3).await;
    engine.die().await;
    let outcome = begun.end().await.remove(0);
    assert_eq!((outcome.status, begun.restarts), (Status::Completed, 1), "its readers are told that it begins again");
    assert!(outcome.model_fingerprint != before.model_fingerprint && !outcome.tokens.is_empty());
    let follower = bus.follow(&name("acme")).await.unwrap();
    let tools = json!({ "id": "tools", "messages": [{ "role": "user", "content": "t" }], "engine": { "tools": [] } });
    for request in [chat("first", "b"), chat("second", "b"), tools] {
        bus.submit(&name("acme"), &name("batch"), request.to_string().into_bytes()).await.unwrap();
    }
    let mut follower = follower;
    for _ in 0..2 {
        let outcome = any_result(&mut follower).await;
        assert_eq!((outcome.status, &outcome.error), (Status::Completed, &None));
        assert_ne!(outcome.id.as_str(), "tools", "only the engine has them");
        assert_eq!(outcome.model.as_ref().map(|model| model.as_str()), Some("tiny"), "as it was asked for");
        assert!(outcome.model_fingerprint.is_some() && outcome.model_fingerprint != before.model_fingerprint);
        assert!(!outcome.tokens.is_empty() && outcome.usage.prompt_tokens > 0);
    }
    engine.come_back().await;
    let outcome = any_result(&mut follower).await;
    assert_eq!((outcome.id.as_str(), &*outcome.text), ("tools", &*text("t", 3)));
    let after = Live::submit(&bus, &[chat("after", "c")]).await.end().await.remove(0);
    assert_eq!((after.status, &after.model_fingerprint), (Status::Completed, &before.model_fingerprint));
}
