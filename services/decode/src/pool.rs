//! One model of this worker: its engine, and where the KV caches of prompts come from.

use baton_bus::{duty::counters::Counters, stage::StageError};
use baton_contract::{
    envelope::{Fingerprint, Piece},
    job::Job,
};
use baton_model::generation::Generator;
use baton_storage::{
    key::{self, ChunkId, PieceKind},
    kv::{self, Fetched, KvStore},
};
use futures::{
    StreamExt,
    stream::{self, BoxStream},
};
use tracing::{Instrument, info_span};

use crate::{engine::Engine, messages::FetchedPiece};

/// Pieces of one job that are fetched at a time.
const PARALLEL_FETCHES: usize = 4;

/// A model that this worker serves, at work.
pub(crate) struct Pool {
    pub(crate) engine: Engine,
    pub(crate) generator: Generator,
    pub(crate) store: KvStore,
    pub(crate) fingerprint: Fingerprint,
}

impl Pool {
    /// The last of a prompt's pieces, if it is a tail of this very job.
    pub(crate) fn tail(&self, job: &Job, pieces: &[Piece], fingerprint: &Fingerprint) -> Option<ChunkId> {
        let root = self.store.root(fingerprint, job.tenant.as_str().as_bytes());
        let pieces: Vec<_> = pieces.iter().map(|piece| (ChunkId(piece.id), piece.tokens as usize)).collect();
        key::tail_of(&root, &job.prompt, &pieces, job.id.as_str())
    }

    /// Gets a piece from where it lies. Only the last of a prompt can be a tail: its job's own, that of the job which this
    /// one tries again, or one that an earlier release has put among the chunks.
    async fn get(&self, piece: Piece, is_last: bool, tail: Option<ChunkId>) -> Result<Option<Fetched>, kv::Error> {
        let (id, tokens) = (ChunkId(piece.id), piece.tokens as usize);
        let mut places = [PieceKind::Chunk, PieceKind::Tail];
        if tail == Some(id) {
            places.reverse();
        }
        for kind in &places[..if is_last { 2 } else { 1 }] {
            if let Some(fetched) = self.store.get_piece(&id, *kind, tokens).await? {
                return Ok(Some(fetched));
            }
        }
        Ok(None)
    }

    /// Gets the prompt's KV cache piece by piece, in order, several at a time. What is missing or damaged is left out.
    pub(crate) fn fetch<'a>(
        &'a self,
        job: &'a Job,
        pieces: &'a [Piece],
        counters: &'a Counters,
    ) -> BoxStream<'a, Result<FetchedPiece, StageError>> {
        let (span, tail, last) =
            (info_span!("kv.get", pieces = pieces.len()), self.tail(job, pieces, &self.fingerprint), pieces.len());
        let get = move |(number, piece): (usize, Piece)| {
            async move {
                let tokens = piece.tokens as usize;
                match self.get(piece, number + 1 == last, tail).await {
                    Ok(Some(fetched)) => {
                        counters.kv_got(fetched.stored_bytes);
                        Ok(FetchedPiece::Block(fetched.block))
                    }
                    Ok(None) => {
                        tracing::warn!(piece = %ChunkId(piece.id), tokens, job = %job.id, "a KV piece was missing and is recomputed");
                        Ok(FetchedPiece::Missing { tokens })
                    }
                    Err(error) if error.is_missing() => Ok(FetchedPiece::Missing { tokens }),
                    Err(error) => Err(StageError::passing(error)),
                }
            }
            .instrument(span.clone())
        };
        stream::iter(pieces.iter().copied().enumerate().map(get)).buffered(PARALLEL_FETCHES).boxed()
    }
}
