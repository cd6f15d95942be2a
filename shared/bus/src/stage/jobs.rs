//! Job records and results: what is known about a job, and how it ended.

use async_nats::jetstream::{kv, stream::DirectGetErrorKind};
use baton_contract::{
    JobId, Name, causes, header,
    outcome::{Outcome, Status},
    record::{Claim, Record, Verdict},
};
use serde::de::DeserializeOwned;

use crate::{
    Bus, Error, HeaderMap,
    bus::expect_first,
    connection::conflict::{self, RACES},
};

/// The job bucket and the result stream. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Jobs {
    pub(crate) bus: Bus,
    pub(crate) bucket: kv::Store,
}

/// A record as it is stored, with the revision that a change must name.
#[derive(Clone, Debug)]
pub struct Stored {
    /// What is known about the job.
    pub record: Record,
    pub(crate) revision: u64,
}

/// What became of a wish to work on a job.
#[derive(Clone, Debug)]
pub enum Claimed {
    /// The job is the worker's, with this record.
    Take(Stored),
    /// See [`Verdict`].
    Settled,
    /// See [`Verdict`].
    Superseded,
}

impl Stored {
    /// Has a message tell its receiver the job's record, which then need not be read before it is changed.
    pub fn carry(&self, headers: &mut HeaderMap) {
        // What it waited for here is nothing to the next stage, whose claim forgets it.
        let record = Record { waiting: None, ..self.record.clone() };
        if let Ok(record) = serde_json::to_string(&record) {
            headers.insert(header::RECORD, format!("{} {record}", self.revision));
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
        let (revision, record) = headers?.get(header::RECORD)?.as_str().split_once(' ')?;
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

    /// Gives a job back that could not be worked on for no fault of its own; see [`Record::give_back`]. What it `waits` for is
    /// noted, if it is a fault that may pass. Returns whether it was the holder's.
    pub(crate) async fn give_back(
        &self,
        tenant: &Name,
        job: &JobId,
        holder: &Claim,
        waits: Option<(&str, u64)>,
    ) -> Result<bool, Error> {
        let back = |record: &Record| {
            let back = record.give_back(holder)?;
            match waits {
                Some((reason, now_ms)) => back.waits(holder, reason, now_ms),
                None => Some(back),
            }
        };
        self.change_if(tenant, job, back).await
    }

    /// Notes what a job waits for while its holder keeps it. Returns whether it is the holder's.
    pub(crate) async fn note_wait(
        &self,
        tenant: &Name,
        job: &JobId,
        holder: &Claim,
        (reason, now_ms): (&str, u64),
    ) -> Result<bool, Error> {
        self.change_if(tenant, job, |record| record.waits(holder, reason, now_ms)).await
    }

    /// Changes a record by compare-and-set; false if `change` says that there is nothing to change. A record that is gone is
    /// nobody's.
    pub(crate) async fn change_if(
        &self,
        tenant: &Name,
        job: &JobId,
        change: impl Fn(&Record) -> Option<Record>,
    ) -> Result<bool, Error> {
        conflict::until_unbeaten(
            RACES,
            || Error::contended(job),
            || async {
                let Some(stored) = self.get(tenant, job).await? else { return Ok(Some(true)) };
                let Some(next) = change(&stored.record) else { return Ok(Some(false)) };
                Ok(self.change(tenant, job, next, Some(stored.revision)).await?.map(|_| true))
            },
        )
        .await
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
        conflict::until_unbeaten(
            RACES,
            || Error::contended(job),
            || async {
                let (record, revision) = match self.get(tenant, job).await? {
                    Some(stored) => (stored.record, Some(stored.revision)),
                    None => (fresh.clone(), None),
                };
                Ok(match record.claim(claim.clone()) {
                    Verdict::Take(next) => self.change(tenant, job, next, revision).await?.map(Claimed::Take),
                    Verdict::Settled => Some(Claimed::Settled),
                    Verdict::Superseded => Some(Claimed::Superseded),
                })
            },
        )
        .await
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
        self.change_if(tenant, job, |record| record.finish(status)).await.map(drop)
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
    pub(crate) async fn change(
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
            Some(revision) => {
                let put = self.bucket.update(key, value.into(), revision).await;
                conflict::unless_beaten(put).map_err(|error| causes(&error))
            }
            None => {
                let put = self.bucket.create(key, value.into()).await;
                conflict::unless_beaten(put).map_err(|error| causes(&error))
            }
        }
    }
}
