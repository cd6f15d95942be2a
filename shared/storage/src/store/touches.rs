//! Which chunks this process has touched lately.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use crate::key::ChunkId;

/// A process touches a chunk at most this often. The grace period must be longer: a chunk in use may look this old.
pub const TOUCH_EVERY: Duration = Duration::from_secs(30 * 60);

/// Rows of the table. It has its full size, 512 KiB, from the beginning, so that no worker grows by it.
const ROWS: usize = 4096;
/// Chunks that share a row. One more pushes out the one that was touched first, which so may be touched more often than it
/// had to be.
const WAYS: usize = 8;

#[derive(Debug)]
pub(crate) struct Touches {
    began: Instant,
    rows: Mutex<Box<[[Touched; WAYS]]>>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Touched {
    /// 64 bits of the chunk's hash; others choose the row.
    chunk: u64,
    /// Milliseconds since the beginning until which the chunk needs no other touch.
    until: u64,
}

impl Default for Touches {
    fn default() -> Self {
        let rows = vec![[Touched::default(); WAYS]; ROWS].into();
        Self { began: Instant::now(), rows: Mutex::new(rows) }
    }
}

impl Touches {
    /// Whether a chunk is to be touched now; if so, it counts as touched.
    pub(crate) fn due(&self, id: &ChunkId) -> bool {
        let (chunk, row) = place(id);
        let now = self.now();
        let row = &mut self.lock()[row];
        if row.iter().any(|touched| touched.chunk == chunk && now < touched.until) {
            return false;
        }
        let known = row.iter().position(|touched| touched.chunk == chunk);
        let oldest = || (0..WAYS).min_by_key(|&way| row[way].until).unwrap_or_default();
        row[known.unwrap_or_else(oldest)] = Touched { chunk, until: now + TOUCH_EVERY.as_millis() as u64 };
        true
    }

    /// Whether a chunk need not be touched now.
    pub(crate) fn recent(&self, id: &ChunkId) -> bool {
        let (chunk, row) = place(id);
        let now = self.now();
        self.lock()[row].iter().any(|touched| touched.chunk == chunk && now < touched.until)
    }

    /// Forgets a touch that failed.
    pub(crate) fn forget(&self, id: &ChunkId) {
        let (chunk, row) = place(id);
        self.lock()[row].iter_mut().filter(|touched| touched.chunk == chunk).for_each(|touched| touched.until = 0);
    }

    fn now(&self) -> u64 {
        self.began.elapsed().as_millis() as u64
    }

    fn lock(&self) -> MutexGuard<'_, Box<[[Touched; WAYS]]>> {
        self.rows.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a chunk is called in its row, and the row.
fn place(id: &ChunkId) -> (u64, usize) {
    let word = |from| u64::from_le_bytes(std::array::from_fn(|byte| id.0[from + byte]));
    (word(0), word(8) as usize % ROWS)
}

#[cfg(test)]
mod tests {
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

    #[tokio::test(start_paused = true)]
    async fn a_full_row_forgets_what_was_touched_first() {
        let touches = Touches::default();
        let of_one_row = |n: usize| ChunkId(std::array::from_fn(|byte| if byte == 0 { n as u8 } else { 0 }));
        for n in 0..=WAYS {
            assert!(touches.due(&of_one_row(n)));
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        assert!((1..=WAYS).all(|n| touches.recent(&of_one_row(n))));
        assert!(touches.due(&of_one_row(0)) && !touches.recent(&of_one_row(1)));
    }
}
