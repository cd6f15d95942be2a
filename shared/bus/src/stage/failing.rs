//! Jobs that do not come further: they go back and wait, keep waiting here, or end with what there is of them.

use std::time::Duration;

use baton_contract::{
    causes,
    envelope::{self, Task},
    job::Job,
    outcome::{Code, Failure},
    record::Claim,
    subject::Stage,
};
use tokio::sync::oneshot;

use crate::{
    Error,
    stage::{
        cancel::Stop,
        checkpoints::Ledger,
        delivery::{Delivery, Settle},
        handler::{Ended, Handler, Next, Work},
        worker::StageLoop,
    },
};

impl<T: Task + Sync, H: Handler<T>> StageLoop<T, H> {
    /// Notes that a job goes back, for others to take after a pause if one is given, and the passing fault that it waits for.
    pub(super) async fn give_back_for(
        &self,
        delivery: &Delivery,
        pause: Option<Duration>,
        reason: Option<&str>,
    ) -> Settle {
        let Ok(task) = envelope::decode::<T>(delivery.payload()) else { return Settle::Nak(pause) };
        let (job, claim) = (task.job(), self.claim(delivery));
        let waits = match reason {
            // A broker that does not tell its time takes no note either.
            Some(reason) => self.clock.now_ms().await.ok().map(|now_ms| (reason, now_ms)),
            None => None,
        };
        match self.jobs.give_back(&job.tenant, &job.id, &claim, waits).await {
            Ok(true) => Settle::Nak(pause),
            // Whoever holds it now would lose it if the message went back.
            Ok(false) => Settle::Leave,
            Err(error) => {
                tracing::warn!(error = %causes(&error), job = %job.id, "a job that goes back was not noted as such; its try counts");
                Settle::Nak(pause)
            }
        }
    }

    /// The end of a job that used up its tries.
    pub(super) fn exhausted(&self, job: &Job) -> Failure {
        let (stage, attempts) = (self.options.stage, self.options.max_deliver);
        tracing::warn!(job = %job.id, tenant = %job.tenant, attempts, "a job used up its tries and fails");
        Failure::new(Code::AttemptsExhausted, format!("{stage} was tried {attempts} times, and no worker finished it"))
    }

    /// What a job has come to that has failed at its last try. Only decode leaves something, and only a message that was
    /// delivered before finds it.
    pub(super) async fn salvage(
        &self,
        delivery: &Delivery,
        claim: &Claim,
        ledger: &Ledger,
        stop: Stop,
    ) -> Option<Next> {
        if self.options.stage != Stage::Decode || delivery.attempt == 1 {
            return None;
        }
        let task = envelope::decode::<T>(delivery.payload()).ok()?;
        // Its message stays as a dead letter, so nothing that it names is to go.
        let ended = Ended(oneshot::channel().1);
        let work = Work { task, claim: claim.clone(), queue_ms: 0.0, ledger: ledger.clone(), stop, ended };
        self.handler.handle(work).await.ok().filter(|next| matches!(next, Next::Finish(_)))
    }

    /// Notes in a job's record what it waits for while it is kept here. Where that can't be stored, it is the same fault.
    pub(super) async fn note_wait(&self, job: &Job, claim: &Claim, error: &Error) {
        let Ok(now_ms) = self.clock.now_ms().await else { return };
        let noted = self.jobs.note_wait(&job.tenant, &job.id, claim, (&causes(error), now_ms)).await;
        if let Err(error) = noted {
            tracing::debug!(error = %causes(&error), "what a job waits for was not noted");
        }
    }
}
