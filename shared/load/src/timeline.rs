//! What happened when: tokens by bins of time, kept while the run goes on.

use std::time::Duration;

/// The width of a bin.
pub const BIN: Duration = Duration::from_millis(50);

/// Tokens that were seen in each bin from the run's start on. A run of a day takes 14 MB.
#[derive(Clone, Debug, Default)]
pub struct Timeline {
    tokens: Vec<u32>,
}

impl Timeline {
    /// Counts a token that came at this time since the start.
    pub fn token(&mut self, at: Duration) {
        let bin = (at.as_nanos() / BIN.as_nanos()) as usize;
        if bin >= self.tokens.len() {
            self.tokens.resize(bin + 1, 0);
        }
        self.tokens[bin] += 1;
    }

    /// Tokens from one time to another, both rounded to bins; and the seconds between these.
    pub fn tokens(&self, from: Duration, to: Duration) -> (u64, f64) {
        let bin = |at: Duration| (at.as_nanos() / BIN.as_nanos()) as usize;
        let (first, end) = (bin(from), bin(to));
        let counted = self.tokens.iter().skip(first).take(end.saturating_sub(first));
        (counted.map(|tokens| u64::from(*tokens)).sum(), end.saturating_sub(first) as f64 * BIN.as_secs_f64())
    }

    /// Tokens a second over the run, at about `points` places: seconds since the start, and the rate from there to the next.
    pub fn rates(&self, points: usize) -> Vec<(f64, f64)> {
        let width = self.tokens.len().div_ceil(points.max(1)).max(1);
        let seconds = width as f64 * BIN.as_secs_f64();
        let rate = |bins: &[u32]| bins.iter().map(|tokens| f64::from(*tokens)).sum::<f64>() / seconds;
        (0..).zip(self.tokens.chunks(width)).map(|(place, bins)| (f64::from(place) * seconds, rate(bins))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_counted_where_they_fell() {
        let mut timeline = Timeline::default();
        for ms in [0, 10, 49, 50, 199, 200, 990] {
            timeline.token(Duration::from_millis(ms));
        }
        let (tokens, seconds) = timeline.tokens(Duration::from_millis(50), Duration::from_millis(210));
        assert_eq!(tokens, 2);
        assert!((seconds - 0.15).abs() < 1e-9);
        let rates = timeline.rates(5);
        assert_eq!(rates.len(), 5);
        assert_eq!((rates[0].0, rates[0].1.round(), rates[1].1.round()), (0.0, 25.0, 5.0));
    }
}
