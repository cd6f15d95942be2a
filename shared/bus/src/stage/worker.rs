//! A worker of a stage: takes messages, reads them, and works on each in its job's trace.

use std::{marker::PhantomData, sync::Arc, time::Duration};

use baton_contract::{
    backoff::Backoff,
    causes,
    envelope::{self, Task},
    record::Claim,
    subject::Stage,
};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, info_span};

use crate::{
    Bus, Error,
    connection::{clock::Clock, entropy::entropy, trace},
    stage::{
        cancel::InHand,
        checkpoints::Checkpoints,
        claiming::Exit,
        delivery::{Delivery, Settle},
        handler::Handler,
        jobs::Jobs,
        pull::{self, Receiver},
    },
};

/// The longest pause before a message is delivered again.
pub(super) const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// The pauses before a message is delivered again.
const RETRIES: Backoff = Backoff::growing(Duration::from_secs(1), LONGEST_PAUSE, 4);

/// Runs a stage until `shutdown`, then drains. `worker` names it in claims and results. When `broken` is cancelled, the
/// handler can't work any more: the stage drains too, and fails, for it would only take jobs away from those that can.
pub async fn run<T: Task + Sync, H: Handler<T>>(
    bus: &Bus,
    options: pull::Options,
    worker: String,
    handler: H,
    broken: CancellationToken,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let (bus, jobs, checkpoints) = (bus.clone(), bus.jobs().await?, bus.checkpoints().await?);
    let (clock, in_hand, told) = (bus.clock(), InHand::default(), bus.cancellations().await?);
    let stage = StageLoop { bus, jobs, checkpoints, clock, in_hand, options, worker, handler, task: PhantomData };
    let stage = Arc::new(stage);
    let stop = shutdown.child_token();
    let running = async {
        tokio::select! {
            ended = pull::run(&stage.bus, &stage.options, stage.clone(), stop.clone()) => ended,
            never = stage.in_hand.listen(told) => match never {},
        }
    };
    tokio::pin!(running);
    tokio::select! {
        ended = &mut running => ended,
        () = broken.cancelled() => {
            stop.cancel();
            running.await?;
            Err(Error::Broken)
        }
    }
}

/// A worker's part in a stage.
pub(super) struct StageLoop<T, H> {
    pub(super) bus: Bus,
    pub(super) jobs: Jobs,
    pub(super) checkpoints: Checkpoints,
    pub(super) clock: Clock,
    pub(super) in_hand: InHand,
    pub(super) options: pull::Options,
    pub(super) worker: String,
    pub(super) handler: H,
    task: PhantomData<fn() -> T>,
}

impl<T: Task + Sync, H: Handler<T>> Receiver for StageLoop<T, H> {
    async fn receive(&self, delivery: &Delivery) -> Settle {
        let task: T = match envelope::decode(delivery.payload()) {
            Ok(task) => task,
            // Not for ever: there may be none.
            Err(error @ envelope::Error::Version(_)) if delivery.attempt < self.options.max_deliver => {
                tracing::warn!(error = %causes(&error), attempt = delivery.attempt, "a message of another release was left to its workers");
                return Settle::Nak(Some(LONGEST_PAUSE));
            }
            Err(error) => return self.put_aside(delivery, &error).await,
        };
        let job = task.job();
        let span = match self.options.stage {
            Stage::Ingest => info_span!("ingest", job = %job.id, tenant = %job.tenant, attempt = delivery.attempt),
            Stage::Prefill => info_span!("prefill", job = %job.id, tenant = %job.tenant, attempt = delivery.attempt),
            Stage::Decode => info_span!("decode", job = %job.id, tenant = %job.tenant, attempt = delivery.attempt),
        };
        trace::continue_from(&span, delivery.headers());
        async {
            match self.work(delivery, task).await {
                Ok(settle) | Err(Exit::Settle(settle)) => settle,
                Err(Exit::Failed(error)) => {
                    let (pause, reason) = (pause(delivery.attempt), causes(&error));
                    tracing::warn!(error = reason, ?pause, "the job was not settled and goes back to the queue");
                    self.give_back_for(delivery, Some(pause), Some(&reason)).await
                }
            }
        }
        .instrument(span)
        .await
    }

    async fn give_back(&self, delivery: &Delivery) -> Settle {
        self.give_back_for(delivery, None, None).await
    }
}

impl<T: Task + Sync, H: Handler<T>> StageLoop<T, H> {
    pub(super) fn claim(&self, delivery: &Delivery) -> Claim {
        Claim {
            stage: self.options.stage,
            sequence: delivery.sequence,
            attempt: delivery.attempt,
            worker: self.worker.clone(),
        }
    }
}

/// How long a message that was delivered `attempt` times waits before it is delivered again.
pub fn pause(attempt: u64) -> Duration {
    RETRIES.pause(attempt.clamp(1, 4) as u32 - 1, entropy())
}
