//! Answers that one decode worker begins and another ends: nothing is lost, nothing changes, and little is done twice.

use std::{
    collections::{BTreeMap, HashSet},
    time::Duration,
};

use baton_bus::{
    Bus,
    clients::follower::{Event, Follower},
    stage::checkpoints::Found,
    unix_ms,
};
use baton_contract::{
    JobId,
    envelope::DecodeTask,
    job::Job,
    outcome::{Code, Delta, Outcome, Status, Timings},
    record::Claim,
    sampling::Sampling,
    subject::Stage,
};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tokio::{
    task::yield_now,
    time::{Instant, timeout},
};

use crate::support::{self, BATON, Ground, PATIENCE, job_id, name};

pub const TENANT: &str = "acme";

/// Jobs as one follows them live.
pub struct Live {
    follower: Follower,
    pending: HashSet<JobId>,
    /// The tokens of each answer as far as they have come without a gap.
    answers: BTreeMap<(JobId, u32), Vec<u32>>,
    /// How many of them came twice.
    repeated: BTreeMap<(JobId, u32), usize>,
    outcomes: BTreeMap<JobId, Outcome>,
}

impl Live {
    pub async fn submit(bus: &Bus, requests: &[Value]) -> Self {
        let follower = bus.follow(&name(TENANT)).await.unwrap();
        for request in requests {
            bus.submit(&name(TENANT), &name("batch"), request.to_string().into_bytes()).await.unwrap();
        }
        let pending = requests.iter().map(|request| job_id(request["id"].as_str().unwrap())).collect();
        Self { follower, pending, answers: BTreeMap::new(), repeated: BTreeMap::new(), outcomes: BTreeMap::new() }
    }

    /// Takes the next token or result; true if it is a token that nobody has seen.
    async fn next(&mut self) -> bool {
        match timeout(PATIENCE, self.follower.next(&self.pending)).await.expect("nothing came in time").unwrap() {
            Event::Delta { job, delta: Delta { choice, index, token: Some(token), .. } } => {
                let key = (job, choice);
                let answer = self.answers.entry(key.clone()).or_default();
                assert!(index as usize <= answer.len(), "{key:?}: tokens {}..{index} are missing", answer.len());
                if let Some(seen) = answer.get(index as usize) {
                    assert_eq!(*seen, token, "{key:?}: token {index} changed");
                    *self.repeated.entry(key).or_default() += 1;
                    return false;
                }
                answer.push(token);
                true
            }
            Event::Result(outcome) => {
                self.pending.remove(&outcome.id);
                self.outcomes.insert(outcome.id.clone(), *outcome);
                false
            }
            event => panic!("{event:?}"),
        }
    }

    /// Follows until each of so many answers has so many tokens.
    pub async fn until(&mut self, answers: usize, tokens: usize) {
        while self.answers.len() < answers || self.answers.values().any(|answer| answer.len() < tokens) {
            self.next().await;
            assert!(self.outcomes.is_empty(), "a job ended before it could be disturbed");
        }
    }

    /// Follows until each answer has so many tokens; the longest time in which nothing new came.
    async fn longest_silence(&mut self, tokens: usize) -> Duration {
        let (mut last, mut longest) = (Instant::now(), Duration::ZERO);
        while self.answers.values().any(|answer| answer.len() < tokens) {
            if self.next().await {
                longest = longest.max(last.elapsed());
                last = Instant::now();
            }
        }
        println!("{longest:?} without a new token");
        longest
    }

    /// Follows until all have ended; each must have ended well, and as it was seen.
    pub async fn end(&mut self) -> &BTreeMap<JobId, Outcome> {
        while !self.pending.is_empty() {
            self.next().await;
        }
        for (job, outcome) in &self.outcomes {
            assert_eq!(outcome.status, Status::Completed, "{job}: {:?}", outcome.error);
            for (choice, tokens) in (0..).zip(answers(outcome)) {
                assert_eq!(self.answers[&(job.clone(), choice)], tokens, "{job}, {choice}");
            }
        }
        &self.outcomes
    }
}

/// Tokens of all of a job's answers.
fn answers(outcome: &Outcome) -> Vec<Vec<u32>> {
    match &outcome.choices[..] {
        [] => vec![outcome.tokens.clone()],
        choices => choices.iter().map(|choice| choice.tokens.clone()).collect(),
    }
}

/// An outcome without what time and place make of it.
pub fn timeless(outcome: &Outcome, id: &str) -> Outcome {
    Outcome { id: job_id(id), timings: Timings::default(), request_digest: String::new(), ..outcome.clone() }
}

pub fn story(id: &str, number: usize, max_tokens: usize) -> Value {
    let mut request = json!({
        "id": id, "prompt": format!("Story {number}: "), "max_tokens": max_tokens, "temperature": 0.8, "seed": number,
    });
    if number.is_multiple_of(3) {
        request["n"] = 3.into();
        request["logprobs"] = true.into();
        request["top_logprobs"] = 2.into();
        request["presence_penalty"] = 0.5.into();
    }
    request
}

/// Steps of 5 ms.
async fn slow(settings: &[&str]) -> Ground {
    let mut all = vec!["models.sim.sim.decode_s_per_step=0.005", "stages.decode.ack_wait=2s"];
    all.extend(settings);
    Ground::sim(&all).await
}

/// A job's first checkpoint is due after 16 tokens of 5 ms, or after 250 ms if the machine is slow.
const INTERVAL: usize = 250 / 5;

#[tokio::test]
async fn all_decode_workers_killed_and_one_started_change_nothing() {
    let ground = slow(&[]).await;
    let [_ingest, _prefill, first] = ground.workers().await;
    let second = ground.worker("decode", "decode-2").await;
    let bus = ground.bus().await;
    let requests = |prefix: &str| -> Vec<Value> { (0..9).map(|n| story(&format!("{prefix}-{n}"), n, 400)).collect() };
    let mut undisturbed = Live::submit(&bus, &requests("undisturbed")).await;
    let undisturbed = undisturbed.end().await;

    let mut live = Live::submit(&bus, &requests("killed")).await;
    live.until(15, 40).await;
    first.kill().await;
    second.kill().await;
    let killed_at = unix_ms();
    let _third = ground.worker("decode", "decode-3").await;
    let silence = live.longest_silence(100).await;
    // ack_wait and 3 s.
    assert!(silence < Duration::from_secs(5), "{silence:?} without a new token");
    let outcomes = live.end().await;
    for (expected, outcome) in undisturbed.values().zip(outcomes.values()) {
        assert_eq!(timeless(outcome, "story"), timeless(expected, "story"));
        let timings = &outcome.timings;
        assert_eq!((timings.decode_worker.as_str(), timings.recomputed_tokens), ("decode-3", 0), "{timings:?}");
        assert!(timings.resumed_tokens > 0 && timings.decode_attempt == 2, "{timings:?}");
        let first_at = timings.accepted_at_ms + timings.first_token_ms as u64;
        assert!(first_at < killed_at, "the first token is the first worker's");
        assert!(
            timings.first_token_ms + timings.decode_ms <= timings.total_ms && timings.decode_ms > 2000.0,
            "{timings:?}"
        );
    }
    // The acknowledgement comes last: until then there may be something left.
    while bus.waiting::<DecodeTask>(Stage::Decode).await.unwrap().count > 0 {
        yield_now().await;
    }
    let request_digest = outcomes[&job_id("killed-1")].request_digest.clone();
    let ended = Job { id: job_id("killed-1"), request_digest, max_tokens: 400, ..job() };
    let ledger = bus.checkpoints().await.unwrap().ledger(&ended, claim(9));
    assert_eq!(ledger.take_over(&ended).await.unwrap(), Found::Nothing, "a checkpoint outlived its job");
    for (answer, repeated) in &live.repeated {
        assert!(*repeated <= INTERVAL, "{answer:?}: {repeated} tokens were sampled again");
    }
}

#[tokio::test]
async fn a_job_that_used_up_its_tries_keeps_what_it_came_to() {
    let ground = slow(&["stages.decode.max_deliver=1"]).await;
    let [_ingest, _prefill, first] = ground.workers().await;
    let bus = ground.bus().await;
    let mut live = Live::submit(&bus, &[story("unlucky", 1, 1000)]).await;
    live.until(1, INTERVAL + 50).await;
    first.kill().await;
    let _second = ground.worker("decode", "decode-2").await;
    while !live.pending.is_empty() {
        live.next().await;
    }
    let outcome = &live.outcomes[&job_id("unlucky")];
    let code = outcome.error.as_ref().map(|error| error.code);
    assert_eq!((outcome.status, code), (Status::Failed, Some(Code::AttemptsExhausted)));
    let seen = live.answers.values().next().unwrap();
    assert!(outcome.tokens.len() >= 50 && seen.starts_with(&outcome.tokens), "{} tokens", outcome.tokens.len());
    assert!(!outcome.text.is_empty());
}

#[tokio::test]
async fn a_worker_that_is_asked_to_stop_hands_its_answers_over_at_once() {
    // No checkpoint but the last has what is needed. Decode prefills the prompts itself.
    let ground = slow(&["stages.decode.checkpoint_ms=60000", "stages.decode.prefill_tokens=200"]).await;
    let [_ingest, _prefill, leaving] = ground.workers().await;
    let bus = ground.bus().await;
    let requests: Vec<Value> = (0..4).map(|n| story(&format!("job-{n}"), n, 500)).collect();
    let mut live = Live::submit(&bus, &requests).await;
    live.until(8, 40).await;
    let _staying = ground.worker("decode", "decode-2").await;
    leaving.signal(Signal::SIGTERM);
    let silence = live.longest_silence(300).await;
    assert!(silence < Duration::from_secs(2), "{silence:?} without a new token");
    leaving.drain().await;
    let outcomes = live.end().await;
    for outcome in outcomes.values() {
        let timings = &outcome.timings;
        assert_eq!(timings.decode_worker, "decode-2", "{timings:?}");
        assert!(timings.resumed_tokens >= 40, "{timings:?}");
    }
    assert!(live.repeated.is_empty(), "tokens were sampled again: {:?}", live.repeated);
}

#[tokio::test]
async fn a_worker_that_was_stopped_and_goes_on_has_no_say_any_more() {
    let ground = slow(&[]).await;
    let [_ingest, _prefill, mut stopped] = ground.workers().await;
    let bus = ground.bus().await;
    let mut results = bus.results(&name(TENANT)).await.unwrap();
    let mut live = Live::submit(&bus, &[story("job", 1, 1000)]).await;
    live.until(1, 100).await;
    stopped.signal(Signal::SIGSTOP);
    let second = ground.worker("decode", "decode-2").await;
    let seen = live.answers.values().map(Vec::len).max().unwrap();
    live.until(1, seen + 100).await;
    // Both believe now that the job is theirs.
    stopped.signal(Signal::SIGCONT);
    let outcome = live.end().await.values().next().unwrap().clone();
    let timings = &outcome.timings;
    // The broker may have tried the stopped one again, which had asked for more.
    assert!(timings.decode_worker == "decode-2" && timings.decode_attempt >= 2, "{timings:?}");
    assert!(timings.resumed_tokens >= 50, "{timings:?}");
    // It has learned so at its next checkpoint, and not gone on with the answer.
    let repeated: usize = live.repeated.values().sum();
    println!("{repeated} tokens came again");
    assert!(repeated <= 2 * INTERVAL, "{repeated}");
    // It works on, for others' jobs; and nothing but their results comes.
    assert!(stopped.lives());
    second.kill().await;
    let mut next = Live::submit(&bus, &[story("next", 2, 20)]).await;
    assert_eq!(next.end().await[&job_id("next")].timings.decode_worker, "decode-1");
    for expected in ["job", "next"] {
        let outcome = timeout(PATIENCE, results.next()).await.unwrap().unwrap();
        assert_eq!(outcome.id, job_id(expected));
    }
}

#[tokio::test]
async fn an_answer_of_ten_times_ack_wait_is_delivered_once() {
    let settings = ["models.sim.sim.decode_s_per_step=0.05", "stages.decode.ack_wait=1500ms"];
    let ground = Ground::sim(&settings).await;
    let _workers = ground.workers().await;
    let _idle = ground.worker("decode", "decode-2").await;
    let mut live = Live::submit(&ground.bus().await, &[story("long", 1, 310)]).await;
    let timings = live.end().await[&job_id("long")].timings.clone();
    assert!(timings.decode_ms > 15_000.0);
    assert_eq!((timings.decode_attempt, timings.resumed_tokens), (1, 0));
    assert!(live.repeated.is_empty());
}

#[tokio::test]
async fn a_real_model_goes_on_with_the_same_tokens() {
    let request = json!({
        "id": "story",
        "messages": [{ "role": "user", "content": format!("Continue this story: {}", "The sea was calm. ".repeat(80)) }],
        "max_tokens": 80, "temperature": 0.8, "seed": 11, "n": 3, "logprobs": true, "top_logprobs": 1,
    });
    support::provisioned();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("request.jsonl");
    std::fs::write(&file, support::lines(std::slice::from_ref(&request))).unwrap();
    let output = std::process::Command::new(BATON).args(["run", "--json", "--jsonl"]).arg(file).output().unwrap();
    let expected = support::outcomes(&output).remove(0);

    let ground = Ground::new(&["stages.decode.ack_wait=2s"]).await;
    let [_ingest, _prefill, killed] = ground.workers().await;
    let mut live = Live::submit(&ground.bus().await, &[request]).await;
    live.until(3, 25).await;
    killed.kill().await;
    let _second = ground.worker("decode", "decode-2").await;
    let outcome = live.end().await[&job_id("story")].clone();
    let Timings { decode_worker, recomputed_tokens, resumed_tokens, .. } = &outcome.timings;
    assert_eq!((decode_worker.as_str(), *recomputed_tokens), ("decode-2", 0));
    assert!(*resumed_tokens > 0);
    assert_eq!(outcome.choices, expected.choices);
}

fn job() -> Job {
    Job {
        id: job_id("job"),
        tenant: name(TENANT),
        lane: name("batch"),
        model: name("sim"),
        prompt: vec![1],
        max_tokens: 100,
        samples: 1,
        sampling: Sampling::GREEDY,
        stop: Vec::new(),
        deadline_ms: None,
        metadata: Default::default(),
        request_digest: "ab".into(),
    }
}

fn claim(attempt: u64) -> Claim {
    Claim { stage: Stage::Decode, sequence: 3, attempt, worker: format!("w-{attempt}") }
}
