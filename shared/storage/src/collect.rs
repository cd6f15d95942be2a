//! What of a store can go: chunks that nobody has used for long, and what crashed puts left behind.
//!
//! Nothing counts references. A chunk stays while a waiting job names it (the caller knows which), while it is younger
//! than a grace period, which covers prefill until its message to decode is durable, and while it was used lately. Whoever
//! reads a chunk touches it ([`Store::touch`]). A collection lists the store first, then learns which chunks are named,
//! then [plans](plan), and asks for each chunk's last use once more right before it [goes](sweep): so any two collections
//! may run at once, and what is used meanwhile stays. Should a chunk go too early all the same, it is computed again.

mod census;
mod sweep;

use std::{
    collections::HashSet,
    time::{Duration, SystemTime},
};

pub use census::{Census, Leftover};
pub use sweep::{Swept, sweep};

pub use crate::store::TOUCH_EVERY;

use crate::key::ChunkId;
#[cfg(doc)]
use crate::store::Store;

/// A stored chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Object {
    /// Its name.
    pub id: ChunkId,
    /// Bytes in the store.
    pub bytes: u64,
    /// When it was put or last used, by the store's clock; [`TOUCH_EVERY`] says how exact that is.
    pub used: SystemTime,
}

impl Object {
    /// How long it has not been used; zero if the store's clock is ahead of ours.
    pub fn age(&self, now: SystemTime) -> Duration {
        now.duration_since(self.used).unwrap_or_default()
    }
}

/// What a store may keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// What has not been used for this long goes.
    pub max_age: Duration,
    /// If all chunks together take more than this many bytes, those go that were not used for longest.
    pub max_bytes: Option<u64>,
    /// What is younger than this stays in any case.
    pub grace: Duration,
}

/// Why a chunk goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// It was not used for `max_age`.
    Age,
    /// The store holds more than `max_bytes`.
    Budget,
}

/// A chunk that goes, unless it is used before its turn comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Removal {
    /// The chunk.
    pub object: Object,
    /// Why.
    pub reason: Reason,
}

/// Which of `objects` go, those that were not used for longest first. None of them is in `live`, none is younger than the
/// grace period. If what may go does not suffice for the budget, all of it goes.
pub fn plan(objects: &[Object], live: &HashSet<ChunkId>, now: SystemTime, options: &Options) -> Vec<Removal> {
    let may_go = |object: &&Object| object.age(now) >= options.grace && !live.contains(&object.id);
    let mut candidates: Vec<Object> = objects.iter().filter(may_go).copied().collect();
    candidates.sort_unstable_by_key(|object| (object.used, object.id));
    let mut bytes: u64 = objects.iter().map(|object| object.bytes).sum();
    let mut removals = Vec::new();
    for object in candidates {
        let reason = if object.age(now) >= options.max_age {
            Reason::Age
        } else if options.max_bytes.is_some_and(|budget| bytes > budget) {
            Reason::Budget
        } else {
            break;
        };
        bytes -= object.bytes;
        removals.push(Removal { object, reason });
    }
    removals
}

#[cfg(test)]
mod tests;
