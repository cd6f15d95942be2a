//! From logits to the next token.
//!
//! The order: repetition, presence and frequency penalty, logit bias, constraint, temperature, `top_k`, `top_p`, `min_p`,
//! and the draw by (seed, position). Greedy choices honour what stands before the temperature.
//!
//! `min_p` comes last, as in Hugging Face's transformers, and compares with the tempered probabilities. vLLM has it before
//! `top_k` and `top_p`, which differs only in what `top_p` counts as the whole; llama.cpp applies the temperature after all
//! of them, so that the same `min_p` cuts off less there when the temperature is below 1, and more above.
//!
//! The choice must come out the same on every processor, so nothing here depends on the platform's mathematics library
//! or on the order in which something happens to be stored: sums are `f64` in a fixed order, and the exponential is our
//! own. Only the logarithm in a reported log-probability is the platform's.

mod bounds;
mod constraint;
mod draw;
mod logprobs;
mod penalties;
mod schema;

use baton_contract::sampling::Sampling;

pub use constraint::{Error, Grammars};
pub use draw::{greedy, pick};
pub use logprobs::{Distribution, logprob};

use constraint::Progress;
use penalties::Penalties;

/// Chooses the tokens of one answer.
pub struct Sampler {
    sampling: Sampling,
    penalties: Penalties,
    constraint: Option<Progress>,
    /// Place of the next token in prompt and answer.
    position: u64,
    /// The logits as the penalties and the constraint leave them; kept for its memory.
    adjusted: Vec<f32>,
}

impl Sampler {
    /// For an answer to `prompt`. `constraint` stands at the answer's beginning.
    pub fn new(sampling: Sampling, prompt: &[u32], constraint: Option<Progress>) -> Sampler {
        let penalties = Penalties::new(&sampling, prompt);
        Sampler { sampling, penalties, constraint, position: prompt.len() as u64, adjusted: Vec::new() }
    }

    /// Chooses the next token from the logits `[vocabulary]` before it.
    pub fn pick(&mut self, logits: &[f32]) -> Result<u32, Error> {
        if self.penalties.are_off() && self.constraint.is_none() {
            return Ok(pick(logits, &self.sampling, self.position));
        }
        self.adjusted.clear();
        self.adjusted.extend_from_slice(logits);
        self.penalties.apply(&mut self.adjusted);
        if let Some(constraint) = &mut self.constraint {
            constraint.mask(&mut self.adjusted)?;
        }
        Ok(pick(&self.adjusted, &self.sampling, self.position))
    }

    /// Goes on by a token of the answer, whoever chose it.
    pub fn accept(&mut self, token: u32) -> Result<(), Error> {
        self.position += 1;
        self.penalties.accept(token);
        match &mut self.constraint {
            Some(constraint) => constraint.accept(token),
            None => Ok(()),
        }
    }
}

/// Whether all are numbers, and none infinite. Without a way out of the loop, which compiles to vectors: a small part of
/// what a draw costs.
pub fn all_finite(logits: &[f32]) -> bool {
    const EXPONENT: u32 = 0x7f80_0000;
    !logits.iter().fold(false, |found, logit| found | (logit.to_bits() & EXPONENT == EXPONENT))
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
