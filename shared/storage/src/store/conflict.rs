//! When a put that met another operation on its object is tried again. S3 refuses such a put with 409, whether or not the
//! other operation leaves an object behind.

use std::time::Duration;

use baton_contract::backoff::{self, Backoff};

const FIRST: Duration = Duration::from_millis(50);
const LONGEST: Duration = Duration::from_secs(1);
/// Tries after the first, some six seconds together. Whoever puts decides then.
const TRIES: u32 = 10;

/// The pauses between tries.
#[derive(Debug)]
pub(super) struct Pauses {
    left: u32,
    pauses: backoff::Pauses,
}

impl Default for Pauses {
    fn default() -> Self {
        // The last bytes of a time-ordered UUID are random.
        let (_, random) = uuid::Uuid::now_v7().as_u64_pair();
        Self { left: TRIES, pauses: Backoff::doubling(FIRST, LONGEST).pauses(random) }
    }
}

impl Iterator for Pauses {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        self.left = self.left.checked_sub(1)?;
        Some(self.pauses.pause())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tries_are_few_and_their_pauses_grow_and_differ() {
        let pauses: Vec<Duration> = Pauses::default().collect();
        assert_eq!(pauses.len(), TRIES as usize);
        assert!(pauses[0] <= FIRST && pauses[9] <= LONGEST && pauses[9] >= LONGEST / 2, "{pauses:?}");
        assert!((0..20).any(|_| Pauses::default().next() != Some(pauses[0])), "all pauses are alike");
    }
}
