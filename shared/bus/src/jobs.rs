//! Job records and results: what is known about a job, and how it ended.

use async_nats::jetstream::{kv, stream::DirectGetErrorKind};
use baton_contract::{
    JobId, Name, causes,
    outcome::{Outcome, Status},
    record::{Admission, Claim, Record, Verdict},
};
use serde::de::DeserializeOwned;

use crate::{Bus, Error, HeaderMap, expect_first};

/// How often a record that others change meanwhile is read again.
const RACES: usize = 16;
/// Where a message carries its job's record, after the revision and a space.
const RECORD_HEADER: &str = "Baton-Record";

/// The job bucket and the result stream. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Jobs {
    pub(crate) bus: Bus,
    pub(crate) bucket: kv::Store,
}

/// A record as it is stored, with the revision that a change must name.
#[derive(Clone, Debug)]
pub struct Stored {
    pub record: Record,
    pub(crate) revision: u64,
}

/// What became of a request for a job.
#[derive(Clone, Debug)]
pub enum Admitted {
    /// It is a job now, with this record.
    Take(Stored),
    /// See [`Admission`].
    Settled,
    Conflict,
}

/// What became of a wish to work on a job.
#[derive(Clone, Debug)]
pub enum Claimed {
    /// The job is the worker's, with this record.
    Take(Stored),
    /// See [`Verdict`].
    Settled,
    Superseded,
}

impl Stored {
    /// Has a message tell its receiver the job's record, which then need not be read before it is changed.
    pub fn carry(&self, headers: &mut HeaderMap) {
        if let Ok(record) = serde_json::to_string(&self.record) {
            headers.insert(RECORD_HEADER, format!("{} {record}", self.revision));
        }
    }

    /// What a claim makes of this record, if it can have it as it is.
    pub(crate) fn expect(&self, claim: &Claim) -> Option<Record> {
        match self.record.claim(claim.clone()) {
            Verdict::Take(record) if !record.cancelled => Some(record),
            _ => None,
        }
    }

    /// The record that a message tells. It may be out of date, and is good for a compare-and-set only.
    pub(crate) fn carried(headers: Option<&HeaderMap>) -> Option<Self> {
        let (revision, record) = headers?.get(RECORD_HEADER)?.as_str().split_once(' ')?;
        Some(Self { record: serde_json::from_str(record).ok()?, revision: revision.parse().ok()? })
    }
}

impl Bus {
    /// The pipeline's job records; [`Bus::provision`] must have run once.
    pub async fn jobs(&self) -> Result<Jobs, Error> {
        let bucket = self
            .jetstream
            .get_key_value(self.layout.job_bucket())
            .await
            .map_err(|error| Error::NotProvisioned { root: self.layout.root().clone(), message: causes(&error) })?;
        Ok(Jobs { bus: self.clone(), bucket })
    }
}

impl Jobs {
    /// What is known about a job.
    pub async fn get(&self, tenant: &Name, job: &JobId) -> Result<Option<Stored>, Error> {
        let key = self.bus.layout.job_key(tenant, job);
        let unreadable = |message| Error::Read { what: format!("the record of job {job}"), message };
        let entry = self.bucket.entry(key).await.map_err(|error| unreadable(causes(&error)))?;
        let Some(entry) = entry.filter(|entry| entry.operation == kv::Operation::Put) else { return Ok(None) };
        let record = serde_json::from_slice(&entry.value).map_err(|error| unreadable(causes(&error)))?;
        Ok(Some(Stored { record, revision: entry.revision }))
    }

    /// Admits a request under an id, by the rules of [`Record::admit`]; stores the record of a new job.
    pub async fn admit(&self, tenant: &Name, job: &JobId, fresh: Record) -> Result<Admitted, Error> {
        for _ in 0..RACES {
            if let Some(stored) = self.change(tenant, job, fresh.clone(), None).await? {
                return Ok(Admitted::Take(stored));
            }
            let Some(stored) = self.get(tenant, job).await? else { continue };
            match stored.record.admit(&fresh.request_digest) {
                Admission::Take(next) => {
                    if let Some(stored) = self.change(tenant, job, next, Some(stored.revision)).await? {
                        return Ok(Admitted::Take(stored));
                    }
                }
                Admission::Settled => return Ok(Admitted::Settled),
                Admission::Conflict => return Ok(Admitted::Conflict),
            }
        }
        Err(Error::Contended { job: job.to_string() })
    }

    /// Gives a job back that could not be worked on for no fault of its own; see [`Record::give_back`]. Returns whether it
    /// was the holder's.
    pub async fn give_back(&self, tenant: &Name, job: &JobId, holder: Option<&Claim>) -> Result<bool, Error> {
        for _ in 0..RACES {
            let Some(stored) = self.get(tenant, job).await? else { return Ok(true) };
            let Some(next) = stored.record.give_back(holder) else { return Ok(false) };
            if self.store(tenant, job, &next, Some(stored.revision)).await? {
                return Ok(true);
            }
        }
        Err(Error::Contended { job: job.to_string() })
    }

    /// Claims a job for a worker, by the rules of [`Record::claim`]. A job whose record is gone starts anew from `fresh`.
    /// Where the record is `known` it is not read, unless it has changed since.
    pub(crate) async fn claim(
        &self,
        tenant: &Name,
        job: &JobId,
        claim: Claim,
        fresh: Record,
        known: Option<Stored>,
    ) -> Result<Claimed, Error> {
        if let Some(known) = known
            && let Verdict::Take(next) = known.record.claim(claim.clone())
            && let Some(stored) = self.change(tenant, job, next, Some(known.revision)).await?
        {
            return Ok(Claimed::Take(stored));
        }
        for _ in 0..RACES {
            let (record, revision) = match self.get(tenant, job).await? {
                Some(stored) => (stored.record, Some(stored.revision)),
                None => (fresh.clone(), None),
            };
            match record.claim(claim.clone()) {
                Verdict::Take(next) => {
                    if let Some(stored) = self.change(tenant, job, next, revision).await? {
                        return Ok(Claimed::Take(stored));
                    }
                }
                Verdict::Settled => return Ok(Claimed::Settled),
                Verdict::Superseded => return Ok(Claimed::Superseded),
            }
        }
        Err(Error::Contended { job: job.to_string() })
    }

    /// Publishes a job's result unless it has one, then notes the end in its record. Returns whether this result counts.
    pub async fn finish(&self, outcome: &Outcome, headers: HeaderMap) -> Result<bool, Error> {
        self.finish_held(outcome, headers, None).await
    }

    /// The same for a worker that holds the job with this record, which is not read again unless it has changed since.
    pub(crate) async fn finish_held(
        &self,
        outcome: &Outcome,
        headers: HeaderMap,
        held: Option<Stored>,
    ) -> Result<bool, Error> {
        let (tenant, job) = (&outcome.tenant, &outcome.id);
        let (counts, status) = self.publish_result(outcome, headers).await?;
        if counts
            && let Some(held) = held
            && let Some(next) = held.record.finish(status)
            && self.store(tenant, job, &next, Some(held.revision)).await?
        {
            return Ok(true);
        }
        // The one that counts may have been published by a worker that died before it could note the end.
        let status =
            if counts { status } else { self.told(tenant, job).await?.map_or(status, |present| present.status) };
        self.note_end(tenant, job, status).await?;
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
        match self.told(tenant, job).await? {
            Some(told) => self.bus.whole(told).await.map(Some),
            None => Ok(None),
        }
    }

    /// The same as its message tells it, which lacks the large parts of a large one.
    pub async fn told(&self, tenant: &Name, job: &JobId) -> Result<Option<Outcome>, Error> {
        self.of_result_stream(self.bus.layout.result(tenant, job), job).await
    }

    /// What the result stream holds under a subject.
    pub(crate) async fn of_result_stream<T: DeserializeOwned>(
        &self,
        subject: String,
        job: &JobId,
    ) -> Result<Option<T>, Error> {
        let unreadable = |message| Error::Read { what: format!("the result of job {job}"), message };
        let stream = self
            .bus
            .jetstream
            .get_stream_no_info(self.bus.layout.result_stream())
            .await
            .map_err(|error| unreadable(causes(&error)))?;
        match stream.direct_get_last_for_subject(subject).await {
            Ok(message) => {
                serde_json::from_slice(&message.payload).map(Some).map_err(|error| unreadable(causes(&error)))
            }
            Err(error) if error.kind() == DirectGetErrorKind::NotFound => Ok(None),
            Err(error) => Err(unreadable(causes(&error))),
        }
    }

    /// Publishes a result create-only; returns whether it was the first, and how it says that the job ended.
    async fn publish_result(&self, outcome: &Outcome, mut headers: HeaderMap) -> Result<(bool, Status), Error> {
        let subject = self.bus.layout.result(&outcome.tenant, &outcome.id);
        expect_first(&mut headers);
        let packed = self.bus.pack(outcome, &headers).await?;
        let first = self.bus.publish_first(subject, headers, packed.payload.clone()).await?;
        if !first {
            self.bus.unpack(&packed).await;
        }
        Ok((first, packed.status))
    }

    /// Stores a record if the present revision is the expected one (or none); the record as it is then stored.
    async fn change(
        &self,
        tenant: &Name,
        job: &JobId,
        record: Record,
        revision: Option<u64>,
    ) -> Result<Option<Stored>, Error> {
        let failed = |message: String| Error::Record { job: job.to_string(), message };
        let key = self.bus.layout.job_key(tenant, job);
        let value = serde_json::to_vec(&record).map_err(|error| failed(causes(&error)))?;
        let revision = self.put_at(&key, value, revision).await.map_err(failed)?;
        Ok(revision.map(|revision| Stored { record, revision }))
    }

    /// Stores a record if the present revision is the expected one (or none); returns whether it was.
    pub(crate) async fn store(
        &self,
        tenant: &Name,
        job: &JobId,
        record: &Record,
        revision: Option<u64>,
    ) -> Result<bool, Error> {
        Ok(self.change(tenant, job, record.clone(), revision).await?.is_some())
    }

    /// Puts a value if the key's present revision is the expected one (or none); returns whether it was.
    pub(crate) async fn put(&self, key: &str, value: Vec<u8>, revision: Option<u64>) -> Result<bool, String> {
        Ok(self.put_at(key, value, revision).await?.is_some())
    }

    /// The same; returns the value's own revision if it was.
    async fn put_at(&self, key: &str, value: Vec<u8>, revision: Option<u64>) -> Result<Option<u64>, String> {
        match revision {
            Some(revision) => match self.bucket.update(key, value.into(), revision).await {
                Ok(revision) => Ok(Some(revision)),
                Err(error) if error.kind() == kv::UpdateErrorKind::WrongLastRevision => Ok(None),
                Err(error) => Err(causes(&error)),
            },
            None => match self.bucket.create(key, value.into()).await {
                Ok(revision) => Ok(Some(revision)),
                Err(error) if error.kind() == kv::CreateErrorKind::AlreadyExists => Ok(None),
                Err(error) => Err(causes(&error)),
            },
        }
    }
}
