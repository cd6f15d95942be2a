//! Penalties and bias: logits that change by what was said before, or because the request wants it.

use std::collections::BTreeMap;

use baton_contract::sampling::Sampling;

use super::numbers::finite;

/// The penalties and the bias of one answer, and the tokens that they concern.
pub(super) struct Penalties {
    repetition: f64,
    presence: f64,
    frequency: f64,
    bias: Vec<(u32, f32)>,
    /// How often the answer has each token; the prompt's tokens too, with 0 and only if they matter.
    counts: BTreeMap<u32, u32>,
}

impl Penalties {
    pub(super) fn new(sampling: &Sampling, prompt: &[u32]) -> Penalties {
        let repetition = f64::from(sampling.repetition_penalty);
        let seen = if repetition == 1.0 { &[] } else { prompt };
        Penalties {
            repetition,
            presence: f64::from(sampling.presence_penalty),
            frequency: f64::from(sampling.frequency_penalty),
            bias: sampling.logit_bias.clone(),
            counts: seen.iter().map(|&token| (token, 0)).collect(),
        }
    }

    /// Whether no logit would change, whatever the answer.
    pub(super) fn are_off(&self) -> bool {
        self.bias.is_empty() && !self.counts_tokens()
    }

    pub(super) fn accept(&mut self, token: u32) {
        if self.counts_tokens() {
            *self.counts.entry(token).or_insert(0) += 1;
        }
    }

    /// Repetition as in the CTRL paper (Keskar et al. 2019, section 4.1) with Hugging Face's treatment of negative logits;
    /// presence and frequency as OpenAI's interface documents them. The bias comes last, so that no penalty scales it.
    pub(super) fn apply(&self, logits: &mut [f32]) {
        for (&token, &count) in &self.counts {
            if let Some(logit) = logits.get_mut(token as usize) {
                let value = finite(*logit);
                let scaled = if value > 0.0 { value / self.repetition } else { value * self.repetition };
                let present = f64::from(u32::from(count > 0));
                *logit = (scaled - self.frequency * f64::from(count) - self.presence * present) as f32;
            }
        }
        for &(token, bias) in &self.bias {
            if let Some(logit) = logits.get_mut(token as usize) {
                *logit += bias;
            }
        }
    }

    fn counts_tokens(&self) -> bool {
        self.repetition != 1.0 || self.presence != 0.0 || self.frequency != 0.0
    }
}
