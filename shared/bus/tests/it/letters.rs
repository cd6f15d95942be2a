//! Dead letters: one a job, also of messages that no worker can read.

use std::{sync::Arc, time::Duration};

use baton_bus::{
    Bus, HeaderMap,
    repair::{dead::Burial, letter_id::LetterId},
    stage::{
        self, Handler, Next, StageError, Work,
        delivery::{Delivery, Settle},
        pull::{self, Receiver},
    },
};
use baton_contract::{
    envelope::{self, PrefillTask, Task},
    outcome::{Code, Failure, Timings},
    record::Source,
    subject::Stage,
};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::support::{Broker, PATIENCE, job, job_id, name, prefill, result};

fn options(max_deliver: u64) -> pull::Options {
    prefill(max_deliver, Duration::from_secs(1))
}

async fn until_waiting<T: Task>(bus: &Bus, stage: Stage, jobs: u64) {
    let reached = async {
        while bus.waiting::<T>(stage).await.unwrap().count != jobs {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, reached).await.unwrap_or_else(|_| panic!("{jobs} jobs did not reach {stage}"));
}

/// Gets no job that it can read.
struct Never;

impl Handler<PrefillTask> for Never {
    async fn handle(&self, work: Work<PrefillTask>) -> Result<Next, StageError> {
        panic!("{} was read", work.task.job.id)
    }
}

#[tokio::test]
async fn a_message_of_another_release_ends_the_job_that_it_was_published_for() {
    let broker = Broker::start().await;
    let bus = broker.provisioned().await;
    let (jobs, tenant) = (bus.jobs().await.unwrap(), name("acme"));
    let mut follower = bus.follow(&tenant).await.unwrap();
    let job = job("later");
    jobs.admit(&tenant, &job.id, "digest", Source { sequence: 1, stored_ms: 1 }).await.unwrap();
    let subject = bus.layout().prefill(&job.model, &job.lane, &job.tenant);
    bus.begin(
        subject,
        &job,
        Source { sequence: 1, stored_ms: 1 },
        HeaderMap::new(),
        b"\x7fof a later release".to_vec(),
    )
    .await
    .unwrap();
    // Maintenance goes on, and takes the job for what it is: one that waits.
    for _ in 0..2 {
        let report = bus.reconcile(false).await.unwrap();
        assert_eq!((report.unread, report.waiting), (1, 1));
    }
    // The last of its deliveries.
    let (shutdown, last) = (CancellationToken::new(), options(1));
    let worker = tokio::spawn({
        let (bus, shutdown) = (bus.clone(), shutdown.clone());
        async move { stage::run(&bus, last, "w".into(), Never, CancellationToken::new(), shutdown).await }
    });
    let outcome = result(&mut follower, &job.id).await;
    assert_eq!((outcome.error.unwrap().code, outcome.request_digest.as_str()), (Code::Internal, "digest"));
    assert_eq!((outcome.model, outcome.lane), (Some(name("m")), name("batch")));
    let found = bus.letters().all().await.unwrap();
    assert_eq!(found.iter().map(|letter| letter.id.to_string()).collect::<Vec<_>>(), ["prefill.acme.later"]);
    until_waiting::<PrefillTask>(&bus, Stage::Prefill, 0).await;
    let report = bus.reconcile(false).await.unwrap();
    assert_eq!((report.open, report.waiting, report.unread), (0, 0, 0));
    assert!([report.noted, report.begun, report.reopened].iter().all(Vec::is_empty));
    shutdown.cancel();
    worker.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_job_has_one_dead_letter_however_often_it_is_buried() {
    let broker = Broker::start().await;
    let bus = broker.provisioned().await;
    let task = PrefillTask { job: job("buried"), timings: Timings::default(), ask: None };
    let subject = bus.layout().prefill(&task.job.model, &task.job.lane, &task.job.tenant);
    let payload = envelope::encode(&task).unwrap();
    bus.begin(subject, &task.job, Source::KEPT, HeaderMap::new(), payload).await.unwrap();
    let (shutdown, receiver) = (CancellationToken::new(), Arc::new(Burying(bus.clone())));
    let queue_is_empty = async {
        until_waiting::<PrefillTask>(&bus, Stage::Prefill, 0).await;
        shutdown.cancel();
    };
    let two = options(2);
    let (ended, ()) = tokio::join!(pull::run(&bus, &two, receiver, shutdown.clone()), queue_is_empty);
    ended.unwrap();
    let found = bus.letters().all().await.unwrap();
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0].attempts, 1);
}
/// Buries each message twice, as a worker does that dies before it can publish the result.
struct Burying(Bus);

impl Receiver for Burying {
    async fn receive(&self, delivery: &Delivery) -> Settle {
        let id = LetterId::Job { stage: Stage::Prefill, tenant: name("acme"), job: job_id("buried") };
        for attempts in [1, 2] {
            let cause = &Failure::new(Code::Internal, "it broke");
            self.0.letters().bury(&id, Burial { delivery, cause, attempts, worker: None }).await.unwrap();
        }
        Settle::Ack
    }
}
