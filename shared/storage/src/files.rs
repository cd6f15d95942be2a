//! Users' files: batches of requests, and what came of them.
//!
//! A file's bytes are a *blob*: numbered parts of one size, each an object of its own under a name that is a hash. Blobs
//! are written once, by one upload, and never changed; what makes one a file is an entry in an index, which the caller keeps
//! and writes last. So an upload that dies leaves no file, only parts that nobody names: a dropped upload removes its own,
//! and [`Files::sweep`] finds those of a process that died. This works the same in every store, none of which lets one list
//! the unfinished multipart uploads that it keeps. Each part carries its proof, so that what a store has lost, mixed up or
//! changed is an error and never other bytes.
//!
//! Collection of KV chunks never looks at blobs, nor does a sweep of blobs at chunks.

mod part;
mod sweep;
mod upload;

use std::{fmt, num::NonZeroUsize, ops::Range, str::FromStr, sync::Arc, time::SystemTime};

use bytes::Bytes;
use futures::{Stream, StreamExt, TryStreamExt, stream};

use self::part::{Place, TRAILER};
pub use self::{sweep::Swept, upload::Upload};
use crate::{
    seal::{self, SealKey},
    store::{self, ObjectPath, Store},
};

/// Bytes of a part. Parts are objects of their own, not those of S3's multipart uploads, so they may be smaller than the 5 MiB
/// that S3 wants of these: what is written slowly then holds little, and what comes fast is written in several at once.
const PART_BYTES: u64 = 512 << 10;
/// Parts that are removed at once.
const AT_ONCE: usize = 16;

/// Why a file could not be stored or read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// More bytes came than the file may have.
    #[error("the file has more than {max} bytes; split it")]
    TooLarge {
        /// The limit in bytes.
        max: u64,
    },
    /// A part is gone, or not what was written.
    #[error("part {part} of the file {blob} is missing or damaged in the store")]
    Damaged {
        /// The file.
        blob: Blob,
        /// Which part, from 0.
        part: u64,
    },
    /// The file was sealed, and there is no key here.
    #[error("the file {blob} is sealed, and no key is here: give this process the pipeline's key (store.key_file)")]
    NoKey {
        /// The file.
        blob: Blob,
    },
    /// A part could not be sealed.
    #[error("a part of a file could not be sealed")]
    Seal(#[from] seal::Failed),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] store::Error),
}

/// The name of a file's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Blob(blake3::Hash);

impl Blob {
    /// The blob of one upload of a tenant. Nothing that a user says can be read from it, or lead elsewhere.
    pub fn of_upload(tenant: &str, upload: &str) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("baton bytes of a tenant's file");
        // Lengths first, so that no two pairs are written the same.
        hasher.update(&(tenant.len() as u64).to_le_bytes());
        hasher.update(tenant.as_bytes());
        hasher.update(upload.as_bytes());
        Self(hasher.finalize())
    }

    fn part(&self, number: u64) -> ObjectPath {
        ObjectPath::part(&self.0, number)
    }
}

impl fmt::Display for Blob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Blob {
    type Err = blake3::HexError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}

/// How a blob is cut: what it takes, besides its name, to read it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Bytes of the whole.
    pub bytes: u64,
    /// Bytes of each part but the last.
    pub part_bytes: u64,
    /// What stands in the store of each part.
    pub form: Form,
}

/// How parts are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Form {
    /// The bytes and nothing else: what releases before this one have written.
    #[default]
    Plain,
    /// The bytes and a checksum.
    Checked,
    /// Encrypted with the pipeline's key.
    Sealed,
}

impl Extent {
    /// Bytes of one part.
    fn bytes_of(&self, part: u64) -> u64 {
        let size = self.part_bytes.max(1);
        self.bytes.saturating_sub(part.saturating_mul(size)).min(size)
    }

    fn parts(&self) -> u64 {
        self.bytes.div_ceil(self.part_bytes.max(1))
    }

    /// The parts that hold some bytes, each with the range of it that is wanted.
    fn cover(self, range: Range<u64>) -> impl Iterator<Item = (u64, Range<u64>)> {
        let size = self.part_bytes.max(1);
        let range = range.start.min(self.bytes)..range.end.min(self.bytes);
        let parts = if range.is_empty() { 0..0 } else { range.start / size..range.end.div_ceil(size) };
        parts.map(move |part| {
            let begins = part * size;
            (part, range.start.max(begins) - begins..range.end.min(begins + size) - begins)
        })
    }
}

/// The files in a store. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Files {
    store: Store,
    part_bytes: u64,
    /// Seals what is written.
    key: Option<Arc<SealKey>>,
}

impl Files {
    /// The files of a store, which is best opened with [`Store::open`]: a file can't be computed again.
    pub fn new(store: Store) -> Self {
        Self { store, part_bytes: PART_BYTES, key: None }
    }

    /// The same, whose new files are sealed with a key.
    pub fn sealed(self, key: SealKey) -> Self {
        Self { key: Some(Arc::new(key)), ..self }
    }

    /// Bytes of the parts that are written: what an upload holds in memory of each.
    pub fn part_bytes(&self) -> u64 {
        self.part_bytes
    }

    /// The time by the store's clock, which says how old a part is.
    pub async fn now(&self) -> Result<SystemTime, Error> {
        Ok(self.store.now().await?)
    }

    /// Begins to write a blob of at most `max_bytes`; each blob is written once. Up to `at_once` parts are on their way to the
    /// store while the next is filled, and these are all that is in memory: 1 is enough for what comes slower than the store
    /// takes it.
    pub fn upload(&self, blob: Blob, max_bytes: u64, at_once: NonZeroUsize) -> Upload {
        Upload::new(self.clone(), blob, max_bytes, at_once)
    }

    /// The bytes of a blob that lie in `range`, in order, a piece at a time. Each part is in memory and proved to be what was
    /// written before the first piece of it comes; one that is not is an error in its place. So also no request to the store waits for the reader, which may take all the time it
    /// wants, while stores and their clients cut off a request that lasts for minutes. Up to `at_once` parts are read at a time,
    /// those that follow ahead of the reader.
    pub fn read(
        &self,
        blob: Blob,
        extent: Extent,
        range: Range<u64>,
        at_once: NonZeroUsize,
    ) -> impl Stream<Item = Result<Bytes, Error>> + Send + 'static {
        let files = self.clone();
        let parts = stream::iter(extent.cover(range)).map(move |(part, range)| {
            let files = files.clone();
            // A task of its own, which goes on while the reader does not ask.
            let whole = tokio::spawn(async move {
                let pieces = match extent.form {
                    Form::Plain => {
                        let found = files.store.stream_range(&blob.part(part), range).await?;
                        found.ok_or(Error::Damaged { blob, part })?.try_collect().await?
                    }
                    Form::Checked | Form::Sealed => vec![files.part(blob, extent, part).await?.slice(within(range))],
                };
                Ok::<_, Error>(stream::iter(pieces.into_iter().map(Ok)))
            });
            async move { whole.await.unwrap_or(Err(Error::Damaged { blob, part })) }
        });
        parts.buffered(at_once.get()).try_flatten()
    }

    /// Whether all parts of a blob are there. To be asked when it has been named in the index: whatever swept it before, by a
    /// wrong clock or an older release's, is noticed then.
    pub async fn check(&self, blob: Blob, extent: Extent) -> Result<(), Error> {
        let look = |part| async move {
            match self.store.exists(&blob.part(part)).await? {
                true => Ok(()),
                false => Err(Error::Damaged { blob, part }),
            }
        };
        stream::iter(0..extent.parts()).map(look).buffer_unordered(AT_ONCE).try_collect().await
    }

    /// The bytes of a part that carries its proof.
    async fn part(&self, blob: Blob, extent: Extent, number: u64) -> Result<Bytes, Error> {
        if extent.form == Form::Sealed && self.key.is_none() {
            return Err(Error::NoKey { blob });
        }
        let damaged = || Error::Damaged { blob, part: number };
        let bytes = extent.bytes_of(number);
        let stored = match self.store.get(&blob.part(number), bytes + TRAILER as u64).await {
            Ok(stored) => stored.ok_or_else(damaged)?,
            Err(store::Error::Oversize { .. }) => return Err(damaged()),
            Err(error) => return Err(error.into()),
        };
        let place = Place { blob, number };
        let opened = place.unpack(stored, extent.form, self.key.as_deref());
        opened.filter(|opened| opened.len() as u64 == bytes).ok_or_else(damaged)
    }

    /// Removes a blob. One that is not there is no error.
    pub async fn delete(&self, blob: Blob, extent: Extent) -> Result<(), Error> {
        self.delete_parts(blob, extent.parts()).await
    }

    async fn delete_parts(&self, blob: Blob, parts: u64) -> Result<(), Error> {
        let delete = |part| async move { self.store.delete(&blob.part(part)).await.map_err(Error::from) };
        stream::iter(0..parts).map(delete).buffer_unordered(AT_ONCE).try_collect().await
    }
}

/// A range of a part, which is in memory.
fn within(range: Range<u64>) -> Range<usize> {
    range.start as usize..range.end as usize
}

#[cfg(test)]
mod tests;
