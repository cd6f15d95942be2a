//! How long to wait before something is tried again: longer each time, and never as long as others wait.

use std::time::Duration;

/// A schedule of pauses. Each is a multiple of the one before, up to the longest; jitter then takes up to half of it away. So
/// those that failed together do not come back together.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    factor: u32,
}

/// The pauses of one row of tries, without end.
#[derive(Clone, Debug)]
pub struct Pauses {
    backoff: Backoff,
    tried: u32,
    seed: u64,
}

impl Backoff {
    /// Pauses that double.
    pub const fn doubling(first: Duration, longest: Duration) -> Self {
        Self { first, longest, factor: 2 }
    }

    /// Pauses that grow by a factor.
    pub const fn growing(first: Duration, longest: Duration, factor: u32) -> Self {
        Self { first, longest, factor }
    }

    /// The pause before the retry of this number, from 0, without jitter.
    pub fn step(&self, retry: u32) -> Duration {
        let times = self.factor.saturating_pow(retry);
        self.first.saturating_mul(times).min(self.longest)
    }

    /// The same with jitter, by 64 bits that are random.
    pub fn pause(&self, retry: u32, random: u64) -> Duration {
        // The upper half of the bits as a fraction of one.
        let share = (random >> 32) as f64 / f64::from(u32::MAX);
        self.step(retry).mul_f64(0.5 + share / 2.0)
    }

    /// The pauses of one row of tries, with jitter by a random `seed`.
    pub fn pauses(self, seed: u64) -> Pauses {
        Pauses { backoff: self, tried: 0, seed }
    }
}

impl Pauses {
    /// The next pause.
    pub fn pause(&mut self) -> Duration {
        let pause = self.backoff.pause(self.tried, mixed(self.seed.wrapping_add(u64::from(self.tried))));
        self.tried = self.tried.saturating_add(1);
        pause
    }

    /// Begins with the shortest pause again.
    pub fn reset(&mut self) {
        self.tried = 0;
    }
}

/// SplitMix64's output function (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014).
fn mixed(seed: u64) -> u64 {
    let z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn pauses_grow_to_the_longest() {
        let steps = |backoff: Backoff| [0, 1, 2, 3, 99].map(|retry| backoff.step(retry).as_millis());
        assert_eq!(steps(Backoff::doubling(50 * MS, 300 * MS)), [50, 100, 200, 300, 300]);
        assert_eq!(steps(Backoff::growing(1_000 * MS, 30_000 * MS, 4)), [1_000, 4_000, 16_000, 30_000, 30_000]);
    }

    #[test]
    fn jitter_takes_up_to_half_away() {
        let backoff = Backoff::doubling(100 * MS, 100 * MS);
        assert_eq!(backoff.pause(0, 0), 50 * MS);
        assert_eq!(backoff.pause(0, u64::MAX), 100 * MS);
        let pauses = |seed| {
            let mut pauses = backoff.pauses(seed);
            (0..1_000).map(|_| pauses.pause()).collect::<Vec<_>>()
        };
        assert_ne!(pauses(1), pauses(2));
        let (low, high) = (pauses(1).into_iter().min().unwrap(), pauses(1).into_iter().max().unwrap());
        assert!(low < 53 * MS && high > 97 * MS && low >= 50 * MS && high <= 100 * MS, "{low:?} {high:?}");
    }

    #[test]
    fn a_new_row_begins_with_the_shortest() {
        let mut pauses = Backoff::doubling(MS, 1_000 * MS).pauses(7);
        let first = pauses.pause();
        assert!((0..12).map(|_| pauses.pause()).last().unwrap() >= 500 * MS);
        pauses.reset();
        assert_eq!(pauses.pause(), first);
    }
}
