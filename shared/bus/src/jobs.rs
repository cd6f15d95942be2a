//! Job records and results: what is known about a job, and how it ended.

use async_nats::jetstream::{context::PublishErrorKind, kv, stream::DirectGetErrorKind};
use baton_contract::{
    JobId, Name,
    outcome::{Outcome, Status},
    record::{Admission, Claim, Record, Verdict},
};

use crate::{Bus, Error, HeaderMap};

/// How often a record that others change meanwhile is read again.
const RACES: usize = 16;

/// The job bucket and the result stream. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Jobs {
    bus: Bus,
    bucket: kv::Store,
}

/// A record as it is stored, with the revision that a change must name.
#[derive(Clone, Debug)]
pub struct Stored {
    pub record: Record,
    revision: u64,
}

impl Bus {
    /// The pipeline's job records; [`Bus::provision`] must have run once.
    pub async fn jobs(&self) -> Result<Jobs, Error> {
        let bucket = self
            .jetstream
            .get_key_value(self.layout.job_bucket())
            .await
            .map_err(|error| Error::NotProvisioned { root: self.layout.root().clone(), message: error.to_string() })?;
        Ok(Jobs { bus: self.clone(), bucket })
    }
}

impl Jobs {
    /// What is known about a job.
    pub async fn get(&self, tenant: &Name, job: &JobId) -> Result<Option<Stored>, Error> {
        let key = self.bus.layout.job_key(tenant, job);
        let unreadable = |message| Error::Read { what: format!("the record of job {job}"), message };
        let entry = self.bucket.entry(key).await.map_err(|error| unreadable(error.to_string()))?;
        let Some(entry) = entry.filter(|entry| entry.operation == kv::Operation::Put) else { return Ok(None) };
        let record = serde_json::from_slice(&entry.value).map_err(|error| unreadable(error.to_string()))?;
        Ok(Some(Stored { record, revision: entry.revision }))
    }

    /// Admits a request under an id, by the rules of [`Record::admit`]; stores the record of a new job.
    pub async fn admit(&self, tenant: &Name, job: &JobId, fresh: Record) -> Result<Admission, Error> {
        for _ in 0..RACES {
            if self.store(tenant, job, &fresh, None).await? {
                return Ok(Admission::Take(fresh));
            }
            let Some(stored) = self.get(tenant, job).await? else { continue };
            match stored.record.admit(&fresh.request_digest) {
                Admission::Take(next) => {
                    if self.store(tenant, job, &next, Some(stored.revision)).await? {
                        return Ok(Admission::Take(next));
                    }
                }
                admission => return Ok(admission),
            }
        }
        Err(Error::Contended { job: job.to_string() })
    }

    /// Gives a job back that could not be worked on for no fault of its own; see [`Record::give_back`].
    pub async fn give_back(&self, tenant: &Name, job: &JobId, holder: Option<&Claim>) -> Result<(), Error> {
        let Some(stored) = self.get(tenant, job).await? else { return Ok(()) };
        if let Some(next) = stored.record.give_back(holder) {
            // Whoever changed the record meanwhile has taken the job over.
            self.store(tenant, job, &next, Some(stored.revision)).await?;
        }
        Ok(())
    }

    /// Claims a job for a worker, by the rules of [`Record::claim`]. A job whose record is gone starts anew from `fresh`.
    pub async fn claim(&self, tenant: &Name, job: &JobId, claim: Claim, fresh: Record) -> Result<Verdict, Error> {
        for _ in 0..RACES {
            let (record, revision) = match self.get(tenant, job).await? {
                Some(stored) => (stored.record, Some(stored.revision)),
                None => (fresh.clone(), None),
            };
            match record.claim(claim.clone()) {
                Verdict::Take(next) => {
                    if self.store(tenant, job, &next, revision).await? {
                        return Ok(Verdict::Take(next));
                    }
                }
                verdict => return Ok(verdict),
            }
        }
        Err(Error::Contended { job: job.to_string() })
    }

    /// Publishes a job's result unless it has one, then notes the end in its record. Returns whether this result counts.
    pub async fn finish(&self, outcome: &Outcome, headers: HeaderMap) -> Result<bool, Error> {
        let counts = self.publish_result(outcome, headers).await?;
        // The one that counts may have been published by a worker that died before it could note the end.
        let status = if counts {
            outcome.status
        } else {
            self.result(&outcome.tenant, &outcome.id).await?.map_or(outcome.status, |present| present.status)
        };
        self.note_end(&outcome.tenant, &outcome.id, status).await?;
        Ok(counts)
    }

    /// Notes in a job's record how it ended, if that is not yet noted.
    pub async fn note_end(&self, tenant: &Name, job: &JobId, status: Status) -> Result<(), Error> {
        for _ in 0..RACES {
            let Some(stored) = self.get(tenant, job).await? else { return Ok(()) };
            let Some(next) = stored.record.finish(status) else { return Ok(()) };
            if self.store(tenant, job, &next, Some(stored.revision)).await? {
                return Ok(());
            }
        }
        Err(Error::Contended { job: job.to_string() })
    }

    /// The result of a job that has ended.
    pub async fn result(&self, tenant: &Name, job: &JobId) -> Result<Option<Outcome>, Error> {
        let unreadable = |message| Error::Read { what: format!("the result of job {job}"), message };
        let stream = self
            .bus
            .jetstream
            .get_stream_no_info(self.bus.layout.result_stream())
            .await
            .map_err(|error| unreadable(error.to_string()))?;
        match stream.direct_get_last_for_subject(self.bus.layout.result(tenant, job)).await {
            Ok(message) => {
                serde_json::from_slice(&message.payload).map(Some).map_err(|error| unreadable(error.to_string()))
            }
            Err(error) if error.kind() == DirectGetErrorKind::NotFound => Ok(None),
            Err(error) => Err(unreadable(error.to_string())),
        }
    }

    /// Publishes a result create-only; returns whether it was the first.
    async fn publish_result(&self, outcome: &Outcome, mut headers: HeaderMap) -> Result<bool, Error> {
        let subject = self.bus.layout.result(&outcome.tenant, &outcome.id);
        let failed = |message: String| Error::Publish { subject: subject.clone(), message };
        let payload = serde_json::to_vec(outcome).map_err(|error| failed(error.to_string()))?;
        headers.insert("Nats-Expected-Last-Subject-Sequence", "0");
        let sent = self
            .bus
            .jetstream
            .publish_with_headers(subject.clone(), headers, payload.into())
            .await
            .map_err(|error| failed(error.to_string()))?;
        match sent.await {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == PublishErrorKind::WrongLastSequence => Ok(false),
            Err(error) => Err(failed(error.to_string())),
        }
    }

    /// Stores a record if the present revision is the expected one (or none); returns whether it was.
    async fn store(&self, tenant: &Name, job: &JobId, record: &Record, revision: Option<u64>) -> Result<bool, Error> {
        let failed = |message: String| Error::Record { job: job.to_string(), message };
        let key = self.bus.layout.job_key(tenant, job);
        let value = serde_json::to_vec(record).map_err(|error| failed(error.to_string()))?.into();
        match revision {
            Some(revision) => match self.bucket.update(key, value, revision).await {
                Ok(_) => Ok(true),
                Err(error) if error.kind() == kv::UpdateErrorKind::WrongLastRevision => Ok(false),
                Err(error) => Err(failed(error.to_string())),
            },
            None => match self.bucket.create(key, value).await {
                Ok(_) => Ok(true),
                Err(error) if error.kind() == kv::CreateErrorKind::AlreadyExists => Ok(false),
                Err(error) => Err(failed(error.to_string())),
            },
        }
    }
}
