//! How a job comes to its next stage.

use baton_contract::{job::Job, message_id, subject::Stage};
use bytes::Bytes;

use crate::{Bus, Error, connection::trace, stage::jobs::Stored};

impl Bus {
    /// Passes a job on to the next stage from the one that is done with its message of this `sequence`, in the trace of the
    /// current span. Repeating it within the dedupe window changes nothing; beyond that the claim does.
    pub async fn forward(&self, subject: String, job: &Job, from: (Stage, u64), payload: Vec<u8>) -> Result<(), Error> {
        self.forward_held(subject, job, from, None, payload).await
    }

    /// The same; tells the next stage the record that the job is `held` with.
    pub(crate) async fn forward_held(
        &self,
        subject: String,
        job: &Job,
        (stage, sequence): (Stage, u64),
        held: Option<&Stored>,
        payload: impl Into<Bytes>,
    ) -> Result<(), Error> {
        let id = message_id::successor(&job.tenant, &job.id, stage, sequence);
        let mut headers = trace::headers_of(&tracing::Span::current());
        if let Some(held) = held {
            held.carry(&mut headers);
        }
        self.publish_durably(subject, Some(&id), headers, payload).await.map(drop)
    }
}
