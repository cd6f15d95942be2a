//! Checkpoints of running answers: what the next worker needs to go on where the last one stopped.
//!
//! A job has at most one, which its worker writes anew by compare-and-set. Who takes a job over writes the checkpoint once
//! in its own name before it goes on, so that the worker before it, should it still live, can write no more and learns in
//! trying that the job is another's. They lie in a bucket of their own: nobody reads them along with the job records, and
//! all that a job left there is removed when it ends.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use async_nats::jetstream::kv;
use baton_contract::{causes, checkpoint::Checkpoint, envelope, job::Job, record::Claim, subject::Stage};
use tokio_util::sync::CancellationToken;

use crate::{
    Bus, Error, HeaderMap,
    connection::conflict::{self, RACES},
};

/// Bytes of the headers that the broker's buckets are written with, at most.
const HEADERS: usize = 256;

/// The checkpoints of a pipeline's jobs. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Checkpoints {
    bus: Bus,
    bucket: kv::Store,
}

/// One job's checkpoint in the hands of the worker with a claim on the job. Clones share what is known of it.
#[derive(Clone, Debug)]
pub struct Ledger {
    checkpoints: Checkpoints,
    key: String,
    claim: Claim,
    /// The revision that a write must name; 0 if there is none.
    revision: Arc<AtomicU64>,
    /// Whether a write was tried.
    touched: Arc<AtomicBool>,
    /// Called once the claim is stored.
    claimed: CancellationToken,
}

/// What became of a wish to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// The checkpoint is stored.
    Stored,
    /// The broker takes none of this size, and so none that has more. What was written before stays.
    TooLarge,
    /// The job is another worker's, or has ended.
    Superseded,
}

/// What a worker finds that takes a job over.
#[derive(Clone, Debug, PartialEq)]
pub enum Found {
    /// Nothing to go on from.
    Nothing,
    /// What earlier workers have come to.
    Checkpoint(Box<Checkpoint>),
    /// The job is another worker's.
    Superseded,
}

impl Bus {
    /// The pipeline's checkpoints; [`Bus::provision`] must have run once.
    pub async fn checkpoints(&self) -> Result<Checkpoints, Error> {
        let bucket = self.jetstream.get_key_value(self.layout.checkpoint_bucket()).await;
        let bucket = bucket
            .map_err(|error| Error::NotProvisioned { root: self.layout.root().clone(), message: causes(&error) })?;
        Ok(Checkpoints { bus: self.clone(), bucket })
    }
}

impl Checkpoints {
    /// A job's checkpoint in the hands of the worker with this claim, who takes over what there is if the message was
    /// delivered before.
    pub fn ledger(&self, job: &Job, claim: Claim) -> Ledger {
        let ledger = self.ledger_to_be(job, claim);
        ledger.claimed();
        ledger
    }

    /// The same for a worker whose claim is on its way: nothing is written before [`Ledger::claimed`] is called.
    pub(crate) fn ledger_to_be(&self, job: &Job, claim: Claim) -> Ledger {
        Ledger {
            checkpoints: self.clone(),
            key: self.bus.layout.job_key(&job.tenant, &job.id),
            claim,
            revision: Arc::default(),
            touched: Arc::default(),
            claimed: CancellationToken::new(),
        }
    }

    /// What is stored under a key, with its revision, which is 0 if there is nothing; what can't be read is told as nothing.
    async fn read(&self, key: &str) -> Result<(Option<Checkpoint>, u64), Error> {
        let entry = self.bucket.entry(key).await;
        let entry = entry
            .map_err(|error| Error::Read { what: format!("the checkpoint of job {key}"), message: causes(&error) })?;
        let Some(entry) = entry else { return Ok((None, 0)) };
        let checkpoint = Checkpoint::decode(&entry.value);
        if let Err(error) = &checkpoint {
            tracing::warn!(error = %causes(error), key, "a checkpoint could not be read; the job starts its answers again");
        }
        Ok((checkpoint.ok(), entry.revision))
    }

    async fn put(&self, key: &str, checkpoint: &Checkpoint, revision: u64) -> Result<Option<u64>, Error> {
        let subject = || format!("the checkpoint of job {key}");
        let failed = |message| Error::Publish { subject: subject(), message };
        let too_large = |message| Error::TooLarge { subject: subject(), message };
        let value = checkpoint.encode().map_err(|error| match error {
            envelope::Error::TooLarge(_) => too_large(causes(&error)),
            error => failed(causes(&error)),
        })?;
        // What a value's headers take.
        let room = self.bus.payload_room(&HeaderMap::new()).saturating_sub(HEADERS);
        if value.len() > room {
            return Err(too_large(format!("expected at most {room} bytes, found {}", value.len())));
        }
        let put = self.bucket.update(key, value.into(), revision).await;
        conflict::unless_beaten(put).map_err(|error| failed(causes(&error)))
    }
}

impl Ledger {
    /// Notes that the claim is stored, which every write waits for.
    pub(crate) fn claimed(&self) {
        self.claimed.cancel();
    }

    /// Takes over what earlier workers have left of the job's answers. From here on they can write no more.
    pub async fn take_over(&self, job: &Job) -> Result<Found, Error> {
        self.claimed.cancelled().await;
        conflict::until_unbeaten(
            RACES,
            || Error::contended(&self.key),
            || async {
                let (found, revision) = self.checkpoints.read(&self.key).await?;
                if found.as_ref().is_some_and(|found| outranks(&found.claim, &self.claim)) {
                    return Ok(Some(Found::Superseded));
                }
                let found = found.filter(|found| found.fits(job));
                let mine = match &found {
                    Some(found) => found.clone().taken_over(self.claim.clone()),
                    None => Checkpoint::empty(self.claim.clone(), job),
                };
                let written = match self.checkpoints.put(&self.key, &mine, revision).await {
                    // It was just small enough in its former holder's name.
                    Err(Error::TooLarge { .. }) => {
                        let empty = Checkpoint::empty(self.claim.clone(), job);
                        self.checkpoints.put(&self.key, &empty, revision).await?
                    }
                    written => written?,
                };
                let Some(revision) = written else { return Ok(None) };
                self.revision.store(revision, Ordering::Relaxed);
                Ok(Some(found.map_or(Found::Nothing, |found| Found::Checkpoint(Box::new(found)))))
            },
        )
        .await
    }

    /// Writes the checkpoint anew. One write at a time.
    pub async fn write(&self, checkpoint: &Checkpoint) -> Result<Written, Error> {
        self.claimed.cancelled().await;
        self.touched.store(true, Ordering::Relaxed);
        let known = AtomicU64::new(self.revision.load(Ordering::Relaxed));
        conflict::until_unbeaten(
            RACES,
            || Error::contended(&self.key),
            || async {
                let revision = known.load(Ordering::Relaxed);
                match self.checkpoints.put(&self.key, checkpoint, revision).await {
                    Ok(Some(revision)) => {
                        self.revision.store(revision, Ordering::Relaxed);
                        return Ok(Some(Written::Stored));
                    }
                    Ok(None) => {}
                    Err(Error::TooLarge { .. }) => return Ok(Some(Written::TooLarge)),
                    Err(error) => return Err(error),
                }
                // A write whose answer was lost may have been stored after all; and an earlier life of the job, with another
                // message, may have left something.
                let (found, present) = self.checkpoints.read(&self.key).await?;
                match found {
                    Some(found) if found.claim == self.claim => {}
                    Some(found) if revision == 0 && found.claim.sequence != self.claim.sequence => {}
                    _ => return Ok(Some(Written::Superseded)),
                }
                known.store(present, Ordering::Relaxed);
                Ok(None)
            },
        )
        .await
    }

    /// Removes what the job left, unless this worker is the first and has written nothing. To be called when the job has
    /// ended.
    pub(crate) async fn clear(&self) {
        let Claim { stage, attempt, .. } = self.claim;
        if stage != Stage::Decode || (attempt == 1 && !self.touched.load(Ordering::Relaxed)) {
            return;
        }
        let Checkpoints { bucket, .. } = &self.checkpoints;
        // Not by a marker, which would stay as long as results do.
        let purged = bucket.stream.purge().filter(format!("{}{}", bucket.prefix, self.key)).await;
        if let Err(error) = purged {
            tracing::debug!(error = %causes(&error), job = self.key, "the checkpoint of a job that ended was not removed; it expires");
        }
    }
}

/// Whether a claim is a later one than `other` on the same message.
fn outranks(claim: &Claim, other: &Claim) -> bool {
    claim.sequence == other.sequence && claim.attempt > other.attempt
}
