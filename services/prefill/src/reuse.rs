//! What of a prompt's KV cache need not be computed: what is stored, what another prompt of this worker computes, and what
//! another worker computes.

use std::{sync::Arc, time::Duration};

use baton_bus::stage::prefixes::{ChunkOwner, Claim, Ended, Prefixes};
use baton_contract::{causes, kv::Block};
use baton_storage::{
    key::{ChunkId, Piece, PieceKind},
    kv::{self, KvStore},
};
use tokio::time::Instant;

use crate::inflight::{Inflight, Outcome, Owned, Pending};

/// Blocks of other prompts that a prompt keeps in memory until its turn comes; it fetches any more from the store.
const BLOCKS_IN_MEMORY: usize = 8;
/// Waits for other workers in a row that may bring nothing before the prompt is computed here.
const VAIN_WAITS: usize = 3;

/// How the prompts of one model's worker find what they need not compute.
pub(crate) struct Reuse {
    pub(crate) store: KvStore,
    pub(crate) inflight: Inflight,
    /// None if the broker gives no place to claims; then workers may compute the same.
    pub(crate) prefixes: Option<Prefixes>,
}

/// A prompt's beginning that need not be computed, and the right to compute what follows.
pub(crate) struct Prefix {
    /// Where each of the first pieces is.
    pub(crate) sources: Vec<Source>,
    /// What others wait for.
    pub(crate) owned: Owned,
    pub(crate) claim: Option<Claim>,
    /// Time spent looking into the store.
    pub(crate) looking: Duration,
}

/// Where a piece is.
#[derive(Clone)]
pub(crate) enum Source {
    Stored,
    /// In memory, and on its way to the store in the hands of another prompt.
    InMemory(Arc<Block>, Pending),
}

impl Reuse {
    /// Finds the longest beginning of a prompt that is stored or about to be, and waits for the latter. A job that is tried
    /// `again` may find its own tail, too.
    pub(crate) async fn find(&self, pieces: &[Piece], again: bool) -> Result<Prefix, kv::Error> {
        let shared = pieces.iter().take_while(|piece| piece.kind == PieceKind::Chunk).count();
        let ids: Vec<ChunkId> = pieces.iter().map(|piece| piece.id).collect();
        let (chunks, tail) = (&ids[..shared], ids.get(shared).filter(|_| again));
        let (owned, looking) = (self.inflight.owner(), Duration::ZERO);
        let mut prefix = Prefix { sources: Vec::new(), owned, claim: None, looking };
        let (mut kept, mut in_vain) = (0, 0);
        loop {
            let at = prefix.sources.len();
            if let Some(pending) = prefix.owned.enter(&chunks[at.min(shared)..]) {
                let source = wait(pending, kept < BLOCKS_IN_MEMORY).await;
                kept += usize::from(matches!(source, Some(Source::InMemory(..))));
                // One that was lost is entered upon again.
                prefix.sources.extend(source);
                continue;
            }
            // Only now: what another prompt of this worker stored meanwhile is found.
            let found = prefix.look(&self.store, &chunks[at..]).await?;
            let at = at + found;
            if at >= shared {
                if let Some(tail) = tail {
                    prefix.look_for_tail(&self.store, tail).await?;
                }
                return Ok(prefix);
            }
            in_vain = if found > 0 { 0 } else { in_vain };
            // One that another prompt was at during the look may have been stored since: it is looked for again.
            let was_ours = prefix.owned.owns(&chunks[at]);
            if prefix.owned.enter(&chunks[at..]).is_some() || !was_ours {
                continue;
            }
            if in_vain >= VAIN_WAITS {
                return Ok(prefix);
            }
            in_vain += 1;
            match self.turn(&chunks[at..]).await {
                // Whoever claimed before may have stored it since it was looked for.
                Some(ChunkOwner::Ours(claim)) => {
                    if prefix.look(&self.store, &chunks[at..=at]).await? == 0 {
                        prefix.claim = Some(claim);
                        return Ok(prefix);
                    }
                }
                Some(ChunkOwner::Theirs(theirs)) => match theirs.ended().await {
                    Ok(Ended::Gone) => {}
                    // It should be found now; if it is not, computing it is what is left.
                    Ok(Ended::Stored) => in_vain = VAIN_WAITS,
                    Ok(Ended::OutOfPatience) => {
                        tracing::info!("another worker took too long with a prefix; it is computed here, too");
                        return Ok(prefix);
                    }
                    Err(error) => {
                        tracing::warn!(error = %causes(&error), "a prefix that another worker computes can't be waited for");
                        return Ok(prefix);
                    }
                },
                None => return Ok(prefix),
            }
        }
    }

    /// Whose turn it is to compute chunks that are missing; none if that can't be told, and everybody's.
    async fn turn(&self, chunks: &[ChunkId]) -> Option<ChunkOwner> {
        let prefixes = self.prefixes.as_ref()?;
        let (first, following) = chunks.split_first()?;
        let following: Vec<_> = following.iter().map(|chunk| chunk.0).collect();
        let turn = prefixes.claim(&first.0, &following).await;
        turn.inspect_err(
            |error| tracing::warn!(error = %causes(error), "a prefix was not claimed; others may compute the same"),
        )
        .ok()
    }
}

impl Prefix {
    /// Looks which of the next pieces are stored, up to the first that is not.
    async fn look(&mut self, store: &KvStore, next: &[ChunkId]) -> Result<usize, kv::Error> {
        if next.is_empty() {
            return Ok(0);
        }
        let looked = Instant::now();
        let found = store.find(next).await?;
        self.looking += looked.elapsed();
        for id in next.iter().take(found) {
            self.owned.mark_stored(id);
            self.sources.push(Source::Stored);
        }
        Ok(found)
    }

    /// Looks whether the job's tail is stored.
    async fn look_for_tail(&mut self, store: &KvStore, tail: &ChunkId) -> Result<(), kv::Error> {
        let looked = Instant::now();
        let found = store.tail_exists(tail).await?;
        self.looking += looked.elapsed();
        if found {
            self.owned.mark_stored(tail);
            self.sources.push(Source::Stored);
        }
        Ok(())
    }

    /// Notes that a piece is in the store.
    pub(crate) fn mark_stored(&mut self, id: &ChunkId) {
        self.owned.mark_stored(id);
        if let Some(claim) = &self.claim {
            claim.stored(&id.0);
        }
    }
}

/// Waits for a chunk that another prompt is at; nothing if it left without storing it.
async fn wait(mut pending: Pending, keep: bool) -> Option<Source> {
    if !keep {
        return pending.wait_stored().await.then_some(Source::Stored);
    }
    match pending.wait_computed().await {
        Outcome::Computed(block) => Some(Source::InMemory(block, pending)),
        Outcome::Stored => Some(Source::Stored),
        Outcome::Lost => None,
    }
}

#[cfg(test)]
mod tests;
