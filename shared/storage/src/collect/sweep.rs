//! Takes away what was planned to go.

use std::io;

use futures::{StreamExt, stream};

use super::{Leftover, Removal, census::Place};
use crate::store::{Error, ObjectPath, Store};

/// Objects that are being removed at once.
const AT_ONCE: usize = 16;
/// A store that refuses this often is asked no more.
const PATIENCE: u64 = 20;

/// What a sweep did.
#[derive(Debug, Default)]
pub struct Swept {
    /// The chunks that were removed.
    pub removed: Vec<Removal>,
    /// Chunks that were used since the store was listed, and stayed, or that another sweep has removed meanwhile.
    pub spared: u64,
    /// Leftovers that were removed.
    pub leftovers: u64,
    /// Objects that could not be removed; the next sweep may try again.
    pub failed: u64,
    /// Why the first of those could not.
    pub error: Option<Error>,
}

enum Done {
    Removed(Removal),
    Spared,
    Leftover,
}

/// Removes chunks that were not used since they were listed, and leftovers; `done` hears of each. After some failures it
/// stops: the store is then asked for nothing more.
pub async fn sweep(store: &Store, removals: Vec<Removal>, leftovers: Vec<Leftover>, mut done: impl FnMut()) -> Swept {
    let chunks = removals.into_iter().map(|removal| remove(store, removal));
    let leftovers = leftovers.into_iter().map(|leftover| discard(store, leftover));
    let mut steps =
        stream::iter(chunks).buffer_unordered(AT_ONCE).chain(stream::iter(leftovers).buffer_unordered(AT_ONCE));
    let mut swept = Swept::default();
    while let Some(step) = steps.next().await {
        done();
        match step {
            Ok(Done::Removed(removal)) => swept.removed.push(removal),
            Ok(Done::Spared) => swept.spared += 1,
            Ok(Done::Leftover) => swept.leftovers += 1,
            Err(error) => {
                swept.failed += 1;
                swept.error.get_or_insert(error);
                if swept.failed >= PATIENCE {
                    break;
                }
            }
        }
    }
    swept
}

async fn remove(store: &Store, removal: Removal) -> Result<Done, Error> {
    let id = &removal.object.id;
    match store.last_use(id).await? {
        Some(used) if used <= removal.object.used => store.delete(&ObjectPath::chunk(id)).await?,
        _ => return Ok(Done::Spared),
    }
    // A crash in between leaves a mark without a chunk, which the next sweep finds.
    if store.root().is_none() {
        store.delete(&ObjectPath::mark(id)).await?;
    }
    Ok(Done::Removed(removal))
}

async fn discard(store: &Store, leftover: Leftover) -> Result<Done, Error> {
    match leftover.place {
        Place::Object(path) => store.delete(&path).await?,
        Place::File(path) => match tokio::fs::remove_file(&path).await {
            Err(source) if source.kind() != io::ErrorKind::NotFound => return Err(Error::Directory { path, source }),
            _ => {}
        },
    }
    Ok(Done::Leftover)
}
