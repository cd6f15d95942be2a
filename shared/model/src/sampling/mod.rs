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
mod numbers;
mod penalties;
mod schema;

use baton_contract::sampling::Sampling;

pub use constraint::{Error, Grammars};
pub use draw::{greedy, pick};
pub use logprobs::{Distribution, logprob};
pub use numbers::all_finite;
pub(crate) use numbers::exp;

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
