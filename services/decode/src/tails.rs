//! Removes the tails of jobs that have ended, beside the decoding: nobody but its job can use a tail.

use std::sync::Arc;

use baton_bus::stage::Ended;
use baton_contract::causes;
use baton_storage::{ChunkId, KvStore};
use futures::{StreamExt, stream::FuturesUnordered};
use tokio::sync::{Semaphore, mpsc};

/// Tails that are being removed at a time.
const REMOVALS: usize = 8;
/// Jobs whose end is awaited, or whose tail awaits its removal. The tail of any more is left to a collection.
const AWAITED: usize = 4_096;

/// A job with a tail of its own.
pub(crate) struct Tail {
    pub(crate) ended: Ended,
    pub(crate) store: KvStore,
    pub(crate) id: ChunkId,
}

/// Where jobs leave word of their tails.
pub(crate) struct Tails(mpsc::Sender<Tail>);

impl Tails {
    /// Begins to remove tails, as long as this lives and until those that are known then are gone.
    pub(crate) fn start() -> Self {
        let (sender, receiver) = mpsc::channel(AWAITED);
        tokio::spawn(remove(receiver));
        Self(sender)
    }

    /// Has a tail removed when its job has ended.
    pub(crate) fn leave(&self, tail: Tail) {
        if self.0.try_send(tail).is_err() {
            tracing::debug!("the tail of a job was left to a collection");
        }
    }
}

async fn remove(mut tails: mpsc::Receiver<Tail>) {
    let (mut removals, room) = (FuturesUnordered::new(), Arc::new(Semaphore::new(REMOVALS)));
    loop {
        tokio::select! {
            tail = tails.recv(), if removals.len() < AWAITED => match tail {
                Some(tail) => removals.push(tail.remove_at_end(room.clone())),
                None => break,
            },
            Some(()) = removals.next() => {}
        }
    }
    while removals.next().await.is_some() {}
}

impl Tail {
    async fn remove_at_end(self, room: Arc<Semaphore>) {
        if !self.ended.told().await {
            return;
        }
        // The semaphore is never closed.
        let _room = room.acquire().await.ok();
        if let Err(error) = self.store.remove_tail(&self.id).await {
            tracing::debug!(error = %causes(&error), tail = %self.id, "the tail of a job was left to a collection");
        }
    }
}
