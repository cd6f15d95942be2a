//! Requests drawn one after another.

use std::time::Duration;

use rand_chacha::ChaCha8Rng;

use crate::{ARRIVALS, Arrivals, OUTPUT_LENGTHS, PROMPT_LENGTHS, Shape, stream, trace};

/// A request before it has a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drawn {
    /// When it comes, from the beginning of the load.
    pub at: Duration,
    /// At least 1.
    pub prompt_tokens: u32,
    /// Most tokens of its answer.
    pub max_tokens: u32,
    /// Chained names of the prompt's blocks if a trace told them: equal names mean equal prefixes. Otherwise the prompt
    /// shares nothing with others.
    pub blocks: Vec<u64>,
}

/// An endless load: arrivals, and lengths that don't depend on them.
#[derive(Clone, Debug)]
pub struct Draw {
    arrivals: Arrivals,
    shape: Shape,
    gaps: ChaCha8Rng,
    prompts: ChaCha8Rng,
    outputs: ChaCha8Rng,
    /// Seconds from the beginning.
    at: f64,
}

impl Draw {
    /// The load of a seed: equal seeds give equal requests.
    pub fn new(arrivals: Arrivals, shape: Shape, seed: u64) -> Self {
        Self {
            arrivals,
            shape,
            gaps: stream(seed, ARRIVALS),
            prompts: stream(seed, PROMPT_LENGTHS),
            outputs: stream(seed, OUTPUT_LENGTHS),
            at: 0.0,
        }
    }
}

impl Iterator for Draw {
    type Item = Drawn;

    fn next(&mut self) -> Option<Drawn> {
        self.at += self.arrivals.gap(&mut self.gaps);
        Some(Drawn {
            at: Duration::try_from_secs_f64(self.at).unwrap_or(Duration::MAX),
            prompt_tokens: self.shape.prompt_tokens.sample(&mut self.prompts),
            max_tokens: self.shape.output_tokens.sample(&mut self.outputs),
            blocks: Vec::new(),
        })
    }
}

/// How a trace becomes a load of another size.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scales {
    /// Times between requests by those of the trace: 0.5 is twice as fast. Above 0.
    pub time: f64,
    /// Tokens by those of the trace: 0.1 is a tenth of each prompt and each answer. Above 0.
    pub length: f64,
}

impl Default for Scales {
    fn default() -> Self {
        Self { time: 1.0, length: 1.0 }
    }
}

impl Scales {
    /// A trace's request as one of this load. The names of its blocks stay: [`crate::prompt::of_blocks`] shortens what they
    /// stand for by as much.
    pub fn apply(&self, line: trace::Line) -> Drawn {
        let tokens = |count: u64| ((count as f64 * self.length).round().clamp(1.0, f64::from(u32::MAX))) as u32;
        Drawn {
            at: Duration::try_from_secs_f64(line.timestamp * self.time / 1e3).unwrap_or(Duration::ZERO),
            prompt_tokens: tokens(line.input_length),
            max_tokens: tokens(line.output_length),
            blocks: line.hash_ids,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Named, arrivals::Rate};

    #[test]
    fn a_seed_decides_everything_and_each_option_only_its_own() {
        let arrivals = |rate| Arrivals::poisson(Rate::new(rate).unwrap());
        let draw = |rate, named: Named, seed| -> Vec<Drawn> {
            Draw::new(arrivals(rate), named.shape(), seed).take(500).collect()
        };
        let drawn = draw(50.0, Named::Mixed, 0);
        assert_eq!(drawn, draw(50.0, Named::Mixed, 0));
        assert_ne!(drawn, draw(50.0, Named::Mixed, 1));
        assert!(drawn.is_sorted_by_key(|request| request.at));
        for (one, two) in drawn.iter().zip(draw(50.0, Named::Prompts, 0)) {
            assert_eq!(one.at, two.at);
        }
        for (one, two) in drawn.iter().zip(draw(7.0, Named::Mixed, 0)) {
            assert_eq!((one.prompt_tokens, one.max_tokens), (two.prompt_tokens, two.max_tokens));
        }
    }

    #[test]
    fn a_trace_is_scaled_in_time_and_length() {
        let line = trace::Line { timestamp: 3_000.0, input_length: 1_000, output_length: 3, hash_ids: vec![1, 2] };
        let drawn = Scales { time: 0.5, length: 0.1 }.apply(line);
        let expected =
            Drawn { at: Duration::from_millis(1_500), prompt_tokens: 100, max_tokens: 1, blocks: vec![1, 2] };
        assert_eq!(drawn, expected);
    }
}
