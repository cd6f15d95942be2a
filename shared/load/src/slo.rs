//! What counts as a good request.

use std::{fmt, str::FromStr};

use serde::{Serialize, Serializer};

use crate::record::Record;

/// A latency that is measured of each request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metric {
    /// Time to first token.
    Ttft,
    /// Time per output token after the first.
    Tpot,
    /// The mean of a request's inter-token latencies.
    Itl,
    /// End-to-end latency.
    E2el,
}

/// The most milliseconds that a latency of a good request takes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bound {
    /// Which latency.
    pub metric: Metric,
    /// The most that it takes, in milliseconds.
    pub ms: f64,
}

/// A text that names no bound.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected ttft, tpot, itl or e2el with milliseconds, as in ttft:2000, found {0:?}")]
pub struct Error(String);

impl Bound {
    /// Whether a request that completed keeps to it. One without the latency, such as the time per output token of an answer
    /// of one token, does if the answer says why there is none.
    pub(crate) fn holds(&self, record: &Record) -> bool {
        let found = match self.metric {
            Metric::Ttft => record.ttft(),
            Metric::E2el => record.e2el(),
            Metric::Tpot if record.output_tokens() <= 1 => return true,
            Metric::Itl if record.output_tokens() <= 1 => return true,
            Metric::Tpot => record.tpot(),
            Metric::Itl => record.mean_itl(),
        };
        found.is_some_and(|found| found.as_secs_f64() * 1e3 <= self.ms)
    }
}

impl FromStr for Bound {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let read = || {
            let (metric, ms) = text.split_once(':')?;
            let metric = match metric {
                "ttft" => Metric::Ttft,
                "tpot" => Metric::Tpot,
                "itl" => Metric::Itl,
                "e2el" => Metric::E2el,
                _ => return None,
            };
            let ms = ms.parse().ok().filter(|ms| (0.0..=1e9).contains(ms))?;
            Some(Self { metric, ms })
        };
        read().ok_or_else(|| Error(text.chars().take(80).collect()))
    }
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let metric = match self.metric {
            Metric::Ttft => "ttft",
            Metric::Tpot => "tpot",
            Metric::Itl => "itl",
            Metric::E2el => "e2el",
        };
        write!(f, "{metric}:{}", self.ms)
    }
}

impl Serialize for Bound {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_read_back_and_others_refused() {
        for text in ["ttft:2000", "tpot:0.5", "itl:100", "e2el:60000"] {
            assert_eq!(text.parse::<Bound>().unwrap().to_string(), text);
        }
        for bad in ["", "ttft", "ttft:", "ttft:-1", "ttft:nan", "latency:5", "tpot=5"] {
            assert_eq!(bad.parse::<Bound>(), Err(Error(bad.into())));
        }
    }
}
