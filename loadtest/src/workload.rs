//! The requests of a run, drawn before it begins.

use std::time::Duration;

use baton_contract::request::{Prompt, Request};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, Exp1};

use crate::{Options, options::FIRST_TOKEN};

/// Everything random has a stream of its own, so that one option changes nothing else: the arrivals stay when the lengths do.
const ARRIVALS: u64 = 0;
const PROMPT_LENGTHS: u64 = 1;
const OUTPUT_LENGTHS: u64 = 2;
const FIRST_PROMPT: u64 = 3;

/// When each request is sent, and how long it is. The warm-up comes first.
#[derive(Clone, Debug, PartialEq)]
pub struct Workload {
    seed: u64,
    vocabulary: u32,
    model: Option<String>,
    pub requests: Vec<Planned>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Planned {
    /// Since the run's start.
    pub at: Duration,
    pub prompt_tokens: u32,
    pub max_tokens: u32,
}

impl Workload {
    /// Draws the run that `options` describe; equal options draw equal runs. They must have been checked.
    pub(crate) fn draw(options: &Options) -> Self {
        let mut arrivals = stream(options.seed, ARRIVALS);
        let mut prompts = stream(options.seed, PROMPT_LENGTHS);
        let mut outputs = stream(options.seed, OUTPUT_LENGTHS);
        let mut at = 0.0;
        let requests = (0..options.warmup + options.jobs).map(|_| {
            let gap: f64 = Exp1.sample(&mut arrivals);
            at += gap / options.rate;
            Planned {
                at: Duration::from_secs_f64(at),
                prompt_tokens: options.prompt_tokens.sample(&mut prompts),
                max_tokens: options.output_tokens.sample(&mut outputs),
            }
        });
        Self {
            seed: options.seed,
            vocabulary: options.vocabulary,
            model: options.model.as_ref().map(ToString::to_string),
            requests: requests.collect(),
        }
    }

    /// The request at `index` under an id. Prompts are made only when they are sent: a long run would fill the memory.
    pub(crate) fn request(&self, index: usize, id: String) -> Request {
        let planned = self.requests[index];
        let mut random = stream(self.seed, FIRST_PROMPT + index as u64);
        let mut token = || random.random_range(FIRST_TOKEN..self.vocabulary);
        let prompt = (0..planned.prompt_tokens).map(|_| token()).collect();
        Request {
            id: Some(id),
            model: self.model.clone(),
            prompt: Some(Prompt::Tokens(prompt)),
            max_tokens: Some(planned.max_tokens),
            ..Request::default()
        }
    }
}

/// The `number`-th sequence of random numbers of a seed.
pub(crate) fn stream(seed: u64, number: u64) -> ChaCha8Rng {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    random.set_stream(number);
    random
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> Options {
        Options {
            prompt_tokens: "uniform:5:90".parse().unwrap(),
            output_tokens: "exp:40".parse().unwrap(),
            ..Options::new(50.0, 20_000).unwrap()
        }
    }

    #[test]
    fn arrivals_are_poisson_at_the_rate() {
        let workload = Workload::draw(&options());
        let times: Vec<f64> = workload.requests.iter().map(|planned| planned.at.as_secs_f64()).collect();
        let gaps: Vec<f64> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert!(gaps.iter().all(|gap| *gap >= 0.0));
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let deviation = (gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64).sqrt();
        // The gaps of a Poisson process are exponential: their deviation is their mean, and 1/e of them are longer.
        assert!((mean * 50.0 - 1.0).abs() < 0.03, "mean gap {mean} s");
        assert!((deviation / mean - 1.0).abs() < 0.05, "deviation {deviation} s");
        let longer = gaps.iter().filter(|gap| **gap > 0.02).count() as f64 / gaps.len() as f64;
        assert!((longer - (-1f64).exp()).abs() < 0.01, "{longer} are longer than the mean");
    }

    #[test]
    fn a_seed_decides_everything_and_each_option_only_its_own() {
        let drawn = Workload::draw(&options());
        assert_eq!(drawn, Workload::draw(&options()));
        let id = || "x".to_owned();
        assert_eq!(drawn.request(7, id()), Workload::draw(&options()).request(7, id()));
        assert_ne!(drawn.request(7, id()).prompt, drawn.request(8, id()).prompt);

        let other = Workload::draw(&Options { seed: 1, ..options() });
        assert_ne!(drawn.requests, other.requests);
        assert_ne!(drawn.request(7, id()).prompt, other.request(7, id()).prompt);

        let longer = Workload::draw(&Options { prompt_tokens: "lognormal:900:1".parse().unwrap(), ..options() });
        for (one, two) in drawn.requests.iter().zip(&longer.requests) {
            assert_eq!((one.at, one.max_tokens), (two.at, two.max_tokens));
        }
    }

    #[test]
    fn prompts_have_the_planned_length_and_ids_within_the_vocabulary() {
        let workload = Workload::draw(&Options { vocabulary: 40, ..options() });
        for (index, planned) in workload.requests.iter().enumerate().take(50) {
            let request = workload.request(index, index.to_string());
            let Some(Prompt::Tokens(tokens)) = request.prompt else { panic!("not a list of tokens") };
            assert_eq!(tokens.len(), planned.prompt_tokens as usize);
            assert!(tokens.iter().all(|token| (32..40).contains(token)));
            assert_eq!(request.max_tokens, Some(planned.max_tokens));
        }
    }
}
