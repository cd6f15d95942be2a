//! KV chunks in a store: packs on the way in, checks on the way out, and clears away what is damaged.

mod fetch;

use std::{ops::Range, sync::Arc};

use baton_contract::causes;
use baton_contract::kv::{Block, Shape};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, future::try_join_all, stream};
use tokio::sync::Semaphore;

use crate::cache::Cache;
use crate::chunk::{self, Packer};
use crate::codec::Codec;
use crate::key::{ChunkId, PieceKind, Root};
use crate::seal::SealKey;
use crate::store::{self, ObjectPath, Put, Store};

/// Layers of one model that are packed or unpacked at a time. The engine has the other cores.
const TASKS: usize = 2;
/// Blocks of fewer bytes are packed and unpacked by one task.
const TASK_BYTES: usize = 512 << 10;
/// Chunks asked for at a time.
const QUESTIONS: usize = 32;
/// Bytes that one request of a get should bring from a remote store: fewer cost more round trips than they save.
const REQUEST_BYTES: usize = 4 << 20;

/// Why a chunk could not be put or got. A chunk that is not there is no error.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The store failed, after its own retries.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// The block could not be packed: it does not have the model's shape.
    #[error("chunk {id} cannot be packed")]
    Pack {
        /// The chunk.
        id: ChunkId,
        /// Why.
        #[source]
        source: chunk::Error,
    },
    /// The stored bytes are not the chunk. They were removed, so that putting it again heals the store: recompute it.
    #[error("stored chunk {id} was damaged; it must be recomputed")]
    Damaged {
        /// The chunk.
        id: ChunkId,
        /// What is wrong with the bytes.
        #[source]
        source: Damage,
    },
    /// The chunk was written with another key, or without one. It may be another's, so it stays in the store: recompute it.
    #[error("stored chunk {id} cannot be read with this worker's key; it must be recomputed")]
    Locked {
        /// The chunk.
        id: ChunkId,
        /// Which key it wants.
        #[source]
        source: chunk::Error,
    },
    /// The thread that packed or unpacked was lost, as happens when the runtime shuts down.
    #[error("packing or unpacking was interrupted")]
    Interrupted(#[source] tokio::task::JoinError),
}

impl Error {
    /// Whether the store works, but what it has under the chunk's name is of no use: it must be recomputed, like a chunk
    /// that is missing.
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Damaged { .. } | Self::Locked { .. })
    }
}

/// What is wrong with the bytes stored under a chunk's name.
#[derive(Debug, thiserror::Error)]
pub enum Damage {
    /// More bytes than any chunk of that many tokens has.
    #[error("expected at most {max} bytes, found {found}")]
    Oversize {
        /// The most bytes such a chunk may have.
        max: u64,
        /// The object's bytes.
        found: u64,
    },
    /// The bytes do not decode.
    #[error(transparent)]
    Chunk(#[from] chunk::Error),
}

/// What a put did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Bytes of the block, uncompressed.
    pub raw_bytes: u64,
    /// Bytes of the chunk in the store.
    pub stored_bytes: u64,
    /// Whether this put wrote the chunk. If not, it was there before and nothing was written.
    pub created: bool,
}

/// A chunk that was there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fetched {
    /// The values as put: bit for bit, unless the codec rounds.
    pub block: Arc<Block>,
    /// Bytes of the packed chunk that were read.
    pub stored_bytes: u64,
    /// Where from.
    pub source: Source,
}

/// Where a chunk came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The cache in this worker's memory.
    Memory,
    /// The cache on this worker's disk.
    Disk,
    /// The store.
    Store,
}

/// The KV chunks of one model in one store. Cheap to clone; clones share the cache and the threads that pack and unpack.
#[derive(Clone, Debug)]
pub struct KvStore {
    store: Store,
    shape: Shape,
    codec: Codec,
    key: Option<SealKey>,
    cache: Option<Cache>,
    request_bytes: usize,
    tasks: Arc<Semaphore>,
}

impl KvStore {
    /// Chunks of `shape` in `store`, open and not cached; `codec` packs those that are put, and those got may have any.
    pub fn new(store: Store, shape: Shape, codec: Codec) -> Self {
        let request_bytes = if store.is_local() { usize::MAX } else { REQUEST_BYTES };
        let tasks = Arc::new(Semaphore::new(TASKS));
        Self { store, shape, codec, key: None, cache: None, request_bytes, tasks }
    }

    /// Seals what is put with `key`, and refuses what is got and not sealed with it.
    pub fn with_key(self, key: Option<SealKey>) -> Self {
        Self { key, ..self }
    }

    /// Keeps what is put and got in `cache`, too, and looks there first.
    pub fn with_cache(self, cache: Cache) -> Self {
        Self { cache: Some(cache), ..self }
    }

    /// Bytes that one request of a get should bring: larger chunks are read in several requests at once, each unpacked as
    /// it arrives. By default 4 MiB from a remote store; what is local is read at once.
    pub fn with_request_bytes(self, request_bytes: usize) -> Self {
        Self { request_bytes, ..self }
    }

    /// The root of a tenant's chains of chunks in this store: see [`Root::new`]. It depends on the key, and on a codec that
    /// rounds.
    pub fn root(&self, fingerprint: &[u8; 32], tenant_salt: &[u8]) -> Root {
        let root = Root::new(fingerprint, tenant_salt).packed(self.codec);
        self.key.as_ref().map_or(root.clone(), |key| root.secret(key))
    }

    /// Packs and stores a block, unless a chunk of that name is there, which costs one question and no packing. When this
    /// returns, the chunk is durable.
    pub async fn put(&self, id: &ChunkId, block: impl Into<Arc<Block>>) -> Result<Stored, Error> {
        self.put_piece(id, PieceKind::Chunk, block).await
    }

    /// As [`KvStore::put`], for a piece of either kind. Nobody but its job uses a tail, so its uses are not noted.
    pub async fn put_piece(
        &self,
        id: &ChunkId,
        kind: PieceKind,
        block: impl Into<Arc<Block>>,
    ) -> Result<Stored, Error> {
        let (block, path) = (block.into(), ObjectPath::piece(id, kind));
        let pack = |source| Error::Pack { id: *id, source };
        let packer = Packer::new(&block, &self.shape, self.codec, id, self.key.as_ref()).map_err(pack)?;
        let raw_bytes = self.shape.bytes(block.tokens) as u64;
        if let Some(stored_bytes) = self.store.find_durable(&path).await? {
            self.touch(id, kind).await;
            return Ok(Stored { raw_bytes, stored_bytes, created: false });
        }
        let bytes = self.pack(packer, block).await?.map_err(pack)?;
        let stored_bytes = bytes.len() as u64;
        let (put, ()) = tokio::join!(self.store.put_new(&path, bytes.clone()), self.remember(*id, bytes));
        let created = put? == Put::Created;
        match kind {
            PieceKind::Chunk if created => self.store.note_put(id),
            _ => drop(self.touch(id, kind).await),
        }
        Ok(Stored { raw_bytes, stored_bytes, created })
    }

    /// Whether a chunk of that name is there. It may still turn out damaged when it is read.
    pub async fn exists(&self, id: &ChunkId) -> Result<bool, Error> {
        Ok(self.store.exists(&ObjectPath::chunk(id)).await?)
    }

    /// Whether a job's tail is there.
    pub async fn tail_exists(&self, id: &ChunkId) -> Result<bool, Error> {
        Ok(self.store.exists(&ObjectPath::tail(id)).await?)
    }

    /// Removes the tail of a job that has ended. One that is not there is no error.
    pub async fn remove_tail(&self, id: &ChunkId) -> Result<(), Error> {
        if let Some(cache) = &self.cache {
            cache.remove(*id).await;
        }
        Ok(self.store.delete(&ObjectPath::tail(id)).await?)
    }

    /// How many leading chunks of `ids` are there, for about the time of one question, since many are asked at once.
    pub async fn find(&self, ids: &[ChunkId]) -> Result<usize, Error> {
        let questions = stream::iter(ids.iter().copied().map(|id| async move {
            let known = self.cache.as_ref().is_some_and(|cache| cache.contains(&id)) && self.store.touched(&id);
            if known { Ok(true) } else { self.exists(&id).await }
        }));
        let there = questions.buffered(QUESTIONS).try_take_while(|&there| std::future::ready(Ok(there)));
        there.try_fold(0, |count, _| std::future::ready(Ok(count + 1))).await
    }

    async fn pack(&self, packer: Packer, block: Arc<Block>) -> Result<Result<Bytes, chunk::Error>, Error> {
        let packer = Arc::new(packer);
        let parts = self.split(0..self.shape.layers, block.tokens).map(|layers| {
            let (packer, block) = (packer.clone(), block.clone());
            self.work(move || packer.pack(layers.start, &block.layers[layers]))
        });
        let parts = try_join_all(parts).await?;
        Ok(parts.into_iter().collect::<Result<Vec<_>, _>>().and_then(|parts| packer.join(&parts)))
    }

    /// Cuts layers into as many runs as tasks are worth it.
    fn split(&self, layers: Range<usize>, tokens: usize) -> impl Iterator<Item = Range<usize>> + use<> {
        let bytes = self.shape.layer_values(tokens).saturating_mul(2 * layers.len());
        let tasks = (bytes / TASK_BYTES).clamp(1, TASKS);
        let each = layers.len().div_ceil(tasks).max(1);
        let end = layers.end;
        // At least one, though there may be no layer: whoever joins the parts must not wait for none.
        layers.step_by(each).map(move |start| start..(start + each).min(end))
    }

    /// Runs `work` on a thread for blocking work, a few at a time.
    async fn work<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Error> {
        // The semaphore is never closed: without a permit, work only has less company.
        let permit = self.tasks.clone().acquire_owned().await.ok();
        let task = tokio::task::spawn_blocking(move || {
            let result = work();
            drop(permit);
            result
        });
        task.await.map_err(Error::Interrupted)
    }

    async fn remember(&self, id: ChunkId, bytes: Bytes) {
        if let Some(cache) = &self.cache {
            cache.insert(id, bytes).await;
        }
    }

    /// Tells the store that a chunk is in use, and returns whether it is still there. A failure is no reason to give up the
    /// chunk.
    async fn touch(&self, id: &ChunkId, kind: PieceKind) -> bool {
        if kind == PieceKind::Tail {
            return true;
        }
        let touched = self.store.note_use(id).await;
        touched.unwrap_or_else(|error| {
            tracing::warn!(chunk = %id, error = %causes(&error), "a chunk's use was not noted");
            true
        })
    }
}
