//! When a put that met another operation on its object is tried again. S3 refuses such a put with 409, whether or not the
//! other operation leaves an object behind.

use std::time::Duration;

/// The first pause; each next one is twice as long, up to the longest.
const FIRST: Duration = Duration::from_millis(50);
const LONGEST: Duration = Duration::from_secs(1);
/// Tries after the first, some six seconds together. Whoever puts decides then.
const TRIES: u32 = 10;

/// The pauses between tries. Each is between half of its length and all of it, so that those that met do not meet again.
#[derive(Debug, Default)]
pub(super) struct Pauses {
    tried: u32,
}

impl Iterator for Pauses {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let most = (FIRST * 2u32.pow(self.tried.min(TRIES))).min(LONGEST);
        self.tried += 1;
        // The last bytes of a time-ordered UUID are random.
        let share = f64::from(uuid::Uuid::now_v7().as_bytes()[15]) / 255.0;
        (self.tried <= TRIES).then(|| most.mul_f64(0.5 + share / 2.0))
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
