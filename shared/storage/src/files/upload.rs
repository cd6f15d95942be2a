//! Writing a blob as it comes.

use std::mem;

use bytes::{Bytes, BytesMut};
use tokio::{runtime::Handle, task::JoinHandle};

use super::{Blob, Error, Extent, Files};
use crate::store;

/// A blob that is being written. Dropped before [`Upload::finish`], it removes what it has stored.
#[derive(Debug)]
pub struct Upload {
    files: Files,
    blob: Blob,
    max_bytes: u64,
    /// Bytes that came, those of `part` included.
    bytes: u64,
    /// What no part has been made of yet.
    part: BytesMut,
    /// Parts that were handed to the store.
    parts: u64,
    /// The last of them, on its way.
    under_way: Option<JoinHandle<Result<store::Put, store::Error>>>,
    finished: bool,
}

impl Upload {
    pub(super) fn new(files: Files, blob: Blob, max_bytes: u64) -> Self {
        let (part, under_way) = (BytesMut::new(), None);
        Self { files, blob, max_bytes, bytes: 0, part, parts: 0, under_way, finished: false }
    }

    /// Bytes that came so far.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Appends bytes. Waits when the store is slower than they come.
    pub async fn push(&mut self, mut bytes: &[u8]) -> Result<(), Error> {
        self.bytes += bytes.len() as u64;
        if self.bytes > self.max_bytes {
            return Err(Error::TooLarge { max: self.max_bytes });
        }
        let size = self.files.part_bytes as usize;
        while self.part.len() + bytes.len() >= size {
            let (fits, rest) = bytes.split_at(size - self.part.len());
            self.part.extend_from_slice(fits);
            self.put().await?;
            bytes = rest;
        }
        self.part.extend_from_slice(bytes);
        Ok(())
    }

    /// Stores the rest. When this returns, the blob is whole and as durable as its store keeps it.
    pub async fn finish(mut self) -> Result<Extent, Error> {
        if !self.part.is_empty() {
            self.put().await?;
        }
        self.settled().await?;
        self.finished = true;
        Ok(Extent { bytes: self.bytes, part_bytes: self.files.part_bytes })
    }

    /// Hands the present part to the store, once the one before is there.
    async fn put(&mut self) -> Result<(), Error> {
        self.settled().await?;
        let bytes: Bytes = mem::take(&mut self.part).freeze();
        let (store, path) = (self.files.store.clone(), self.blob.part(self.parts));
        self.parts += 1;
        self.under_way = Some(tokio::spawn(async move { store.put_new(&path, bytes).await }));
        Ok(())
    }

    async fn settled(&mut self) -> Result<(), Error> {
        let Some(put) = &mut self.under_way else { return Ok(()) };
        let done = put.await;
        self.under_way = None;
        match done {
            Ok(done) => done.map(drop).map_err(Error::from),
            // The runtime ends, or the put panicked: either way the part may not be there.
            Err(_) => Err(Error::Damaged { blob: self.blob, part: self.parts.saturating_sub(1) }),
        }
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if self.finished || self.parts == 0 {
            return;
        }
        // Where no runtime is left, a sweep does it.
        let Ok(runtime) = Handle::try_current() else { return };
        let (files, blob, parts, under_way) = (self.files.clone(), self.blob, self.parts, self.under_way.take());
        runtime.spawn(async move {
            if let Some(put) = under_way {
                // Whatever came of it, it must not come after the deletion.
                let _ = put.await;
            }
            if let Err(error) = files.delete_parts(blob, parts).await {
                tracing::debug!(%error, %blob, "the parts of an upload that ended early were left to a sweep");
            }
        });
    }
}
