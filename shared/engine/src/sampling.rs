//! From logits to the next token.
//!
//! The choice must come out the same on every processor, so nothing here depends on the platform's mathematics library
//! or on the order in which something happens to be stored: sums are `f64` in a fixed order, and the exponential is our
//! own. Only the logarithm in a reported log-probability is the platform's.

use std::cmp::Ordering;

use baton_contract::sampling::Sampling;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// How many of the likeliest tokens are ranked at first when looking for a nucleus; eight times more at each further try.
const FIRST_RANKED: usize = 128;

/// A chosen token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    pub token: u32,
    /// Natural logarithm of the token's probability under the model's own distribution: temperature 1, nothing cut off.
    pub logprob: f32,
}

/// Chooses the token that stands at `position` of its sequence. `logits` is a row of `[vocabulary]`; NaN counts as the
/// smallest number, infinities as the largest and the smallest. An empty row yields token 0.
pub fn pick(logits: &[f32], sampling: &Sampling, position: u64) -> Choice {
    let best = greedy(logits);
    // Written so that a NaN is greedy too.
    let sampled = sampling.temperature > 0.0 && sampling.top_k != 1;
    let token = if sampled { sample(logits, best, sampling, position) } else { best };
    Choice { token, logprob: logprob(logits, token) }
}

/// The most likely token, the lowest id of equals.
pub fn greedy(logits: &[f32]) -> u32 {
    let mut best = (0, f32::NEG_INFINITY);
    for (id, &logit) in (0..).zip(logits) {
        // A NaN is not greater than anything, so it is never the best.
        if logit > best.1 {
            best = (id, logit);
        }
    }
    best.0
}

/// Natural logarithm of a token's probability.
pub fn logprob(logits: &[f32], token: u32) -> f32 {
    let Some(&logit) = logits.get(token as usize) else { return f32::NEG_INFINITY };
    let best = finite(logits[greedy(logits) as usize]);
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
    (finite(logit) - best - sums.iter().sum::<f64>().ln()) as f32
}

/// Draws from what temperature, `top_k` and `top_p`, applied in this order, leave of the distribution.
fn sample(logits: &[f32], best: u32, sampling: &Sampling, position: u64) -> u32 {
    let Some(&top) = logits.get(best as usize) else { return best };
    let temperature = f64::from(sampling.temperature);
    let weights: Vec<f64> = logits.iter().map(|&logit| exp((finite(logit) - finite(top)) / temperature)).collect();
    let uniform = uniform(sampling.seed, position);

    let count = weights.len();
    let k = if sampling.top_k == 0 { count } else { count.min(sampling.top_k as usize) };
    let top_p = f64::from(sampling.top_p);
    if k < count {
        let ranked = ranked(logits, k);
        let kept = nucleus(&ranked, &weights, top_p, total(&ranked, &weights)).unwrap_or(&ranked);
        draw(kept, &weights, uniform)
    } else if top_p < 1.0 {
        let all: f64 = weights.iter().sum();
        let mut tried = FIRST_RANKED;
        loop {
            let ranked = ranked(logits, tried.min(count));
            match nucleus(&ranked, &weights, top_p, all) {
                Some(kept) => return draw(kept, &weights, uniform),
                None if tried >= count => return draw(&ranked, &weights, uniform),
                None => tried *= 8,
            }
        }
    } else {
        let ids: Vec<u32> = (0..).take(count).collect();
        draw(&ids, &weights, uniform)
    }
}

/// The `count` likeliest tokens, likeliest first, the lower id first among equals.
fn ranked(logits: &[f32], count: usize) -> Vec<u32> {
    let order = |a: &u32, b: &u32| {
        let (left, right) = (finite(logits[*a as usize]), finite(logits[*b as usize]));
        right.partial_cmp(&left).unwrap_or(Ordering::Equal).then(a.cmp(b))
    };
    let mut ids: Vec<u32> = (0..).take(logits.len()).collect();
    if count < ids.len() {
        ids.select_nth_unstable_by(count, order);
        ids.truncate(count);
    }
    ids.sort_unstable_by(order);
    ids
}

/// The shortest head of `ranked` whose weight reaches the share `top_p` of `all`, if there is one. Never empty.
fn nucleus<'r>(ranked: &'r [u32], weights: &[f64], top_p: f64, all: f64) -> Option<&'r [u32]> {
    let mut sum = 0.0;
    for (index, &id) in ranked.iter().enumerate() {
        sum += weights[id as usize];
        if sum >= top_p * all {
            return Some(&ranked[..=index]);
        }
    }
    None
}

/// The token at the share `uniform` of the way through the weights of `ids`.
fn draw(ids: &[u32], weights: &[f64], uniform: f64) -> u32 {
    let target = uniform * total(ids, weights);
    let mut sum = 0.0;
    let mut chosen = ids[0];
    for &id in ids {
        let weight = weights[id as usize];
        // Rounding may leave the sum short of the target: then the last token that has any weight is it.
        if weight > 0.0 {
            chosen = id;
        }
        sum += weight;
        if sum > target {
            break;
        }
    }
    chosen
}

fn total(ids: &[u32], weights: &[f64]) -> f64 {
    ids.iter().map(|&id| weights[id as usize]).sum()
}

/// A number in [0, 1) that depends on seed and position alone.
fn uniform(seed: u64, position: u64) -> f64 {
    let mut generator = ChaCha8Rng::seed_from_u64(seed);
    generator.set_stream(position);
    (generator.next_u64() >> 11) as f64 / (1u64 << 53) as f64
}

fn finite(logit: f32) -> f64 {
    f64::from(if logit.is_nan() { f32::MIN } else { logit.clamp(f32::MIN, f32::MAX) })
}

/// e to the power of a number that is not positive. Only additions and multiplications, which every processor rounds
/// alike: x = n ln 2 + r with |r| <= ln 2 / 2, then the Taylor series of r to the 13th power (below 1 ulp of error).
pub(crate) fn exp(x: f64) -> f64 {
    const LN2_HIGH: f64 = 6.931_471_803_691_238e-1;
    const LN2_LOW: f64 = 1.908_214_929_270_587_7e-10;
    // Adding this leaves the nearest integer in the low bits of the mantissa.
    const ROUNDER: f64 = 6_755_399_441_055_744.0;
    // 1 / 13!, 1 / 12!, ... 1 / 0!
    const SERIES: [f64; 14] = [
        1.0 / 6_227_020_800.0,
        1.0 / 479_001_600.0,
        1.0 / 39_916_800.0,
        1.0 / 3_628_800.0,
        1.0 / 362_880.0,
        1.0 / 40_320.0,
        1.0 / 5_040.0,
        1.0 / 720.0,
        1.0 / 120.0,
        1.0 / 24.0,
        1.0 / 6.0,
        0.5,
        1.0,
        1.0,
    ];
    let bounded = x.max(-708.0);
    let rounded = bounded * std::f64::consts::LOG2_E + ROUNDER;
    let n = rounded - ROUNDER;
    let r = bounded - n * LN2_HIGH - n * LN2_LOW;
    let power = SERIES.iter().fold(0.0, |sum, coefficient| sum * r + coefficient);
    let scale = f64::from_bits(rounded.to_bits().wrapping_add(1023) << 52);
    if x < -708.0 { 0.0 } else { power * scale }
}
