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

/// The chunks under way in one model's worker. Clones are the same.
#[derive(Clone, Default)]
pub(crate) struct Flights(Arc<Mutex<HashMap<ChunkId, watch::Receiver<State>>>>);

#[derive(Clone)]
enum State {
    Coming,
    /// Computed, and on its way to the store.
    Here(Arc<Block>),
    Stored,
}

/// A chunk that another prompt is at.
#[derive(Clone)]
pub(crate) struct Flight(watch::Receiver<State>);

/// How waiting for a chunk ended.
pub(crate) enum Landed {
    /// Not stored yet.
    Here(Arc<Block>),
    Stored,
    /// The prompt that was at it left: somebody else must compute it.
    Lost,
}

/// The chunks that one prompt is at; what it has not stored when this is dropped is lost to those who wait.
pub(crate) struct Owned {
    flights: Flights,
    chunks: HashMap<ChunkId, watch::Sender<State>>,
}

impl Flights {
    pub(crate) fn owner(&self) -> Owned {
        Owned { flights: self.clone(), chunks: HashMap::new() }
    }

    /// The map is whole after each change: a panic of another thread leaves nothing half done.
    fn lock(&self) -> MutexGuard<'_, HashMap<ChunkId, watch::Receiver<State>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Flight {
    /// Waits until the chunk is computed.
    pub(crate) async fn computed(&mut self) -> Landed {
        match self.0.wait_for(|state| !matches!(state, State::Coming)).await.as_deref() {
            Ok(State::Here(block)) => Landed::Here(block.clone()),
            Ok(_) => Landed::Stored,
            Err(_) => Landed::Lost,
        }
    }

    /// Waits until the chunk is in the store; false if it was lost before.
    pub(crate) async fn stored(&mut self) -> bool {
        self.0.wait_for(|state| matches!(state, State::Stored)).await.is_ok()
    }
}

impl Owned {
    /// Enters upon the chunks of a prompt, in their order: the first, if another prompt is at it; otherwise this prompt
    /// owns from now on all of them that nobody owns.
    pub(crate) fn enter(&mut self, chunks: &[ChunkId]) -> Option<Flight> {
        let first = chunks.first()?;
        let mut flights = self.flights.lock();
        if !self.chunks.contains_key(first)
            && let Some(state) = flights.get(first)
        {
            return Some(Flight(state.clone()));
        }
        for chunk in chunks {
            if !flights.contains_key(chunk) {
                let (sender, state) = watch::channel(State::Coming);
                flights.insert(*chunk, state);
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
    pub(crate) fn computed(&self, chunk: &ChunkId, block: Arc<Block>) {
        if let Some(sender) = self.chunks.get(chunk) {
            sender.send_replace(State::Here(block));
        }
    }

    /// Notes that a chunk is in the store.
    pub(crate) fn stored(&mut self, chunk: &ChunkId) {
        if let Some(sender) = self.chunks.remove(chunk) {
            self.flights.lock().remove(chunk);
            sender.send_replace(State::Stored);
        }
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        let mut flights = self.flights.lock();
        for chunk in self.chunks.keys() {
            flights.remove(chunk);
        }
    }
}
