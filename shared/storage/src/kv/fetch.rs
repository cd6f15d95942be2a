//! The way out: a chunk from the cache or the store becomes a block.

use std::{ops::Range, sync::Arc};

use baton_contract::{
    causes,
    kv::{Block, is_finite},
};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, future::try_join_all, stream};

use super::{Damage, Error, Fetched, KvStore, Source};
use crate::cache::Found;
use crate::chunk::{self, Header, decode_layers};
use crate::key::{ChunkId, PieceKind};
use crate::store::{self, ObjectPath, Start};

/// Requests of one get that run at a time.
const REQUESTS: usize = 4;

/// What a chunk, or some layers of it, turned out to be.
type Unpacked<T> = Result<T, chunk::Error>;

/// A chunk as it was read: its block and its bytes, in order. The bytes are of no use if the block is none.
type Got = (Unpacked<Block>, Vec<Bytes>);

impl KvStore {
    /// The chunk `id` of exactly `tokens` tokens, or `None` if there is none. Getting a chunk counts as a use of it.
    pub async fn get(&self, id: &ChunkId, tokens: usize) -> Result<Option<Fetched>, Error> {
        self.get_piece(id, PieceKind::Chunk, tokens).await
    }

    /// As [`KvStore::get`], for a piece of either kind.
    pub async fn get_piece(&self, id: &ChunkId, kind: PieceKind, tokens: usize) -> Result<Option<Fetched>, Error> {
        let max = chunk::max_len(&self.shape, tokens).map_err(|source| Error::Pack { id: *id, source })? as u64;
        if let Some(fetched) = self.get_cached(id, kind, tokens, max).await? {
            return Ok(Some(fetched));
        }
        let path = ObjectPath::piece(id, kind);
        let getting = async {
            match max <= self.request_bytes as u64 {
                true => self.get_whole(id, &path, tokens, max).await,
                false => self.get_parts(id, &path, tokens, max).await,
            }
        };
        let (got, _) = tokio::join!(getting, self.touch(id, kind));
        let (unpacked, bytes) = match got {
            Ok(Some(got)) => got,
            Ok(None) => return Ok(None),
            Err(Error::Store(store::Error::Oversize { max, found, .. })) => {
                return Err(self.remove_damaged(*id, &path, Damage::Oversize { max, found }).await);
            }
            Err(error) => return Err(error),
        };
        match unpacked {
            Ok(block) => {
                let stored_bytes = bytes.iter().map(|part| part.len() as u64).sum();
                if self.cache.is_some() {
                    self.remember(*id, join(bytes)).await;
                }
                Ok(Some(Fetched { block: Arc::new(block), stored_bytes, source: Source::Store }))
            }
            Err(source) if source.is_locked() => {
                tracing::warn!(chunk = %id, error = %causes(&source), "a chunk could not be read with this worker's key");
                Err(Error::Locked { id: *id, source })
            }
            Err(source) => Err(self.remove_damaged(*id, &path, source.into()).await),
        }
    }

    /// A chunk that is near. One that is damaged there is dropped, and no word about the store's.
    async fn get_cached(
        &self,
        id: &ChunkId,
        kind: PieceKind,
        tokens: usize,
        max: u64,
    ) -> Result<Option<Fetched>, Error> {
        let Some(cache) = &self.cache else { return Ok(None) };
        let Some((bytes, found)) = cache.get(id, max).await else { return Ok(None) };
        let (unpacked, is_stored) = tokio::join!(self.unpack(id, bytes.clone(), tokens), self.touch(id, kind));
        let block = match unpacked? {
            Ok(block) => Arc::new(block),
            Err(error) => {
                tracing::warn!(chunk = %id, error = %causes(&error), "a damaged chunk was dropped from the cache");
                cache.remove(*id).await;
                return Ok(None);
            }
        };
        let stored_bytes = bytes.len() as u64;
        // If the store has lost it meanwhile: other workers will look for it there.
        if !is_stored && let Err(error) = self.store.put_new(&ObjectPath::chunk(id), bytes).await {
            tracing::warn!(chunk = %id, error = %causes(&error), "a cached chunk was not put back into the store");
        }
        let source = match found {
            Found::Memory => Source::Memory,
            Found::Disk => Source::Disk,
        };
        Ok(Some(Fetched { block, stored_bytes, source }))
    }

    /// A chunk in one request.
    async fn get_whole(&self, id: &ChunkId, path: &ObjectPath, tokens: usize, max: u64) -> Result<Option<Got>, Error> {
        let Some(bytes) = self.store.get(path, max).await? else { return Ok(None) };
        Ok(Some((self.unpack(id, bytes.clone(), tokens).await?, vec![bytes])))
    }

    /// A chunk of which the first request brings the header and as many layers as it can, and some at once the rest.
    async fn get_parts(&self, id: &ChunkId, path: &ObjectPath, tokens: usize, max: u64) -> Result<Option<Got>, Error> {
        let first = chunk::prefix_len(&self.shape).max(self.request_bytes) as u64;
        let Some(start) = self.store.get_start(path, first, max).await? else { return Ok(None) };
        let Start { bytes, size, version } = start;
        let header = match self.header(id, &bytes, tokens, size) {
            Ok(header) => header,
            Err(error) => return Ok(Some((Err(error), Vec::new()))),
        };
        let here = (0..self.shape.layers).take_while(|&layer| header.frame(layer).end <= bytes.len()).count();
        let near = async {
            let bytes = bytes.slice(..header.span(0..here).end);
            Ok::<_, Error>(Some((self.unpack_layers(&header, 0..here, bytes.clone(), 0).await?, bytes)))
        };
        let rest = self.runs(&header, here).into_iter().map(|layers| async {
            let span = header.span(layers.clone());
            let range = span.start as u64..span.end as u64;
            let bytes = match range.is_empty() {
                true => Some(Bytes::new()),
                false => self.store.get_range(path, range, version.clone()).await?,
            };
            let Some(bytes) = bytes else { return Ok(None) };
            Ok(Some((self.unpack_layers(&header, layers, bytes.clone(), span.start).await?, bytes)))
        });
        let rest = stream::iter(rest).buffered(REQUESTS).try_collect::<Vec<_>>();
        let (near, rest): (_, Vec<_>) = tokio::try_join!(near, rest)?;
        let mut block = Block { tokens, layers: Vec::with_capacity(self.shape.layers) };
        let mut parts = Vec::with_capacity(1 + rest.len());
        for part in std::iter::once(near).chain(rest) {
            // It went, or was replaced, while it was read.
            let Some((layers, bytes)) = part else { return Ok(None) };
            match layers {
                Ok(layers) => block.layers.extend(layers),
                Err(error) => return Ok(Some((Err(error), Vec::new()))),
            }
            parts.push(bytes);
        }
        Ok(Some((Ok(block), parts)))
    }

    /// Cuts the layers from `from` on into runs that one request each brings.
    fn runs(&self, header: &Header, from: usize) -> Vec<Range<usize>> {
        let mut runs: Vec<Range<usize>> = Vec::new();
        for layer in from..self.shape.layers {
            match runs.last_mut() {
                Some(run) if header.span(run.start..layer + 1).len() <= self.request_bytes => run.end = layer + 1,
                _ => runs.push(layer..layer + 1),
            }
        }
        runs
    }

    /// The header, if it is that of a chunk of `size` bytes.
    fn header(&self, id: &ChunkId, bytes: &[u8], tokens: usize, size: u64) -> Unpacked<Arc<Header>> {
        let header = Header::read(bytes, &self.shape, tokens, id, self.key.as_ref())?;
        header.check_len(size)?;
        Ok(Arc::new(header))
    }

    /// A whole chunk's block.
    async fn unpack(&self, id: &ChunkId, bytes: Bytes, tokens: usize) -> Result<Unpacked<Block>, Error> {
        let header = match self.header(id, &bytes, tokens, bytes.len() as u64) {
            Ok(header) => header,
            Err(error) => return Ok(Err(error)),
        };
        let layers = self.unpack_layers(&header, 0..self.shape.layers, bytes, 0).await?;
        Ok(layers.map(|layers| Block { tokens, layers }))
    }

    /// Some layers, from the part of the chunk that begins `from` bytes after its start.
    async fn unpack_layers(
        &self,
        header: &Arc<Header>,
        layers: Range<usize>,
        bytes: Bytes,
        from: usize,
    ) -> Result<Unpacked<Vec<Vec<u16>>>, Error> {
        let parts = self.split(layers, header.tokens()).map(|layers| {
            let (header, bytes) = (header.clone(), bytes.clone());
            self.work(move || finite(layers.start, decode_layers(&header, layers, &bytes, from)?))
        });
        let parts: Unpacked<Vec<Vec<_>>> = try_join_all(parts).await?.into_iter().collect();
        Ok(parts.map(|parts| parts.into_iter().flatten().collect()))
    }

    /// Makes room for a sound chunk under the same name: puts are create-only. Should another worker have put it just
    /// now, that one goes too, and is recomputed like any chunk that is missing.
    async fn remove_damaged(&self, id: ChunkId, path: &ObjectPath, damage: Damage) -> Error {
        match self.store.delete(path).await {
            Ok(()) => tracing::warn!(chunk = %id, error = %causes(&damage), "damaged chunk was removed"),
            Err(error) => {
                tracing::warn!(chunk = %id, error = %causes(&damage), delete_error = %causes(&error), "damaged chunk stayed")
            }
        }
        Error::Damaged { id, source: damage }
    }
}

/// The layers from `first` on, if they are of use: an answer that is generated from anything else is none.
fn finite(first: usize, layers: Vec<Vec<u16>>) -> Unpacked<Vec<Vec<u16>>> {
    match layers.iter().position(|layer| !is_finite(layer)) {
        Some(place) => Err(chunk::Error::NonFinite { layer: first + place }),
        None => Ok(layers),
    }
}

fn join(parts: Vec<Bytes>) -> Bytes {
    match <[Bytes; 1]>::try_from(parts) {
        Ok([whole]) => whole,
        Err(parts) => parts.concat().into(),
    }
}
