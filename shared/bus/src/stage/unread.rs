//! Messages that no worker of this release can read. They are put aside as dead letters, and so that nobody waits in vain, the
//! job of such a message ends, if it is known whose it is.

use baton_contract::{
    JobId, Name, causes,
    envelope::{self, Task},
    outcome::{Code, Failure, Outcome, Timings},
    record::Record,
    subject::Layout,
};

use super::{Handler, LONGEST_PAUSE, StageLoop, taken};
use crate::{
    Error, HeaderMap,
    dead::{Burial, LetterId},
    pull::{Delivery, Settle},
    reconcile::JobKey,
    trace,
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
            self.bus.bury(&LetterId::Message { stage, sequence: delivery.sequence }, burial).await?;
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
        self.bus.bury(&LetterId::Job { stage, tenant: tenant.clone(), job: job.clone() }, burial).await?;
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

/// The job of a message in a stage's queue, by the id that it was published with: whatever the message says, its publisher
/// was of this pipeline, for no other may publish there.
pub(crate) fn job_of(subject: &str, headers: Option<&HeaderMap>) -> Option<JobKey> {
    let (_, _, owner) = Layout::parse_place(subject)?;
    let id = headers?.get("Nats-Msg-Id")?.as_str();
    let mut parts = id.splitn(3, '/');
    let key = JobKey { tenant: Name::new(parts.next()?).ok()?, job: JobId::new(parts.next()?).ok()? };
    (key.tenant == owner && parts.next().is_some()).then_some(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_its_tenants_job_only() {
        let headers = |id: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("Nats-Msg-Id", id);
            headers
        };
        let job = |id: &str| job_of("baton.decode.sim.batch.acme", Some(&headers(id))).map(|key| key.to_string());
        assert_eq!(job("acme/report-7/prefill/12").as_deref(), Some("acme/report-7"));
        assert_eq!(job("acme/report-7/ingest").as_deref(), Some("acme/report-7"));
        for other in ["zeta/report-7/prefill/12", "acme/report-7", "report-7", "retry/12", "acme/a.b/ingest"] {
            assert_eq!(job(other), None, "{other}");
        }
        assert_eq!(job_of("baton.decode.sim.batch.acme", None), None);
    }
}
