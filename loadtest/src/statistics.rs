//! Means and percentiles of exact samples.

use serde::Serialize;

/// What many samples come to, in the unit of the samples. Percentiles are by the nearest rank: always one of the samples.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Summary {
    pub mean: f64,
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    pub max: f64,
    /// Samples that there are.
    pub count: usize,
}

impl Summary {
    /// Of finite samples; none if there are none.
    pub fn of(mut samples: Vec<f64>) -> Option<Self> {
        samples.sort_by(f64::total_cmp);
        let max = *samples.last()?;
        Some(Self {
            mean: samples.iter().sum::<f64>() / samples.len() as f64,
            p50: nearest_rank(&samples, 50),
            p90: nearest_rank(&samples, 90),
            p99: nearest_rank(&samples, 99),
            max,
            count: samples.len(),
        })
    }
}

/// The smallest sample that at least `percent` of all samples do not exceed; `percent` from 1 to 100, samples ascending.
fn nearest_rank(samples: &[f64], percent: usize) -> f64 {
    let rank = (samples.len() * percent).div_ceil(100);
    samples[rank - 1]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn known_samples_have_known_percentiles() {
        let summary = Summary::of((1..=200).rev().map(f64::from).collect()).unwrap();
        let expected = Summary { mean: 100.5, p50: 100.0, p90: 180.0, p99: 198.0, max: 200.0, count: 200 };
        assert_eq!(summary, expected);
        let one = Summary::of(vec![3.0]).unwrap();
        assert_eq!((one.mean, one.p50, one.p99), (3.0, 3.0, 3.0));
        assert_eq!(Summary::of(Vec::new()), None);
    }

    proptest! {
        #[test]
        fn a_percentile_is_the_smallest_sample_that_covers_its_share(
            samples in prop::collection::vec(0u32..50, 1..300),
            percent in 1usize..=100,
        ) {
            let mut sorted: Vec<f64> = samples.iter().map(|sample| f64::from(*sample)).collect();
            sorted.sort_by(f64::total_cmp);
            let found = nearest_rank(&sorted, percent);
            let covered = |limit: f64| sorted.iter().filter(|sample| **sample <= limit).count() * 100;
            prop_assert!(sorted.contains(&found));
            prop_assert!(covered(found) >= percent * sorted.len());
            prop_assert!(covered(found - 0.5) < percent * sorted.len());
        }
    }
}
