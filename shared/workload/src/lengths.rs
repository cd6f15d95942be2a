//! How long prompts and answers are: token counts from a distribution.

use std::{fmt, str::FromStr};

use rand::{Rng, RngExt};
use rand_distr::{Distribution, Exp1, StandardNormal};
use serde::{Serialize, Serializer};

/// The most tokens that are ever drawn; the fewest are 1.
pub const LONGEST: u32 = 32_768;
/// What of a refused text is shown.
pub(crate) const QUOTED: usize = 80;
/// A spread of the logarithm beyond this gives next to nothing but the two bounds.
const WIDEST_SIGMA: f64 = 4.0;

/// A distribution of token counts; whatever it draws is rounded and clamped to 1 up to [`LONGEST`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Lengths {
    /// `256`
    Fixed(u32),
    /// `uniform:64:512`, both included.
    Uniform {
        /// The fewest tokens.
        min: u32,
        /// The most tokens.
        max: u32,
    },
    /// `lognormal:300:0.8`: the mean in tokens, and the standard deviation of the logarithm.
    LogNormal {
        /// In tokens.
        mean: f64,
        /// Of the logarithm.
        sigma: f64,
    },
    /// `exp:200`: the mean in tokens.
    Exponential {
        /// In tokens.
        mean: f64,
    },
}

/// A text that is no distribution.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "expected TOKENS, uniform:MIN:MAX, lognormal:MEAN:SIGMA or exp:MEAN, with 1 to {LONGEST} tokens and a sigma of 0 to \
     {WIDEST_SIGMA}, found {0:?}"
)]
pub struct Error(String);

impl Lengths {
    /// A number of tokens, at least 1.
    pub fn sample(&self, random: &mut impl Rng) -> u32 {
        let drawn = match *self {
            Self::Fixed(tokens) => return tokens,
            Self::Uniform { min, max } => return random.random_range(min..=max),
            Self::LogNormal { mean, sigma } => {
                let normal: f64 = StandardNormal.sample(random);
                // The mean of exp(sigma * normal) is exp(sigma^2 / 2).
                mean * (sigma * normal - sigma * sigma / 2.0).exp()
            }
            Self::Exponential { mean } => {
                let unit: f64 = Exp1.sample(random);
                mean * unit
            }
        };
        drawn.round().clamp(1.0, f64::from(LONGEST)) as u32
    }
}

impl Lengths {
    /// Tokens on average, before rounding and clamping.
    pub fn mean(&self) -> f64 {
        match *self {
            Self::Fixed(tokens) => f64::from(tokens),
            Self::Uniform { min, max } => (f64::from(min) + f64::from(max)) / 2.0,
            Self::LogNormal { mean, .. } | Self::Exponential { mean } => mean,
        }
    }

    /// The same distribution of lengths that are `factor` times as long, within 1 and [`LONGEST`].
    pub fn scaled(self, factor: f64) -> Self {
        let real = |tokens: f64| (tokens * factor).clamp(1.0, f64::from(LONGEST));
        let whole = |tokens: u32| real(f64::from(tokens)).round() as u32;
        match self {
            Self::Fixed(tokens) => Self::Fixed(whole(tokens)),
            Self::Uniform { min, max } => Self::Uniform { min: whole(min), max: whole(max) },
            Self::LogNormal { mean, sigma } => Self::LogNormal { mean: real(mean), sigma },
            Self::Exponential { mean } => Self::Exponential { mean: real(mean) },
        }
    }
}

impl FromStr for Lengths {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let tokens = |word: &str| word.parse().ok().filter(|tokens| (1..=LONGEST).contains(tokens));
        let mean = |word: &str| word.parse().ok().filter(|mean| (1.0..=f64::from(LONGEST)).contains(mean));
        let sigma = |word: &str| word.parse().ok().filter(|sigma| (0.0..=WIDEST_SIGMA).contains(sigma));
        let words: Vec<&str> = text.split(':').collect();
        let read = || {
            Some(match words.as_slice() {
                ["uniform", low, high] => {
                    let (min, max) = (tokens(low)?, tokens(high)?);
                    (min <= max).then_some(Self::Uniform { min, max })?
                }
                ["lognormal", middle, spread] => Self::LogNormal { mean: mean(middle)?, sigma: sigma(spread)? },
                ["exp", middle] => Self::Exponential { mean: mean(middle)? },
                [fixed] => Self::Fixed(tokens(fixed)?),
                _ => return None,
            })
        };
        read().ok_or_else(|| Error(text.chars().take(QUOTED).collect()))
    }
}

impl fmt::Display for Lengths {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(tokens) => write!(f, "{tokens}"),
            Self::Uniform { min, max } => write!(f, "uniform:{min}:{max}"),
            Self::LogNormal { mean, sigma } => write!(f, "lognormal:{mean}:{sigma}"),
            Self::Exponential { mean } => write!(f, "exp:{mean}"),
        }
    }
}

impl Serialize for Lengths {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;

    #[test]
    fn each_distribution_keeps_its_mean_and_spread_within_the_bounds() {
        // Text, mean, standard deviation.
        let cases = [
            ("256", 256.0, 0.0),
            ("uniform:64:512", 288.0, 449.0 / 12f64.sqrt()),
            ("lognormal:300:0.5", 300.0, 300.0 * (0.25f64.exp() - 1.0).sqrt()),
            ("exp:200", 200.0, 200.0),
        ];
        let count = 40_000;
        for (text, mean, deviation) in cases {
            let lengths: Lengths = text.parse().unwrap();
            assert_eq!(lengths.to_string(), text);
            let mut random = ChaCha8Rng::seed_from_u64(7);
            let samples: Vec<f64> = (0..count).map(|_| f64::from(lengths.sample(&mut random))).collect();
            let found = samples.iter().sum::<f64>() / f64::from(count);
            let variance = samples.iter().map(|sample| (sample - found).powi(2)).sum::<f64>() / f64::from(count);
            assert!((found - mean).abs() <= 0.02 * mean, "{text}: mean {found}");
            assert!((variance.sqrt() - deviation).abs() <= 0.05 * deviation, "{text}: deviation {}", variance.sqrt());
        }
        let wild: Lengths = "lognormal:32768:4".parse().unwrap();
        let mut random = ChaCha8Rng::seed_from_u64(7);
        assert!((0..count).all(|_| (1..=LONGEST).contains(&wild.sample(&mut random))));
    }

    #[test]
    fn what_is_no_distribution_is_refused() {
        for bad in [
            "",
            "0",
            "-5",
            "32769",
            "2.5",
            "uniform:0:5",
            "uniform:9:5",
            "uniform:5",
            "exp:0",
            "exp:nan",
            "exp:inf",
            "lognormal:300",
            "lognormal:300:-1",
            "lognormal:300:9",
            "normal:5:1",
            "5:6",
        ] {
            let error = bad.parse::<Lengths>().expect_err(bad);
            assert!(error.to_string().contains(&format!("found {bad:?}")), "{error}");
        }
    }
}
