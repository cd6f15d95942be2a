//! Where admitted jobs wait for their turn, so that no tenant's backlog is in another's way.
//!
//! The queues of prefill and decode are first come, first served, and therefore kept short: [`Gate`] passes an admitted job
//! on to them while they are, and lets it wait otherwise, in a stream where each model, lane and tenant has its own subject.
//! One worker at a time ([`Releaser`]) moves what waits to the queues as room comes, taking the tenants in turn
//! (`rounds`, which is pure). A job is moved by storing it in the queue, under the id that ingest would have used, and then
//! removing it here: at every moment it is somewhere, and if it is in two places, one of them is settled by the job's claim.
//!
//! How many jobs of a tenant are past this point is what the queues hold under its subjects, for a message leaves a queue
//! when its successor is durable: no count that a crash could falsify is kept anywhere.

mod gate;
mod heads;
mod reading;
mod releaser;
mod rounds;

use std::collections::BTreeMap;

use async_nats::jetstream::message::StreamMessage;
use baton_contract::{
    JobId, Name, causes,
    job::Job,
    record::Source,
    subject::{Layout, Stage},
};
use bytes::Bytes;

pub use self::{gate::Gate, releaser::Releaser};
use crate::{Bus, Error, HeaderMap, client::ID_HEADER, reconcile::JobKey};

/// Which stage's queue a waiting job goes to.
const STAGE_HEADER: &str = "Baton-Stage";
/// When a waiting job expires, in milliseconds since 1970; left out for one that does not.
const DEADLINE_HEADER: &str = "Baton-Deadline";

/// How tenants share the pipeline.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The most urgent first.
    pub lanes: Vec<Name>,
    /// What is set for single tenants.
    pub tenants: BTreeMap<Name, Share>,
    /// Jobs of each tenant that may wait, of each model and lane; the stream's own limit.
    pub tenant_backlog: Option<u64>,
}

/// What one tenant has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// Jobs in a turn, at least 1.
    pub weight: u64,
    /// Jobs that may be past the waiting queue at once.
    pub max_running: Option<u64>,
}

impl Default for Share {
    fn default() -> Self {
        Self { weight: 1, max_running: None }
    }
}

impl Options {
    fn share(&self, tenant: &Name) -> Share {
        self.tenants.get(tenant).copied().unwrap_or_default()
    }
}

/// The jobs of one model and lane.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Line {
    pub(crate) model: Name,
    pub(crate) lane: Name,
}

impl Line {
    fn of(job: &Job) -> Self {
        Self { model: job.model.clone(), lane: job.lane.clone() }
    }
}

/// Which job a waiting message is of.
pub(crate) fn key_of(message: &StreamMessage) -> Option<JobKey> {
    let (_, _, tenant) = Layout::parse_place(message.subject.as_str())?;
    Some(JobKey { tenant, job: JobId::new(message.headers.get(ID_HEADER)?.as_str()).ok()? })
}

impl Bus {
    /// Admitted jobs that wait for their turn, of all tenants.
    pub async fn waiting_for_turns(&self) -> Result<u64, Error> {
        Ok(self.counts(self.layout.waiting_stream()).await?.iter().map(|(_, _, jobs)| jobs).sum())
    }

    /// Where a stage finds a tenant's jobs of a line; what ingest admits goes to prefill or decode.
    fn place(&self, stage: Stage, line: &Line, tenant: &Name) -> String {
        match stage {
            Stage::Decode => self.layout.decode(&line.model, &line.lane, tenant),
            Stage::Ingest | Stage::Prefill => self.layout.prefill(&line.model, &line.lane, tenant),
        }
    }

    /// Lets an admitted job wait for its turn to go to `stage`, and keeps a copy of its message as [`Bus::begin`] does.
    async fn begin_waiting(
        &self,
        stage: Stage,
        job: &Job,
        by: Source,
        mut headers: HeaderMap,
        payload: Bytes,
    ) -> Result<(), Error> {
        headers.insert(STAGE_HEADER, stage.as_str());
        headers.insert(ID_HEADER, job.id.as_str());
        if let Some(deadline_ms) = job.deadline_ms {
            headers.insert(DEADLINE_HEADER, deadline_ms.to_string());
        }
        let place = self.layout.waiting(&job.model, &job.lane, &job.tenant);
        let subject = self.place(stage, &Line::of(job), &job.tenant);
        self.begin_at(place, subject, job, by, headers, payload).await?;
        let failed = |message: String| Error::Publish { subject: self.layout.wake(), message };
        self.client.publish(self.layout.wake(), Bytes::new()).await.map_err(|error| failed(causes(&error)))
    }
}
