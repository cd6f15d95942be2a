//! What a worker put or got lately, kept near it: packed chunks in memory and, if wanted, in a local directory.
//!
//! A cache holds the bytes of the store as they are, sealed ones sealed. Their checksums are verified by every read, so a
//! file that was damaged, or not wholly written when the power went, is dropped and read from the store again.

mod disk;
mod index;

use std::{
    collections::HashMap,
    io,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use baton_contract::causes;
use bytes::Bytes;

pub use index::Index;

use crate::key::ChunkId;
use disk::Disk;

/// A directory that can't be a cache.
#[derive(Debug, thiserror::Error)]
#[error("cannot use {} as a cache: create the directory, or make it readable and writable", path.display())]
pub struct Error {
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// What a cache may take.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Bytes of memory; 0 for none.
    pub memory: u64,
    /// The directory, which is created if it is missing, and the bytes that it may hold for this worker.
    pub disk: Option<(PathBuf, u64)>,
}

/// Where a cached chunk was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    Memory,
    Disk,
}

/// Packed chunks of any models, in memory and on disk. Cheap to clone; clones share what they hold.
#[derive(Clone, Debug)]
pub struct Cache {
    memory: Arc<Mutex<Memory>>,
    disk: Option<Arc<Disk>>,
}

#[derive(Debug)]
struct Memory {
    index: Index<ChunkId>,
    chunks: HashMap<ChunkId, Bytes>,
}

impl Cache {
    /// Opens a cache. What an earlier worker left in the directory is there again. Several workers may name the same
    /// directory: each takes a folder of its own in it, with a budget of its own.
    pub fn open(options: Options) -> Result<Self, Error> {
        let disk = options.disk.map(|(path, bytes)| match Disk::open(&path, bytes) {
            Ok(disk) => Ok(Arc::new(disk)),
            Err(source) => Err(Error { path, source }),
        });
        let memory = Memory { index: Index::new(options.memory), chunks: HashMap::new() };
        Ok(Self { memory: Arc::new(Mutex::new(memory)), disk: disk.transpose()? })
    }

    /// Whether a chunk is here, without counting as a use of it.
    pub(crate) fn contains(&self, id: &ChunkId) -> bool {
        self.with_memory(|memory| memory.chunks.contains_key(id)) || self.disk.as_ref().is_some_and(|d| d.contains(id))
    }

    /// A chunk's bytes and where they were. A file of more than `max` bytes is dropped.
    pub(crate) async fn get(&self, id: &ChunkId, max: u64) -> Option<(Bytes, Found)> {
        let near = self.with_memory(|memory| {
            memory.index.touch(id);
            memory.chunks.get(id).cloned()
        });
        if let Some(bytes) = near {
            return Some((bytes, Found::Memory));
        }
        let (disk, id) = (self.disk.clone()?, *id);
        let bytes = Bytes::from(blocking(move || disk.get(&id, max)).await??);
        self.remember(id, bytes.clone());
        Some((bytes, Found::Disk))
    }

    /// Enters a chunk's bytes. A disk that fails is logged and no error: the chunk is in the store.
    pub(crate) async fn insert(&self, id: ChunkId, bytes: Bytes) {
        self.remember(id, bytes.clone());
        let Some(disk) = self.disk.clone() else { return };
        if let Some(Err(error)) = blocking(move || disk.insert(id, &bytes)).await {
            tracing::warn!(chunk = %id, error = %causes(&error), "a chunk was not cached on disk");
        }
    }

    /// Drops a chunk.
    pub(crate) async fn remove(&self, id: ChunkId) {
        self.with_memory(|memory| {
            memory.index.remove(&id);
            memory.chunks.remove(&id);
        });
        if let Some(disk) = self.disk.clone() {
            blocking(move || disk.remove(&id)).await;
        }
    }

    fn remember(&self, id: ChunkId, bytes: Bytes) {
        self.with_memory(|memory| {
            // Where the bytes are a part of something larger, all of it would stay.
            let len = bytes.len() as u64;
            memory.chunks.insert(id, bytes);
            for evicted in memory.index.insert(id, len) {
                memory.chunks.remove(&evicted);
            }
        });
    }

    fn with_memory<T>(&self, work: impl FnOnce(&mut Memory) -> T) -> T {
        work(&mut self.memory.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// `None` when the runtime shuts down.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    tokio::task::spawn_blocking(work).await.ok()
}
