//! Slots whose number changes while the worker runs.

use std::{sync::Arc, time::Duration};

use baton_bus::{
    Bus,
    stage::{delivery::Delivery, delivery::Settle, pull},
};
use baton_contract::{
    envelope::{self, PrefillTask},
    job::Job,
    outcome::Timings,
    record,
};
use tokio::{
    sync::{Semaphore, mpsc, watch},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use crate::support::{Broker, PATIENCE, job, name, prefill};

/// Tells of each message that it has, and keeps it until it may let one go.
struct Holding {
    came: mpsc::UnboundedSender<()>,
    leave: Arc<Semaphore>,
}

impl pull::Receiver for Holding {
    async fn receive(&self, _: &Delivery) -> Settle {
        self.came.send(()).unwrap();
        self.leave.acquire().await.unwrap().forget();
        Settle::Ack
    }
}

async fn publish(bus: &Bus, count: usize) {
    for index in 0..count {
        // In two lanes, so that a slot more than the worker has may wait at the idle one.
        let lane = name(["interactive", "batch"][index % 2]);
        let task =
            PrefillTask { job: Job { lane, ..job(&format!("j{index}")) }, timings: Timings::default(), ask: None };
        let subject = bus.layout().prefill(&task.job.model, &task.job.lane, &task.job.tenant);
        let payload = envelope::encode(&task).unwrap();
        bus.begin(subject, &task.job, record::Source::KEPT, Default::default(), payload).await.unwrap();
    }
}

#[tokio::test]
async fn jobs_are_taken_only_as_far_as_the_present_number_of_slots_allows() {
    let broker = Broker::start().await;
    let bus = broker.provisioned().await;
    publish(&bus, 20).await;
    let (room, present) = watch::channel(1);
    let options = pull::Options {
        lanes: vec![name("interactive"), name("batch")],
        slots: 8,
        room: Some(present),
        drain: PATIENCE,
        ..prefill(5, Duration::from_secs(30))
    };
    let (shutdown, leave) = (CancellationToken::new(), Arc::new(Semaphore::new(0)));
    let (sender, mut came) = mpsc::unbounded_channel();
    let receiver = Arc::new(Holding { came: sender, leave: leave.clone() });
    let running = tokio::spawn({
        let (bus, shutdown) = (bus.clone(), shutdown.clone());
        async move { pull::run(&bus, &options, receiver, shutdown).await }
    });
    let mut held = 0;
    // What the broker says is held counts what is on its way, too.
    let delivered = async || bus.queues().await.unwrap().iter().map(|queue| queue.delivered).sum::<u64>();
    // With few slots a worker looks into its queues; with many it keeps one more waiting at each idle queue but one.
    for (slots, most) in [(1, 1), (8, 9), (2, 2), (0, 0), (3, 3)] {
        room.send_replace(slots);
        while held > most {
            leave.add_permits(1);
            held -= 1;
        }
        while held < most {
            timeout(PATIENCE, came.recv()).await.expect("the worker takes too few").unwrap();
            held += 1;
        }
        let settled = async { while delivered().await != most as u64 {} };
        timeout(PATIENCE, settled).await.expect("the worker holds other jobs than its slots");
        assert!(came.try_recv().is_err(), "more than {slots} slots");
    }
    // A shutdown waits for all.
    shutdown.cancel();
    leave.add_permits(held);
    running.await.unwrap().unwrap();
    assert_eq!(delivered().await, 0);
    assert!(came.try_recv().is_err());
}
