//! The draw itself: from logits and a random number to a token.

use std::cmp::Ordering;

use baton_contract::sampling::Sampling;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use super::numbers::{exp, finite};

/// How many of the likeliest tokens are ranked at first when looking for a nucleus; eight times more at each further try.
const FIRST_RANKED: usize = 128;

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

/// Chooses the token that stands at `position` of its sequence, after temperature, `top_k`, `top_p` and `min_p`. `logits`
/// is a row of `[vocabulary]`; NaN counts as the smallest number, infinities as the largest and the smallest. An empty row
/// yields token 0.
pub fn pick(logits: &[f32], sampling: &Sampling, position: u64) -> u32 {
    let best = greedy(logits);
    // Written so that a NaN is greedy too.
    let sampled = sampling.temperature > 0.0 && sampling.top_k != 1;
    if sampled { sample(logits, best, sampling, position) } else { best }
}

/// Draws from what the four, applied in this order, leave of the distribution.
fn sample(logits: &[f32], best: u32, sampling: &Sampling, position: u64) -> u32 {
    let Some(&top) = logits.get(best as usize) else { return best };
    let temperature = f64::from(sampling.temperature);
    let weights: Vec<f64> = logits.iter().map(|&logit| exp((finite(logit) - finite(top)) / temperature)).collect();
    let uniform = uniform(sampling.seed, position);
    // The likeliest token's weight is 1, so that it always stays.
    let min_p = f64::from(sampling.min_p).min(1.0);

    let count = weights.len();
    let k = if sampling.top_k == 0 { count } else { count.min(sampling.top_k as usize) };
    let top_p = f64::from(sampling.top_p);
    if k < count {
        let ranked = ranked(logits, k);
        let kept = nucleus(&ranked, &weights, top_p, total(&ranked, &weights)).unwrap_or(&ranked);
        draw(likely(kept, &weights, min_p), &weights, uniform)
    } else if top_p < 1.0 {
        let all: f64 = weights.iter().sum();
        let mut tried = FIRST_RANKED;
        loop {
            let ranked = ranked(logits, tried.min(count));
            match nucleus(&ranked, &weights, top_p, all) {
                Some(kept) => return draw(likely(kept, &weights, min_p), &weights, uniform),
                None if tried >= count => return draw(likely(&ranked, &weights, min_p), &weights, uniform),
                None => tried *= 8,
            }
        }
    } else {
        let ids: Vec<u32> = (0..).zip(&weights).filter(|(_, weight)| **weight >= min_p).map(|(id, _)| id).collect();
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

/// The head of `ranked` whose weights are at least `min_p`. Never empty.
fn likely<'r>(ranked: &'r [u32], weights: &[f64], min_p: f64) -> &'r [u32] {
    let kept = ranked.iter().take_while(|&&id| weights[id as usize] >= min_p).count();
    &ranked[..kept.max(1)]
}

/// The token at the share `uniform` of the way through the weights of `ids`.
fn draw(ids: &[u32], weights: &[f64], uniform: f64) -> u32 {
    let target = uniform * total(ids, weights);
    let mut sum = 0.0;
    let Some(&first) = ids.first() else { return 0 };
    let mut chosen = first;
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
