//! The load client against a real broker and a pipeline that this file plays itself.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use baton_bus::{
    Bus, Retention,
    pull::{self, Delivery, Receiver, Settle},
};
use baton_contract::{
    Name,
    job::{Answer, Job},
    outcome::{Code, Delta, Failure, FinishReason, Outcome, Timings},
    request::{self, Input},
    subject::Stage,
};
use baton_loadtest::Options;
use tokio_util::sync::CancellationToken;

use crate::support::Ground;

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
                    let delta = Delta { choice: 0, index: *token, token: *token, text: String::new(), logprobs: None };
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
    bus.provision(&Retention { replicas: 1, results: Duration::from_secs(600), backlog: Default::default() })
        .await
        .unwrap();

    let options = Options {
        warmup: 1,
        prompt_tokens: "uniform:3:9".parse().unwrap(),
        output_tokens: "8".parse().unwrap(),
        slo_e2el_ms: Some(60_000.0),
        timeout_s: 5.0,
        ..Options::new(200.0, JOBS - 1).unwrap()
    };
    let lane = options.lane.clone();
    let receiver = Arc::new(Hoarder { bus: bus.clone(), lane: lane.clone(), held: Mutex::default() });
    let shutdown = CancellationToken::new();
    let pulling = pull::Options {
        stage: Stage::Ingest,
        models: Vec::new(),
        lanes: vec![lane],
        slots: 1,
        ack_wait: Duration::from_secs(30),
        max_deliver: 1,
        drain: Duration::from_secs(1),
    };
    let pipeline = tokio::spawn({
        let (bus, shutdown) = (bus.clone(), shutdown.clone());
        async move { pull::run(&bus, &pulling, receiver, shutdown).await }
    });

    let mut seen = Vec::new();
    let report = baton_loadtest::run(&ground.bus().await, &options, |progress| seen.push(progress)).await.unwrap();
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
    assert_eq!((last.sent, last.ended, last.total), (12, 12, 12));
    assert!(seen.windows(2).all(|pair| pair[0].sent <= pair[1].sent && pair[0].ended <= pair[1].ended));
}

#[tokio::test]
async fn a_sim_pipeline_completes_the_load() {
    let ground = Ground::sim(&["models.sim.sim.decode_s_per_step=0.001"]).await;
    let _workers = ground.workers().await;
    let options = Options { output_tokens: "uniform:4:16".parse().unwrap(), ..Options::new(50.0, 100).unwrap() };
    let report = baton_loadtest::run(&ground.bus().await, &options, |_| {}).await.unwrap();
    assert_eq!((report.completed, report.failed, report.lost), (100, 0, 0), "{:?}", report.failures);
    assert_eq!(report.ttft_ms.unwrap().count, 100);
}
