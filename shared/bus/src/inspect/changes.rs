//! Job records by the time of their last change, the latest first, in bounded memory.
//!
//! A record's every change is a message at the end of the bucket's stream, and takes the place of the one before. So the
//! latest changes are at the end; JetStream reads forwards only, so the stream is read in blocks of sequences from its end on,
//! each turned round in memory.

use std::ops::Range;

use baton_contract::{
    JobId, JobKey, Name, causes,
    record::Record,
    subject::{Layout, broker},
};
use futures::{Stream, StreamExt, TryStreamExt, stream};

use crate::{
    Bus, Error,
    inspect::scan::{self, Scan},
};

/// Sequences of the first block. Changes leave gaps, so a block has at most this many records, and mostly fewer.
const FIRST_BLOCK: u64 = 512;
/// Sequences of the largest block: each next one is twice as long up to this.
const LARGEST_BLOCK: u64 = 16_384;

/// A job, and when its record changed last.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Whose job it is.
    pub tenant: Name,
    /// The job's id.
    pub job: JobId,
    /// What is known about it.
    pub record: Record,
    /// Milliseconds since 1970, by the broker's clock.
    pub changed_ms: u64,
}

impl Bus {
    /// The jobs of a tenant, or of all, by the time of their last change, the latest first. A job that changes while this is
    /// read may be left out.
    pub async fn changes(
        &self,
        tenant: Option<&Name>,
    ) -> Result<impl Stream<Item = Result<Entry, Error>> + Unpin + use<>, Error> {
        let bucket = self.layout.job_bucket();
        let name = broker::bucket_stream(&bucket);
        let missing = |message| Error::NotProvisioned { root: self.layout.root().clone(), message };
        let found = self.jetstream.get_stream(&name).await.map_err(|error| missing(causes(&error)))?;
        let state = &found.cached_info().state;
        let reading = Reading {
            bus: self.clone(),
            prefix: broker::bucket_prefix(&bucket),
            subjects: match tenant {
                Some(tenant) => format!("{}{tenant}.*", broker::bucket_prefix(&bucket)),
                None => broker::bucket_subjects(&bucket),
            },
            stream: name,
            rest: state.first_sequence.max(1)..state.last_sequence + 1,
            block: FIRST_BLOCK,
        };
        let blocks = stream::try_unfold(reading, |mut reading| async move {
            if reading.rest.is_empty() {
                return Ok(None);
            }
            let block = reading.next_block().await?;
            Ok(Some((stream::iter(block.into_iter().rev().map(Ok)), reading)))
        });
        Ok(blocks.try_flatten().boxed())
    }

    /// The model and the lane of a job that ingest has admitted.
    pub async fn admitted_to(&self, tenant: &Name, job: &JobId) -> Result<Option<(Name, Name)>, Error> {
        let key = JobKey { tenant: tenant.clone(), job: job.clone() };
        let admitted = self.admitted(&key).await?;
        let place = admitted.and_then(|(subject, _)| Layout::parse_place(&subject));
        Ok(place.map(|(model, lane, _)| (model, lane)))
    }
}

struct Reading {
    bus: Bus,
    stream: String,
    subjects: String,
    prefix: String,
    /// Sequences that were not read yet.
    rest: Range<u64>,
    block: u64,
}

impl Reading {
    /// The records of the last block that was not read yet, in their stream's order.
    async fn next_block(&mut self) -> Result<Vec<Entry>, Error> {
        let from = self.rest.start.max(self.rest.end.saturating_sub(self.block));
        let scan = Scan { from, ..Scan::all(self.stream.clone()) };
        let mut messages = scan::messages_of(&self.bus, scan, self.subjects.clone()).await?;
        let mut entries = Vec::new();
        while let Some(message) = messages.try_next().await? {
            if message.sequence >= self.rest.end {
                break;
            }
            let key = message.subject.as_str().strip_prefix(&self.prefix).and_then(JobKey::parse);
            // What has no payload was removed; other keys are of chores.
            let Some(JobKey { tenant, job }) = key.filter(|_| !message.payload.is_empty()) else { continue };
            let record = serde_json::from_slice(&message.payload).map_err(|error| Error::Read {
                what: format!("the record of job {tenant}/{job}"),
                message: causes(&error),
            })?;
            let changed_ms = (message.time.unix_timestamp_nanos() / 1_000_000) as u64;
            entries.push(Entry { tenant, job, record, changed_ms });
        }
        self.rest.end = from;
        self.block = (self.block * 2).min(LARGEST_BLOCK);
        Ok(entries)
    }
}
