//! Claims on prefixes: a worker says which KV chunks it is about to compute, so that others wait for them instead of computing
//! the same at the same time.
//!
//! A claim saves work and guards nothing: who can't claim, or has waited in vain, computes. It lies in a bucket of its own
//! under the first of its chunks, created if there is none, and lists the chunks that are not stored yet. Its worker renews
//! it; one that nobody renews expires.

use std::{
    fmt::Write,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use async_nats::jetstream::{
    kv::{self, Operation},
    stream::StorageType,
};
use baton_contract::causes;
use futures::StreamExt;
use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior, interval, sleep, timeout},
};

use crate::{Bus, Error, connection::conflict};

/// How long a claim may take: without an answer the worker computes.
const CLAIM_WITHIN: Duration = Duration::from_secs(2);
/// How often who waits looks whether the claim is still there: no watch tells that one has expired.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Times the life of a claim that who waits has patience with one that is renewed, yet makes no progress.
const PATIENCE: u32 = 2;
/// Bytes of a chunk's name in a claim; the rest of 32 is not needed to tell a few thousand apart.
const MARK: usize = 8;

/// The name of a chunk.
pub type ChunkName = [u8; 32];
type Mark = [u8; MARK];

/// The claims of a pipeline. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Prefixes {
    bus: Bus,
    bucket: kv::Store,
    life: Duration,
    /// Whether the bucket is being made again.
    making: Arc<AtomicBool>,
}

/// Whose turn it is to compute some chunks.
#[derive(Debug)]
pub enum ChunkOwner {
    /// This worker's, until the claim is dropped.
    Ours(Claim),
    /// Another worker's, who computes the first of them at least.
    Theirs(Box<Theirs>),
}

/// This worker's claim. Dropping it ends it.
#[derive(Debug)]
pub struct Claim {
    left: watch::Sender<Vec<Mark>>,
}

/// Another worker's claim.
#[derive(Debug)]
pub struct Theirs {
    prefixes: Prefixes,
    key: String,
    /// What is wanted of it.
    wanted: Vec<Mark>,
}

/// Why waiting for another worker has come to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It has stored all that was wanted of it.
    Stored,
    /// Its claim is gone: it has ended, given up or died.
    Gone,
    /// It made no progress for too long.
    OutOfPatience,
}

impl Bus {
    /// The pipeline's claims; a claim that is not renewed ends after `life`. Creates what it needs.
    pub async fn prefixes(&self, life: Duration) -> Result<Prefixes, Error> {
        let bucket = self.layout.prefix_bucket();
        let config = kv::Config {
            bucket,
            description: "which prefixes are being computed".into(),
            history: 1,
            max_age: life,
            // Claims that are lost cost some work that is done twice.
            storage: StorageType::Memory,
            ..Default::default()
        };
        let bucket = self.bucket(config).await?;
        Ok(Prefixes { bus: self.clone(), bucket, life, making: Arc::default() })
    }
}

impl Prefixes {
    /// Claims the computing of a chunk that is not stored, and of those after it that the same prompt needs, in order.
    pub async fn claim(&self, first: &ChunkName, following: &[ChunkName]) -> Result<ChunkOwner, Error> {
        let key = hex(first);
        let marks: Vec<Mark> = std::iter::once(first).chain(following).map(mark).collect();
        let failed = |message: String| Error::Read { what: "claims on prefixes".into(), message };
        let created = timeout(CLAIM_WITHIN, self.bucket.create(&key, marks.concat().into())).await;
        let created = created.map_err(|_| failed(format!("no answer within {CLAIM_WITHIN:?}")))?;
        let created = conflict::unless_beaten(created).inspect_err(|_| self.make_again());
        match created.map_err(|error| failed(causes(&error)))? {
            Some(revision) => {
                let (left, changes) = watch::channel(marks);
                tokio::spawn(hold(self.bucket.clone(), key, revision, changes, self.life / 3));
                Ok(ChunkOwner::Ours(Claim { left }))
            }
            None => Ok(ChunkOwner::Theirs(Box::new(Theirs { prefixes: self.clone(), key, wanted: marks }))),
        }
    }

    /// Makes the bucket again, should it be gone; nobody waits for that.
    fn make_again(&self) {
        if self.making.swap(true, Relaxed) {
            return;
        }
        let (bus, life, making) = (self.bus.clone(), self.life, self.making.clone());
        tokio::spawn(async move {
            if let Err(error) = bus.prefixes(life).await {
                tracing::debug!(error = %causes(&error), "claims on prefixes can't be kept");
            }
            making.store(false, Relaxed);
        });
    }
}

impl Claim {
    /// Tells those who wait that a chunk is stored.
    pub fn stored(&self, chunk: &ChunkName) {
        let mark = mark(chunk);
        self.left.send_if_modified(|left| {
            let before = left.len();
            left.retain(|other| *other != mark);
            left.len() < before
        });
    }
}

/// Renews a claim and tells its progress until it is dropped, then ends it.
async fn hold(
    bucket: kv::Store,
    key: String,
    mut revision: u64,
    mut changes: watch::Receiver<Vec<Mark>>,
    every: Duration,
) {
    let mut renewal = interval(every.max(Duration::from_millis(1)));
    renewal.set_missed_tick_behavior(MissedTickBehavior::Delay);
    renewal.tick().await;
    loop {
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { break },
            _ = renewal.tick() => {}
        }
        let left = changes.borrow_and_update().concat();
        match conflict::unless_beaten(bucket.update(&key, left.into(), revision).await) {
            Ok(Some(renewed)) => revision = renewed,
            Ok(None) => {
                return tracing::debug!(key, "a claim on a prefix expired; others may compute the same");
            }
            Err(error) => tracing::debug!(error = %causes(&error), key, "a claim on a prefix was not renewed"),
        }
    }
    if let Err(error) = bucket.delete_expect_revision(&key, Some(revision)).await {
        tracing::debug!(error = %causes(&error), key, "a claim on a prefix was not ended; it expires");
    }
}

impl Theirs {
    /// Waits as long as the claim's worker is at something that is wanted of it.
    pub async fn ended(self) -> Result<Ended, Error> {
        let failed = |message: String| Error::Read { what: "a claim on a prefix".into(), message };
        let patience = self.prefixes.life * PATIENCE;
        let bucket = &self.prefixes.bucket;
        let watch = bucket.watch_with_history(&self.key).await;
        let mut watch = Some(watch.map_err(|error| failed(causes(&error)))?);
        let (mut missing, mut progressed) = (usize::MAX, Instant::now());
        loop {
            let told = match &mut watch {
                Some(changes) => timeout(LOOK_EVERY, changes.next()).await.ok(),
                None => {
                    sleep(LOOK_EVERY).await;
                    None
                }
            };
            let entry = match told {
                Some(Some(Ok(entry))) => Some(entry),
                Some(_) => {
                    watch = None;
                    continue;
                }
                None => bucket.entry(&self.key).await.map_err(|error| failed(causes(&error)))?,
            };
            let Some(entry) = entry.filter(|entry| entry.operation == Operation::Put) else { return Ok(Ended::Gone) };
            let (left, _) = entry.value.as_chunks::<MARK>();
            let now_missing = self.wanted.iter().filter(|mark| left.contains(mark)).count();
            if now_missing == 0 {
                return Ok(Ended::Stored);
            }
            if now_missing < missing {
                (missing, progressed) = (now_missing, Instant::now());
            } else if progressed.elapsed() >= patience {
                return Ok(Ended::OutOfPatience);
            }
        }
    }
}

fn mark(chunk: &ChunkName) -> Mark {
    chunk.first_chunk().copied().unwrap_or_default()
}

fn hex(chunk: &ChunkName) -> String {
    let mut text = String::with_capacity(2 * chunk.len());
    for byte in chunk {
        // Writing to a string never fails.
        let _ = write!(text, "{byte:02x}");
    }
    text
}
