//! Writing a blob as it comes.

use std::{collections::VecDeque, mem, num::NonZeroUsize};

use baton_contract::causes;
use tokio::{runtime::Handle, task::JoinHandle};

use super::{Blob, Error, Extent, Files, Form, part::Place};
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
    part: Vec<u8>,
    /// Parts that were handed to the store.
    parts: u64,
    /// The last of them, on their way.
    under_way: VecDeque<JoinHandle<Result<store::Put, store::Error>>>,
    /// How many these may be.
    at_once: NonZeroUsize,
    finished: bool,
}

impl Upload {
    pub(super) fn new(files: Files, blob: Blob, max_bytes: u64, at_once: NonZeroUsize) -> Self {
        let (part, under_way) = (Vec::new(), VecDeque::new());
        Self { files, blob, max_bytes, bytes: 0, part, parts: 0, under_way, at_once, finished: false }
    }

    /// Bytes that came so far.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Appends bytes. Waits when the store is slower than they come. If they don't fit into what the blob may have, none of
    /// them is appended, and what was before can still be finished.
    pub async fn push(&mut self, mut bytes: &[u8]) -> Result<(), Error> {
        let grown = self.bytes.saturating_add(bytes.len() as u64);
        if grown > self.max_bytes {
            return Err(Error::TooLarge { max: self.max_bytes });
        }
        self.bytes = grown;
        let size = self.files.part_bytes as usize;
        while self.part.len() + bytes.len() >= size {
            let (fits, rest) = bytes.split_at(size - self.part.len());
            self.fill(fits);
            self.put().await?;
            bytes = rest;
        }
        self.fill(bytes);
        Ok(())
    }

    /// Appends to the part. It grows as it is filled, but never holds more memory than a part has.
    fn fill(&mut self, bytes: &[u8]) {
        let (length, room) = (self.part.len() + bytes.len(), self.part.capacity());
        if length > room {
            let grown = length.max(2 * room).min(self.files.part_bytes as usize);
            self.part.reserve_exact(grown - self.part.len());
        }
        self.part.extend_from_slice(bytes);
    }

    /// Stores the rest. When this returns, the blob is whole and as durable as its store keeps it.
    pub async fn finish(mut self) -> Result<Extent, Error> {
        if !self.part.is_empty() {
            self.put().await?;
        }
        while !self.under_way.is_empty() {
            self.settle().await?;
        }
        self.finished = true;
        let form = if self.files.key.is_some() { Form::Sealed } else { Form::Checked };
        Ok(Extent { bytes: self.bytes, part_bytes: self.files.part_bytes, form })
    }

    /// Hands the present part to the store, once few enough are on their way.
    async fn put(&mut self) -> Result<(), Error> {
        while self.under_way.len() >= self.at_once.get() {
            self.settle().await?;
        }
        let place = Place { blob: self.blob, number: self.parts };
        let bytes = place.pack(mem::take(&mut self.part), self.files.key.as_deref())?;
        let (store, path) = (self.files.store.clone(), self.blob.part(self.parts));
        self.parts += 1;
        self.under_way.push_back(tokio::spawn(async move { store.put_new(&path, bytes).await }));
        Ok(())
    }

    /// Waits for the oldest part that is on its way.
    async fn settle(&mut self) -> Result<(), Error> {
        let part = self.parts - self.under_way.len() as u64;
        let Some(put) = self.under_way.front_mut() else { return Ok(()) };
        let done = put.await;
        self.under_way.pop_front();
        match done {
            Ok(done) => done.map(drop).map_err(Error::from),
            // The runtime ends, or the put panicked: either way the part may not be there.
            Err(_) => Err(Error::Damaged { blob: self.blob, part }),
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
        let (files, blob, parts, under_way) =
            (self.files.clone(), self.blob, self.parts, mem::take(&mut self.under_way));
        runtime.spawn(async move {
            for put in under_way {
                // Whatever came of it, it must not come after the deletion.
                let _ = put.await;
            }
            if let Err(error) = files.delete_parts(blob, parts).await {
                tracing::debug!(error = %causes(&error), %blob, "the parts of an upload that ended early were left to a sweep");
            }
        });
    }
}
