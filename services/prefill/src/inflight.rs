//! The chunks that prompts of this worker are about to compute or to put, so that no other prompt of it does the same
//! meanwhile. It knows no engine and no store.
//!
//! Nobody waits for ever: a prompt that waits for a chunk owns none before it in the chain, so that whoever owns that chunk
//! waits, if at all, for an earlier one.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use baton_contract::kv::Block;
use baton_storage::key::ChunkId;
use tokio::sync::watch;

/// The chunks under way in one model's worker. Clones share them.
#[derive(Clone, Default)]
pub(crate) struct Inflight(Arc<Mutex<HashMap<ChunkId, watch::Receiver<State>>>>);

#[derive(Clone)]
enum State {
    Coming,
    /// Computed, and on its way to the store.
    Computed(Arc<Block>),
    Stored,
}

/// A chunk that another prompt is at.
#[derive(Clone)]
pub(crate) struct Pending(watch::Receiver<State>);

/// How waiting for a chunk ended.
pub(crate) enum Outcome {
    /// Not stored yet.
    Computed(Arc<Block>),
    Stored,
    /// The prompt that was at it left: somebody else must compute it.
    Lost,
}

/// The chunks that one prompt is at; what it has not stored when this is dropped is lost to those who wait.
pub(crate) struct Owned {
    inflight: Inflight,
    chunks: HashMap<ChunkId, watch::Sender<State>>,
}

impl Inflight {
    pub(crate) fn owner(&self) -> Owned {
        Owned { inflight: self.clone(), chunks: HashMap::new() }
    }

    /// The map is whole after each change: a panic of another thread leaves nothing half done.
    fn lock(&self) -> MutexGuard<'_, HashMap<ChunkId, watch::Receiver<State>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pending {
    /// Waits until the chunk is computed.
    pub(crate) async fn wait_computed(&mut self) -> Outcome {
        match self.0.wait_for(|state| !matches!(state, State::Coming)).await.as_deref() {
            Ok(State::Computed(block)) => Outcome::Computed(block.clone()),
            Ok(_) => Outcome::Stored,
            Err(_) => Outcome::Lost,
        }
    }

    /// Waits until the chunk is in the store; false if it was lost before.
    pub(crate) async fn wait_stored(&mut self) -> bool {
        self.0.wait_for(|state| matches!(state, State::Stored)).await.is_ok()
    }
}

impl Owned {
    /// Enters upon the chunks of a prompt, in their order: the first, if another prompt is at it; otherwise this prompt
    /// owns from now on all of them that nobody owns.
    pub(crate) fn enter(&mut self, chunks: &[ChunkId]) -> Option<Pending> {
        let first = chunks.first()?;
        let mut inflight = self.inflight.lock();
        if !self.chunks.contains_key(first)
            && let Some(state) = inflight.get(first)
        {
            return Some(Pending(state.clone()));
        }
        for chunk in chunks {
            if !inflight.contains_key(chunk) {
                let (sender, state) = watch::channel(State::Coming);
                inflight.insert(*chunk, state);
                self.chunks.insert(*chunk, sender);
            }
        }
        None
    }

    /// Whether this prompt is the one that computes a chunk.
    pub(crate) fn owns(&self, chunk: &ChunkId) -> bool {
        self.chunks.contains_key(chunk)
    }

    /// Gives a computed chunk to those who wait for it.
    pub(crate) fn mark_computed(&self, chunk: &ChunkId, block: Arc<Block>) {
        if let Some(sender) = self.chunks.get(chunk) {
            sender.send_replace(State::Computed(block));
        }
    }

    /// Notes that a chunk is in the store.
    pub(crate) fn mark_stored(&mut self, chunk: &ChunkId) {
        if let Some(sender) = self.chunks.remove(chunk) {
            self.inflight.lock().remove(chunk);
            sender.send_replace(State::Stored);
        }
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        let mut inflight = self.inflight.lock();
        for chunk in self.chunks.keys() {
            inflight.remove(chunk);
        }
    }
}
