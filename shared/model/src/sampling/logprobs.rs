//! What a model thinks of its tokens, as it is reported.

use super::draw::greedy;
use super::numbers::{exp, finite};

/// The least log-probability that is reported: what OpenAI's interface gives for tokens that are as good as impossible.
const LEAST: f64 = -9999.0;

/// A model's own distribution over the next token: temperature 1, nothing changed or cut off.
pub struct Distribution<'l> {
    logits: &'l [f32],
    /// The greatest logit, and the logarithm of the sum of all weights relative to it.
    best: f64,
    log_total: f64,
}

impl<'l> Distribution<'l> {
    /// Of the logits `[vocabulary]`.
    pub fn of(logits: &'l [f32]) -> Distribution<'l> {
        let best = logits.get(greedy(logits) as usize).map_or(0.0, |&logit| finite(logit));
        let mut sums = [0.0; 8];
        let rows = logits.chunks_exact(8);
        for (sum, &logit) in sums.iter_mut().zip(rows.remainder()) {
            *sum += exp(finite(logit) - best);
        }
        for row in rows {
            for (sum, &logit) in sums.iter_mut().zip(row) {
                *sum += exp(finite(logit) - best);
            }
        }
        Distribution { logits, best, log_total: sums.iter().sum::<f64>().ln() }
    }

    /// Natural logarithm of a token's probability, at least -9999; that also for tokens outside the vocabulary.
    pub fn logprob(&self, token: u32) -> f32 {
        let exact = |&logit| finite(logit) - self.best - self.log_total;
        self.logits.get(token as usize).map_or(LEAST, exact).max(LEAST) as f32
    }

    /// The `count` likeliest tokens, likeliest first, the lower id first among equals.
    pub fn top(&self, count: usize) -> Vec<u32> {
        let mut top: Vec<(u32, f64)> = Vec::with_capacity(count.min(self.logits.len()) + 1);
        if count == 0 {
            return Vec::new();
        }
        for (id, &logit) in (0..).zip(self.logits) {
            let logit = finite(logit);
            if top.len() < count || top.last().is_some_and(|&(_, least)| logit > least) {
                let place = top.partition_point(|&(_, other)| other >= logit);
                top.insert(place, (id, logit));
                top.truncate(count);
            }
        }
        top.into_iter().map(|(id, _)| id).collect()
    }
}

/// Natural logarithm of a token's probability, at least -9999.
pub fn logprob(logits: &[f32], token: u32) -> f32 {
    Distribution::of(logits).logprob(token)
}
