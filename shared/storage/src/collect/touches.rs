//! Which chunks this process has touched lately.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use tokio::time::Instant;

use super::TOUCH_EVERY;
use crate::key::ChunkId;

/// Chunks remembered at most: 1.6 MB. Beyond that a chunk may be touched more often than it had to be.
const MOST: usize = 28_000;

#[derive(Debug, Default)]
pub(crate) struct Touches {
    last: Mutex<HashMap<ChunkId, Instant>>,
}

impl Touches {
    /// Whether a chunk is to be touched now; if so, it counts as touched.
    pub(crate) fn due(&self, id: &ChunkId) -> bool {
        let now = Instant::now();
        let recent = |at: &Instant| now.duration_since(*at) < TOUCH_EVERY;
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.get(id).is_some_and(recent) {
            return false;
        }
        if last.len() >= MOST {
            last.retain(|_, at| recent(at));
            if last.len() >= MOST {
                last.clear();
            }
        }
        last.insert(*id, now);
        true
    }

    /// Whether a chunk need not be touched now.
    pub(crate) fn recent(&self, id: &ChunkId) -> bool {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        last.get(id).is_some_and(|at| at.elapsed() < TOUCH_EVERY)
    }

    /// Forgets a touch that failed.
    pub(crate) fn forget(&self, id: &ChunkId) {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_chunk_is_touched_once_a_period_and_again_after_a_failure() {
        let (touches, one, other) = (Touches::default(), ChunkId([1; 32]), ChunkId([2; 32]));
        assert!(touches.due(&one) && touches.due(&other) && !touches.due(&one));
        tokio::time::advance(TOUCH_EVERY - Duration::from_secs(1)).await;
        assert!(!touches.due(&one));
        touches.forget(&one);
        assert!(touches.due(&one));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(touches.due(&other) && !touches.due(&one));
    }
}
