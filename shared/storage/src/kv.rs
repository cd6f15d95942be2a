//! KV chunks in a store: packs on the way in, checks on the way out, and clears away what is damaged.

use baton_contract::kv::{Block, Shape};
use bytes::Bytes;

use crate::chunk;
use crate::codec::Codec;
use crate::key::ChunkId;
use crate::store::{self, ObjectPath, Put, Store};

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
    /// The thread that packed or unpacked was lost, as happens when the runtime shuts down.
    #[error("packing or unpacking was interrupted")]
    Interrupted(#[source] tokio::task::JoinError),
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
    /// Bytes of the chunk, as packed for this put.
    pub stored_bytes: u64,
    /// Whether this put wrote the chunk. If not, it was there before and nothing was written.
    pub created: bool,
}

/// A chunk that was there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fetched {
    /// The values, bit for bit as put.
    pub block: Block,
    /// Bytes that were read from the store.
    pub stored_bytes: u64,
}

/// The KV chunks of one model in one store. Cheap to clone.
#[derive(Clone, Debug)]
pub struct KvStore {
    store: Store,
    shape: Shape,
    codec: Codec,
}

impl KvStore {
    /// Chunks of `shape` in `store`; `codec` packs those that are put, and those got may have any.
    pub fn new(store: Store, shape: Shape, codec: Codec) -> Self {
        Self { store, shape, codec }
    }

    /// Packs and stores a block, unless a chunk of that name is there. When this returns, the chunk is durable.
    pub async fn put(&self, id: &ChunkId, block: Block) -> Result<Stored, Error> {
        let (id, Self { shape, codec, .. }) = (*id, self.clone());
        let packing = tokio::task::spawn_blocking(move || {
            let bytes = chunk::encode(&block, &shape, codec, &id)?;
            Ok((bytes, shape.bytes(block.tokens)))
        });
        let packed: Result<(Bytes, usize), chunk::Error> = packing.await.map_err(Error::Interrupted)?;
        let (bytes, raw_bytes) = packed.map_err(|source| Error::Pack { id, source })?;
        let stored_bytes = bytes.len() as u64;
        let put = self.store.put_new(&ObjectPath::chunk(&id), bytes).await?;
        Ok(Stored { raw_bytes: raw_bytes as u64, stored_bytes, created: put == Put::Created })
    }

    /// The chunk `id` of exactly `tokens` tokens, or `None` if there is none.
    pub async fn get(&self, id: &ChunkId, tokens: usize) -> Result<Option<Fetched>, Error> {
        let (id, path, shape) = (*id, ObjectPath::chunk(id), self.shape);
        let max = chunk::max_len(&shape, tokens).map_err(|source| Error::Pack { id, source })? as u64;
        let bytes = match self.store.get(&path, max).await {
            Ok(Some(bytes)) => bytes,
            Ok(None) => return Ok(None),
            Err(store::Error::Oversize { max, found, .. }) => {
                return Err(self.remove_damaged(id, &path, Damage::Oversize { max, found }).await);
            }
            Err(error) => return Err(error.into()),
        };
        let stored_bytes = bytes.len() as u64;
        let unpacking = tokio::task::spawn_blocking(move || chunk::decode(&bytes, &shape, tokens, &id));
        match unpacking.await.map_err(Error::Interrupted)? {
            Ok(block) => Ok(Some(Fetched { block, stored_bytes })),
            Err(source) => Err(self.remove_damaged(id, &path, source.into()).await),
        }
    }

    /// Whether a chunk of that name is there. It may still turn out damaged when it is read.
    pub async fn exists(&self, id: &ChunkId) -> Result<bool, Error> {
        Ok(self.store.exists(&ObjectPath::chunk(id)).await?)
    }

    /// Makes room for a sound chunk under the same name: puts are create-only. Should another worker have put it just
    /// now, that one goes too, and is recomputed like any chunk that is missing.
    async fn remove_damaged(&self, id: ChunkId, path: &ObjectPath, damage: Damage) -> Error {
        match self.store.delete(path).await {
            Ok(()) => tracing::warn!(chunk = %id, error = %damage, "damaged chunk was removed"),
            Err(error) => tracing::warn!(chunk = %id, error = %damage, delete_error = %error, "damaged chunk stayed"),
        }
        Error::Damaged { id, source: damage }
    }
}
