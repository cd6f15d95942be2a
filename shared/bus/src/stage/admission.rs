//! Admission: how a request becomes a job, and how every job enters the pipeline.
//!
//! Ingest keeps the message that it admitted a job with, in a stream of its own, one a job, for as long as records are kept. So a
//! job that has lost its message can begin again (`repair::reconcile`). The copy is published together with the message
//! to the first stage, so it costs no round trip.
//!
//! With and without it a bare pipeline on two busy cores made 1,700 jobs a second at 0.43 ms of the broker's CPU time each, on
//! average of four rounds of 8,000 jobs, which differed by a tenth among themselves: what it costs is less than that.
//! The other places for it cost more: in the job's record every change and reading of the record would carry it, and would
//! meet the broker's `max_payload` before the message does; a request stream that keeps what was admitted could no longer be
//! bounded by what waits.

use async_nats::jetstream::{
    message::StreamMessage,
    stream::{DirectGetErrorKind, RawMessageErrorKind},
};
use baton_contract::{
    JobId, JobKey, Name, causes, header,
    job::Job,
    message_id,
    record::{Admission, Original, Record, Source},
    subject::Stage,
};
use bytes::Bytes;
use futures::try_join;

use crate::{
    Bus, Error, HeaderMap,
    connection::{
        conflict::{self, RACES},
        trace,
    },
    stage::jobs::{Jobs, Stored},
};

/// What became of a request for a job.
#[derive(Clone, Debug)]
pub enum Admitted {
    /// It is a job now, with this record.
    Take(Stored),
    /// See [`Admission`].
    Settled,
    /// See [`Admission`].
    Conflict,
}

impl Jobs {
    /// Admits a request under an id, by the rules of [`Record::admit`]; stores the record of a new job.
    pub async fn admit(
        &self,
        tenant: &Name,
        job: &JobId,
        request_digest: &str,
        source: Source,
    ) -> Result<Admitted, Error> {
        let fresh = Record::requested(request_digest.to_owned(), source);
        conflict::until_unbeaten(
            RACES,
            || Error::contended(job),
            || async {
                if let Some(stored) = self.change(tenant, job, fresh.clone(), None).await? {
                    return Ok(Some(Admitted::Take(stored)));
                }
                let Some(stored) = self.get(tenant, job).await? else { return Ok(None) };
                let admission = match stored.record.admit(request_digest, source, None) {
                    Admission::Copy { of } => {
                        let original = self.original(tenant, job, of).await?;
                        tracing::debug!(%job, %tenant, ?original, "a request came again");
                        stored.record.admit(request_digest, source, Some(original))
                    }
                    admission => admission,
                };
                Ok(match admission {
                    Admission::Take(next) => {
                        self.change(tenant, job, next, Some(stored.revision)).await?.map(Admitted::Take)
                    }
                    Admission::Settled | Admission::Copy { .. } => Some(Admitted::Settled),
                    Admission::Conflict => Some(Admitted::Conflict),
                })
            },
        )
        .await
    }

    /// What has become of the request that a job's record was made for. It is removed only when the job's first message is
    /// stored, together with a copy: so finding neither means that it was lost. The streams' leaders are asked, for others may
    /// not have heard yet.
    async fn original(&self, tenant: &Name, job: &JobId, of: Source) -> Result<Original, Error> {
        let key = JobKey { tenant: tenant.clone(), job: job.clone() };
        if of != Source::KEPT && self.bus.lies_in(Stage::Ingest, of).await? {
            return Ok(Original::Waits);
        }
        Ok(if self.bus.is_kept(&key).await? { Original::PassedOn } else { Original::Lost })
    }

    /// Gives a request back that ingest could not pass on; its try does not count. Returns whether it was the job's.
    pub async fn give_back_request(&self, tenant: &Name, job: &JobId, source: Source) -> Result<bool, Error> {
        self.change_if(tenant, job, |record| record.give_back_request(source)).await
    }
}

impl Bus {
    /// Passes a job that was admitted `by` a request to its first stage, and keeps a copy of the message. `headers` carry its
    /// trace.
    pub async fn begin(
        &self,
        subject: String,
        job: &Job,
        by: Source,
        headers: HeaderMap,
        payload: impl Into<Bytes>,
    ) -> Result<(), Error> {
        self.begin_at(subject.clone(), subject, job, by, headers, payload.into()).await
    }

    /// The same of a job that is to come to its first stage's `subject`, but is put in another `place` until then.
    pub(crate) async fn begin_at(
        &self,
        place: String,
        subject: String,
        job: &Job,
        by: Source,
        headers: HeaderMap,
        payload: Bytes,
    ) -> Result<(), Error> {
        let mut kept = HeaderMap::new();
        trace::copy(Some(&headers), &mut kept);
        kept.insert(header::SUBJECT, subject.as_str());
        let copy = self.publish_durably(self.layout.admitted(&job.tenant, &job.id), None, kept, payload.clone());
        let id = message_id::admitted(&job.tenant, &job.id, by);
        try_join!(copy, self.publish_durably(place, Some(&id), headers, payload)).map(drop)
    }

    /// Whether the message that a job was admitted with is kept; the stream's leader says it.
    pub(crate) async fn is_kept(&self, key: &JobKey) -> Result<bool, Error> {
        let unreadable = |message| Error::Read { what: format!("the admitted message of job {key}"), message };
        let stream = self.jetstream.get_stream_no_info(self.layout.admitted_stream()).await;
        let stream = stream.map_err(|error| unreadable(causes(&error)))?;
        match stream.get_last_raw_message_by_subject(&self.layout.admitted(&key.tenant, &key.job)).await {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => Ok(false),
            Err(error) => Err(unreadable(causes(&error))),
        }
    }

    /// The message that a job was admitted with, and the subject it goes to.
    pub(crate) async fn admitted(&self, key: &JobKey) -> Result<Option<(String, StreamMessage)>, Error> {
        let unreadable = |message| Error::Read { what: format!("the admitted message of job {key}"), message };
        let stream = self.jetstream.get_stream_no_info(self.layout.admitted_stream()).await;
        let stream = stream.map_err(|error| unreadable(causes(&error)))?;
        match stream.direct_get_last_for_subject(self.layout.admitted(&key.tenant, &key.job)).await {
            Ok(message) => {
                let subject = message.headers.get(header::SUBJECT).map(|subject| subject.as_str().to_owned());
                let subject = subject.ok_or_else(|| unreadable(format!("it has no header {}", header::SUBJECT)))?;
                Ok(Some((subject, message)))
            }
            Err(error) if error.kind() == DirectGetErrorKind::NotFound => Ok(None),
            Err(error) => Err(unreadable(causes(&error))),
        }
    }
}
