//! When requests come.

use std::{fmt, str::FromStr};

use rand::Rng;
use rand_distr::{Distribution, Exp1, Gamma};
use serde::{Serialize, Serializer};

/// A random process of arrivals: gaps that are gamma-distributed around a mean.
///
/// The gamma distribution's shape is the burstiness, as in vLLM's benchmark: 1 is a Poisson process, less comes in bursts,
/// more is more even, and infinity is one request each `1 / rate`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Arrivals {
    /// Requests per second on average; infinite if all come at once.
    pub rate: Rate,
    /// The squared mean of the gaps by their variance.
    pub burstiness: Burstiness,
}

/// Requests per second: 0.001 to 100,000, or `inf`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate(f64);

/// 0.01 to 1,000, or `inf`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Burstiness(f64);

/// A number out of its bounds, or a text that is no number.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected {expected}, found {found:?}")]
pub struct Error {
    expected: &'static str,
    found: String,
}

impl Rate {
    /// Every request comes at the beginning.
    pub const ALL_AT_ONCE: Self = Self(f64::INFINITY);

    /// An error outside of 0.001 to 100,000 that is not infinite.
    pub fn new(per_second: f64) -> Result<Self, Error> {
        let expected = "0.001 to 100000 requests per second, or inf";
        let holds = (0.001..=100_000.0).contains(&per_second) || per_second == f64::INFINITY;
        holds.then_some(Self(per_second)).ok_or(Error { expected, found: per_second.to_string() })
    }

    /// Requests per second.
    pub fn get(self) -> f64 {
        self.0
    }
}

impl Burstiness {
    /// Arrivals that know nothing of each other.
    pub const POISSON: Self = Self(1.0);
    /// Gaps that are all alike.
    pub const CONSTANT: Self = Self(f64::INFINITY);

    /// An error outside of 0.01 to 1,000 that is not infinite.
    pub fn new(shape: f64) -> Result<Self, Error> {
        let expected = "0.01 to 1000 (1 is Poisson, less is burstier), or inf";
        let holds = (0.01..=1_000.0).contains(&shape) || shape == f64::INFINITY;
        holds.then_some(Self(shape)).ok_or(Error { expected, found: shape.to_string() })
    }

    /// The shape of the gaps' gamma distribution.
    pub fn get(self) -> f64 {
        self.0
    }
}

impl Arrivals {
    /// Arrivals that know nothing of each other.
    pub fn poisson(rate: Rate) -> Self {
        Self { rate, burstiness: Burstiness::POISSON }
    }

    /// Seconds from one arrival to the next.
    pub fn gap(&self, random: &mut impl Rng) -> f64 {
        let (rate, shape) = (self.rate.0, self.burstiness.0);
        if rate.is_infinite() {
            return 0.0;
        }
        if shape.is_infinite() {
            return 1.0 / rate;
        }
        if shape == 1.0 {
            let unit: f64 = Exp1.sample(random);
            return unit / rate;
        }
        // Both are above 0, so there is such a distribution.
        Gamma::new(shape, 1.0 / (rate * shape)).map_or(1.0 / rate, |gamma| gamma.sample(random))
    }
}

/// Text, display and JSON are the number, with `inf` for the one that JSON doesn't know.
macro_rules! number {
    ($name:ident) => {
        impl FromStr for $name {
            type Err = Error;

            fn from_str(text: &str) -> Result<Self, Error> {
                let number = text.parse().unwrap_or(f64::NAN);
                Self::new(number).map_err(|error| Error { found: text.chars().take(80).collect(), ..error })
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                if self.0.is_finite() { serializer.serialize_f64(self.0) } else { serializer.serialize_str("inf") }
            }
        }
    };
}

number!(Rate);
number!(Burstiness);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stream;

    /// Mean, and deviation by mean, of the gaps at 50 requests a second.
    fn gaps(burstiness: &str) -> (f64, f64) {
        let arrivals = Arrivals { rate: "50".parse().unwrap(), burstiness: burstiness.parse().unwrap() };
        let mut random = stream(5, 0);
        let gaps: Vec<f64> = (0..40_000).map(|_| arrivals.gap(&mut random)).collect();
        assert!(gaps.iter().all(|gap| *gap >= 0.0));
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
        (mean, variance.sqrt() / mean)
    }

    #[test]
    fn gaps_have_the_mean_of_the_rate_and_the_spread_of_the_burstiness() {
        for (burstiness, spread) in [("0.25", 2.0), ("1", 1.0), ("4", 0.5), ("inf", 0.0)] {
            let (mean, found) = gaps(burstiness);
            assert!((mean * 50.0 - 1.0).abs() < 0.04, "{burstiness}: mean gap {mean} s");
            assert!((found - spread).abs() < 0.05, "{burstiness}: spread {found}");
        }
        assert_eq!(Arrivals::poisson(Rate::ALL_AT_ONCE).gap(&mut stream(5, 0)), 0.0);
    }

    #[test]
    fn numbers_are_read_back_and_others_refused() {
        let rate: Rate = "inf".parse().unwrap();
        assert_eq!((rate, rate.to_string().as_str()), (Rate::ALL_AT_ONCE, "inf"));
        assert_eq!(serde_json::to_string(&[rate, Rate::new(2.5).unwrap()]).unwrap(), r#"["inf",2.5]"#);
        for bad in ["0", "-1", "nan", "", "1e9", "-inf"] {
            let error = bad.parse::<Rate>().expect_err(bad).to_string();
            assert!(error.ends_with(&format!("found {bad:?}")), "{error}");
            assert!(bad.parse::<Burstiness>().is_err(), "{bad}");
        }
    }
}
