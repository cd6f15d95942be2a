//! The load client against a real broker, with a pipeline that this file plays itself and with real workers.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use baton_bus::{
    Bus, Retention,
    stage::{
        delivery::{Delivery, Settle},
        pull::{self, Receiver},
    },
};
use baton_contract::{
    Name,
    job::{Answer, Job},
    outcome::{Code, Delta, Failure, FinishReason, Outcome, Timings},
    request::{self, Input},
    subject::Stage,
};
use baton_load::{
    Options, Report, Summary, Target, page,
    target::{Api, Server},
};
use tokio_util::sync::CancellationToken;

use crate::support::{Ground, lanes};

const JOBS: usize = 12;

/// A pipeline that answers nobody until it holds all requests: a client that waits for answers would never end.
struct Hoarder {
    bus: Bus,
    lane: Name,
    held: Mutex<Vec<Job>>,
}

impl Receiver for Hoarder {
    async fn receive(&self, delivery: &Delivery) -> Settle {
        let checked =
            request::parse(delivery.payload(), &self.lane, delivery.published_ms).expect("a readable request");
        let Input::Tokens(prompt) = checked.input.clone() else { panic!("expected token ids") };
        let id = checked.id.clone().expect("an id");
        let (tenant, lane) = self.bus.layout().parse_request(delivery.subject()).expect("a request subject");
        let job = Job {
            sampling: checked.sampling(&id),
            id,
            tenant,
            lane,
            model: Name::new("played").expect("a name"),
            prompt,
            max_tokens: checked.max_tokens,
            samples: checked.n,
            stop: checked.stop,
            deadline_ms: checked.deadline_ms,
            metadata: checked.metadata,
            request_digest: String::new(),
        };
        let mut all = {
            let mut held = self.held.lock().expect("the lock");
            held.push(job);
            if held.len() == JOBS { std::mem::take(&mut *held) } else { Vec::new() }
        };
        // Two requests close to each other may arrive the other way round; their ids end in their number.
        all.sort_by_key(|job| job.id.as_str().rsplit('-').next().and_then(|number| number.parse::<usize>().ok()));
        for (place, job) in all.iter().enumerate() {
            self.answer(place, job).await;
        }
        Settle::Ack
    }
}

impl Hoarder {
    /// The first job is the warm-up, the second is never heard of again, the third fails. Answers have half the length
    /// asked for, and their first token appears twice.
    async fn answer(&self, place: usize, job: &Job) {
        let outcome: Outcome = match place {
            1 => return,
            2 => job.failed(Failure::new(Code::Internal, "it broke"), Vec::new(), Timings::default()),
            _ => {
                let tokens: Vec<u32> = (0..job.max_tokens / 2).collect();
                for token in tokens.iter().take(1).chain(&tokens) {
                    let (text, logprobs, settled) = (String::new(), None, None);
                    let delta =
                        Delta { index: *token, token: Some(*token), text, logprobs, settled, ..Delta::default() };
                    let subject = self.bus.layout().tokens(&job.tenant, &job.id);
                    self.bus.publish_delta(subject, &delta).await.expect("a published token");
                }
                let answer = Answer { tokens, finish_reason: Some(FinishReason::Stop), ..Answer::default() };
                job.completed(vec![answer], Timings::default())
            }
        };
        let jobs = self.bus.jobs().await.expect("the job bucket");
        assert!(jobs.finish(&outcome, Default::default()).await.expect("a published result"));
    }
}

#[tokio::test]
async fn all_requests_go_out_before_any_answer_and_each_is_counted_once() {
    let ground = Ground::new(&[]).await;
    let bus = ground.bus().await;
    bus.provision(&Retention {
        replicas: 1,
        results: Duration::from_secs(600),
        backlog: Default::default(),
        lanes: lanes(),
    })
    .await
    .unwrap();

    let options = Options {
        warmup: 1,
        prompt_tokens: "uniform:3:9".parse().unwrap(),
        output_tokens: "8".parse().unwrap(),
        goodput: vec!["e2el:60000".parse().unwrap()],
        timeout_s: 5.0,
        ..Options::open_loop(200.0, JOBS - 1).unwrap()
    };
    let lane = options.lane.clone();
    let receiver = Arc::new(Hoarder { bus: bus.clone(), lane: lane.clone(), held: Mutex::default() });
    let shutdown = CancellationToken::new();
    let pulling = pull::Options {
        stage: Stage::Ingest,
        models: Vec::new(),
        lanes: vec![lane],
        slots: 1,
        room: None,
        ack_wait: Duration::from_secs(30),
        max_deliver: 1,
        drain: Duration::from_secs(1),
    };
    let pipeline = tokio::spawn({
        let (bus, shutdown) = (bus.clone(), shutdown.clone());
        async move { pull::run(&bus, &pulling, receiver, shutdown).await }
    });

    let mut seen = Vec::new();
    let target = Target::from(ground.bus().await);
    let report = baton_load::run(&target, &options, |progress| seen.push(progress)).await.unwrap().report;
    shutdown.cancel();
    pipeline.await.unwrap().unwrap();

    let counts = (report.submitted, report.completed, report.failed, report.lost);
    assert_eq!(counts, (11, 9, 1, 1), "{:?}", report.failures);
    assert_eq!((report.failures["internal"].count, report.failures["internal"].example.as_str()), (1, "it broke"));
    assert_eq!(report.total_output_tokens, 9 * 4);
    assert!((27..=81).contains(&report.total_input_tokens), "{}", report.total_input_tokens);
    assert_eq!(report.ttft_ms.unwrap().count, 9);
    assert_eq!(report.itl_ms.unwrap().count, 9 * 3);
    assert_eq!(report.goodput.unwrap().share, 9.0 / 11.0);
    assert!(report.ttft_ms.unwrap().max <= report.e2el_ms.unwrap().max);
    let last = seen.last().unwrap();
    assert_eq!((last.sent, last.ended, last.total), (12, 12, Some(12)));
    assert!(seen.windows(2).all(|pair| pair[0].sent <= pair[1].sent && pair[0].ended <= pair[1].ended));
}

/// All completed, and every latency was measured.
fn assert_whole(report: &Report, submitted: usize) {
    let counts = (report.submitted, report.completed, report.failed, report.lost);
    assert_eq!(counts, (submitted, submitted, 0, 0), "{:?}", report.failures);
    let summaries = [report.ttft_ms, report.tpot_ms, report.itl_ms, report.e2el_ms, report.send_delay_ms];
    assert!(summaries.iter().all(Option::is_some), "{summaries:?}");
    assert_eq!(report.ttft_ms.unwrap().count, submitted);
    assert!(report.input_throughput > 0.0 && report.output_throughput > 0.0);
    let stages = report.stages_ms.expect("the pipeline tells where the time went");
    assert!(stages.total_ms > 0.0 && stages.decode_ms > 0.0, "{stages:?}");
}

/// A trace of the same form as the recorded ones: 40 requests in 2 s, of which every fourth goes on from an earlier one.
fn trace() -> String {
    let line = |number: u64| {
        let begins = 100 * (number / 4);
        let blocks: Vec<u64> = (0..=number % 4).map(|block| begins + block).collect();
        let tokens = 512 * (number % 4) + 300;
        let line = serde_json::json!({
            "timestamp": number * 50, "input_length": tokens, "output_length": 8 + number % 5, "hash_ids": blocks,
        });
        format!("{line}\n")
    };
    (0..40).map(line).collect()
}

#[tokio::test]
async fn a_sim_pipeline_takes_every_kind_of_load() {
    let ground = Ground::sim(&["models.sim.sim.decode_s_per_step=0.001", "store.chunk_tokens=64"]).await;
    let _workers = ground.workers().await;
    let target = Target::from(ground.bus().await);
    let run = async |options: &Options| baton_load::run(&target, options, |_| {}).await.unwrap();

    // Open loop: bursts of Poisson's mean rate, with an SLO that all keep to and one that none can.
    let options = Options {
        output_tokens: "uniform:4:16".parse().unwrap(),
        warmup: 5,
        burstiness: "0.5".parse().unwrap(),
        goodput: vec!["e2el:60000".parse().unwrap()],
        ..Options::open_loop(50.0, 100).unwrap()
    };
    let measured = run(&options).await;
    assert_whole(&measured.report, 100);
    assert_eq!(measured.report.goodput.unwrap().share, 1.0);
    let none = run(&Options { goodput: vec!["ttft:0".parse().unwrap()], seed: 1, ..options.clone() }).await;
    assert_eq!(none.report.goodput.unwrap().share, 0.0);

    // The names that other tools know.
    let json = serde_json::to_value(&measured.report).unwrap();
    for figure in ["request_throughput", "input_throughput", "output_throughput", "total_token_throughput"] {
        assert!(json[figure].as_f64() > Some(0.0), "{figure}: {json}");
    }
    for latency in ["ttft_ms", "tpot_ms", "itl_ms", "e2el_ms"] {
        for part in ["mean", "median", "std", "p50", "p90", "p95", "p99"] {
            assert!(json[latency][part].is_f64(), "{latency}.{part}: {json}");
        }
    }
    let lines: Vec<_> = measured.lines().map(|line| serde_json::to_value(line).unwrap()).collect();
    assert_eq!(lines.len(), 100);
    assert!(lines.iter().all(|line| line["end"] == "completed" && line["ttft_ms"].is_f64()), "{:?}", lines[0]);

    // The page stands alone.
    let page = page::of(&measured);
    assert!(
        !page.contains("://") && !page.contains("<script") && !page.contains("<link"),
        "the page asks for something"
    );
    assert!(page.matches("<svg").count() == 6, "{} pictures", page.matches("<svg").count());

    // All at once.
    let flood = Options { rate: Some("inf".parse().unwrap()), jobs: Some(30), warmup: 0, seed: 2, ..options.clone() };
    let flood = run(&flood).await.report;
    assert_whole(&flood, 30);
    assert_eq!(flood.max_concurrency, 30);

    // Closed loop: never more than asked for, and ends by time.
    let closed = Options {
        output_tokens: "8".parse().unwrap(),
        seed: 3,
        ..Options::closed_loop(6, Duration::from_millis(1_500)).unwrap()
    };
    let closed = run(&closed).await.report;
    assert_whole(&closed, closed.submitted);
    assert!(closed.submitted > 6 && closed.max_concurrency == 6, "{} {}", closed.submitted, closed.max_concurrency);
    let Summary { max, .. } = closed.send_delay_ms.unwrap();
    assert!(closed.steady.is_some_and(|steady| steady.concurrency <= 6.01), "{:?}, late by {max} ms", closed.steady);

    // A trace: what it shares, the pipeline finds again.
    let file = ground.directory.path().join("trace.jsonl");
    std::fs::write(&file, trace()).unwrap();
    let replay = Options {
        trace: Some(file),
        rate: None,
        jobs: None,
        time_scale: 0.5,
        length_scale: 0.25,
        seed: 4,
        ..Options::open_loop(1.0, 1).unwrap()
    };
    let replayed = run(&replay).await.report;
    assert_whole(&replayed, 40);
    let tokens: u64 = (0..40).map(|number| 128 * (number % 4) + 75).sum();
    assert_eq!(replayed.total_input_tokens, tokens);
    assert!(replayed.total_cached_tokens > tokens / 5, "{} of {tokens}", replayed.total_cached_tokens);
    assert!(replayed.duration_s >= 0.9, "{}", replayed.duration_s);
}

#[tokio::test]
async fn the_gateway_takes_the_load_of_both_its_endpoints() {
    let ground = Ground::sim(&["models.sim.sim.decode_s_per_step=0.001"]).await;
    let _workers = ground.workers().await;
    let (_gateway, url) = ground.gateway(&[]).await;
    for (seed, api) in [(0, Api::Chat), (1, Api::Completions)] {
        let target = Target::OpenAi(Server::new(url.clone(), api));
        let output_tokens = "uniform:4:12".parse().unwrap();
        let options = Options { output_tokens, seed, ..Options::open_loop(40.0, 40).unwrap() };
        let report = baton_load::run(&target, &options, |_| {}).await.unwrap().report;
        let counts = (report.completed, report.failed, report.lost);
        assert_eq!(counts, (40, 0, 0), "{api:?}: {:?}", report.failures);
        assert_eq!((report.ttft_ms.unwrap().count, report.e2el_ms.unwrap().count), (40, 40));
        assert!((4 * 40..=12 * 40).contains(&report.total_output_tokens), "{}", report.total_output_tokens);
        // Words are letters to the sim engine; token ids are what they are.
        let expected = if api == Api::Chat { 128 * 40 * 2..128 * 40 * 10 } else { 128 * 40..128 * 40 + 1 };
        assert!(expected.contains(&report.total_input_tokens), "{api:?}: {}", report.total_input_tokens);
        assert!(report.itl_ms.is_some_and(|itl| itl.count > 40), "{api:?}: {:?}", report.itl_ms);
    }
}
