//! The stream in which admitted jobs wait, one subject a model, lane and tenant.

use async_nats::jetstream::message::StreamMessage;
use baton_contract::{
    JobId, JobKey, Name, causes, header,
    job::Job,
    record::Source,
    subject::{Layout, Stage},
};
use bytes::Bytes;

use crate::{Bus, Error, HeaderMap, tenants::model_lane::ModelLane};

/// Which job a waiting message is of.
pub(crate) fn key_of(message: &StreamMessage) -> Option<JobKey> {
    let (_, _, tenant) = Layout::parse_place(message.subject.as_str())?;
    Some(JobKey { tenant, job: JobId::new(message.headers.get(header::JOB_ID)?.as_str()).ok()? })
}

impl Bus {
    /// Admitted jobs that wait for their turn, of all tenants.
    pub async fn waiting_for_turns(&self) -> Result<u64, Error> {
        Ok(self.counts(self.layout.waiting_stream()).await?.iter().map(|(_, _, jobs)| jobs).sum())
    }

    /// Where a stage finds a tenant's jobs of a line; what ingest admits goes to prefill or decode.
    pub(super) fn place(&self, stage: Stage, line: &ModelLane, tenant: &Name) -> String {
        match stage {
            Stage::Decode => self.layout.decode(&line.model, &line.lane, tenant),
            Stage::Ingest | Stage::Prefill => self.layout.prefill(&line.model, &line.lane, tenant),
        }
    }

    /// Lets an admitted job wait for its turn to go to `stage`, and keeps a copy of its message as [`Bus::begin`] does.
    pub(super) async fn begin_waiting(
        &self,
        stage: Stage,
        job: &Job,
        by: Source,
        mut headers: HeaderMap,
        payload: Bytes,
    ) -> Result<(), Error> {
        headers.insert(header::STAGE, stage.as_str());
        headers.insert(header::JOB_ID, job.id.as_str());
        if let Some(deadline_ms) = job.deadline_ms {
            headers.insert(header::DEADLINE, deadline_ms.to_string());
        }
        let place = self.layout.waiting(&job.model, &job.lane, &job.tenant);
        let subject = self.place(stage, &ModelLane::of(job), &job.tenant);
        self.begin_at(place, subject, job, by, headers, payload).await?;
        let failed = |message: String| Error::Publish { subject: self.layout.wake(), message };
        self.client.publish(self.layout.wake(), Bytes::new()).await.map_err(|error| failed(causes(&error)))
    }
}
