//! Means and percentiles of exact samples, and what a few paired differences tell.

use serde::Serialize;

/// What many samples come to, in the unit of the samples. Percentiles are by the nearest rank: always one of the samples.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// The mean.
    pub mean: f64,
    /// The middle one, or the mean of the two in the middle.
    pub median: f64,
    /// The standard deviation of these samples.
    pub std: f64,
    /// The smallest.
    pub min: f64,
    /// The 50th percentile.
    pub p50: f64,
    /// The 90th percentile.
    pub p90: f64,
    /// The 95th percentile.
    pub p95: f64,
    /// The 99th percentile.
    pub p99: f64,
    /// The largest.
    pub max: f64,
    /// Samples that there are.
    pub count: usize,
}

impl Summary {
    /// Of finite samples; none if there are none.
    pub fn of(mut samples: Vec<f64>) -> Option<Self> {
        samples.sort_by(f64::total_cmp);
        let (min, max) = (*samples.first()?, *samples.last()?);
        let count = samples.len();
        let mean = samples.iter().sum::<f64>() / count as f64;
        let variance = samples.iter().map(|sample| (sample - mean).powi(2)).sum::<f64>() / count as f64;
        Some(Self {
            mean,
            median: middle(&samples)?,
            std: variance.sqrt(),
            min,
            p50: nearest_rank(&samples, 50),
            p90: nearest_rank(&samples, 90),
            p95: nearest_rank(&samples, 95),
            p99: nearest_rank(&samples, 99),
            max,
            count,
        })
    }
}

/// The middle of the samples, between the middle two if their number is even; none of none.
pub fn median(samples: &[f64]) -> Option<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    middle(&sorted)
}

/// The median of ascending samples.
fn middle(sorted: &[f64]) -> Option<f64> {
    let upper = *sorted.get(sorted.len() / 2)?;
    Some((sorted[(sorted.len() - 1) / 2] + upper) / 2.0)
}

/// The smallest sample that at least `percent` of all samples do not exceed; `percent` from 1 to 100, samples ascending.
fn nearest_rank(samples: &[f64], percent: usize) -> f64 {
    let rank = (samples.len() * percent).div_ceil(100);
    samples[rank - 1]
}

/// The two-sided 95 % quantiles of Student's t distribution with 1 to 30 degrees of freedom.
const T_95: [f64; 30] = [
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
    2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
];
/// That of the normal distribution, for more.
const NORMAL_95: f64 = 1.960;

/// The mean of samples and the half-width of its 95 % confidence interval by Student's t; one sample has no interval.
pub fn confidence(samples: &[f64]) -> Option<(f64, Option<f64>)> {
    let count = samples.len();
    if count == 0 {
        return None;
    }
    let mean = samples.iter().sum::<f64>() / count as f64;
    if count == 1 {
        return Some((mean, None));
    }
    let variance = samples.iter().map(|sample| (sample - mean).powi(2)).sum::<f64>() / (count - 1) as f64;
    let quantile = T_95.get(count - 2).copied().unwrap_or(NORMAL_95);
    Some((mean, Some(quantile * (variance / count as f64).sqrt())))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn known_samples_have_known_percentiles() {
        let summary = Summary::of((1..=200).rev().map(f64::from).collect()).unwrap();
        let expected = Summary {
            mean: 100.5,
            median: 100.5,
            std: ((200.0f64.powi(2) - 1.0) / 12.0).sqrt(),
            min: 1.0,
            p50: 100.0,
            p90: 180.0,
            p95: 190.0,
            p99: 198.0,
            max: 200.0,
            count: 200,
        };
        assert_eq!(summary, expected);
        let one = Summary::of(vec![3.0]).unwrap();
        assert_eq!((one.mean, one.median, one.std, one.p50, one.p99), (3.0, 3.0, 0.0, 3.0, 3.0));
        assert_eq!(Summary::of(Vec::new()), None);
    }

    #[test]
    fn an_interval_is_as_wide_as_student_says() {
        // Deviation 1 and three samples: 4.303 / sqrt(3).
        let (mean, half) = confidence(&[1.0, 2.0, 3.0]).unwrap();
        assert!((mean - 2.0).abs() < 1e-12 && (half.unwrap() - 2.4843).abs() < 1e-3, "{mean} {half:?}");
        assert_eq!(confidence(&[5.0]), Some((5.0, None)));
        assert_eq!(confidence(&[]), None);
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
