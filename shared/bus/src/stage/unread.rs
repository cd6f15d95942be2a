//! Messages that no worker of this release can read. They are put aside as dead letters, and so that nobody waits in vain, the
//! job of such a message ends, if it is known whose it is.

use baton_contract::{
    JobKey, causes,
    envelope::{self, Task},
    outcome::{Code, Failure, Outcome, Timings},
    record::Record,
    subject::Layout,
};

use crate::{
    Error, HeaderMap,
    connection::trace,
    repair::{dead::Burial, letter_id::LetterId},
    stage::{
        claiming::taken,
        delivery::{Delivery, Settle, job_of},
        handler::Handler,
        worker::{LONGEST_PAUSE, StageLoop},
    },
};

impl<T: Task + Sync, H: Handler<T>> StageLoop<T, H> {
    /// Puts a message aside as a dead letter, and ends its job.
    pub(super) async fn put_aside(&self, delivery: &Delivery, error: &envelope::Error) -> Settle {
        let error = causes(error);
        tracing::error!(error, subject = delivery.subject(), "an unreadable message was put aside as a dead letter");
        self.end_unread(delivery, &error).await.unwrap_or_else(|failed| {
            tracing::warn!(error = %causes(&failed), "a dead letter was not stored");
            Settle::Nak(Some(LONGEST_PAUSE))
        })
    }

    async fn end_unread(&self, delivery: &Delivery, error: &str) -> Result<Settle, Error> {
        let stage = self.options.stage;
        let cause = Failure::new(Code::Internal, format!("{stage} found a message that it cannot read: {error}"));
        let burial = Burial { delivery, cause: &cause, attempts: delivery.attempt, worker: Some(&self.worker) };
        let known = match job_of(delivery.subject(), delivery.headers()) {
            Some(key) => self.jobs.get(&key.tenant, &key.job).await?.map(|stored| (key, stored)),
            None => None,
        };
        let Some((JobKey { tenant, job }, stored)) = known else {
            self.bus.letters().bury(&LetterId::Message { stage, sequence: delivery.sequence }, burial).await?;
            return Ok(Settle::Term);
        };
        let claim = self.claim(delivery);
        let Record { request_digest, accepted_at_ms, .. } = stored.record.clone();
        let fresh = Record::accepted(request_digest.clone(), accepted_at_ms);
        let held = match taken(self.jobs.claim(&tenant, &job, claim, fresh, Some(stored)).await?) {
            Ok(held) => held,
            // It has ended or moved on: nobody misses the message.
            Err(settle) => return Ok(settle),
        };
        let Some((model, lane, _)) = Layout::parse_place(delivery.subject()) else { return Ok(Settle::Term) };
        self.bus.letters().bury(&LetterId::Job { stage, tenant: tenant.clone(), job: job.clone() }, burial).await?;
        let outcome = Outcome {
            model: Some(model),
            timings: Timings { accepted_at_ms, ..Timings::default() },
            ..Outcome::bare(job, tenant, lane, request_digest, cause.clone())
        };
        let mut headers = HeaderMap::new();
        trace::copy(delivery.headers(), &mut headers);
        self.jobs.finish_held(&outcome, headers, Some(held)).await?;
        self.bus.counters().job(true);
        Ok(Settle::Ack)
    }
}
