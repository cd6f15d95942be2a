//! One answer in the making: which token comes next, what text it makes final, and when the answer ends.
//!
//! The pipeline's decode and the one-process reference both generate through this, so that they can't differ.

use std::sync::Arc;

use baton_contract::{outcome::FinishReason, sampling::Sampling};

use crate::{sampling, source::Vocabulary, text::TextStream};

/// What one token brought.
#[derive(Clone, Debug, PartialEq)]
pub struct Emitted {
    /// The token's place in the answer, from 0.
    pub index: u32,
    pub token: u32,
    /// Text that became final with it.
    pub text: String,
    /// Set with the last token.
    pub finish: Option<FinishReason>,
}

pub struct Generation {
    vocabulary: Arc<Vocabulary>,
    stream: TextStream,
    sampling: Sampling,
    prompt_tokens: usize,
    max_tokens: usize,
    /// Tokens accepted so far.
    accepted: usize,
}

impl Generation {
    /// An answer of at most `max_tokens` to a prompt of `prompt_tokens`.
    pub fn new(
        vocabulary: Arc<Vocabulary>,
        sampling: Sampling,
        stop: &[String],
        prompt_tokens: usize,
        max_tokens: usize,
    ) -> Self {
        let stream = TextStream::new(vocabulary.clone(), stop);
        Self { vocabulary, stream, sampling, prompt_tokens, max_tokens, accepted: 0 }
    }

    /// Chooses the next token from the logits after the last one.
    pub fn sample(&self, logits: &[f32]) -> u32 {
        first_token(logits, &self.sampling, self.prompt_tokens + self.accepted)
    }

    /// Appends a token to the answer.
    pub fn accept(&mut self, token: u32) -> Emitted {
        let index = self.accepted as u32;
        self.accepted += 1;
        let mut text = String::new();
        let mut finish = None;
        if self.vocabulary.is_end(token) {
            text = self.stream.finish();
            finish = Some(FinishReason::Stop);
        } else {
            let delta = self.stream.push(token);
            text.push_str(&delta.text);
            if delta.stopped {
                finish = Some(FinishReason::Stop);
            } else if self.accepted >= self.max_tokens {
                text.push_str(&self.stream.finish());
                finish = Some(FinishReason::Length);
            }
        }
        Emitted { index, token, text, finish }
    }

    /// Tokens the answer may have.
    pub fn max_tokens(&self) -> usize {
        self.max_tokens
    }
}

/// Chooses the token at `position` (from 0 in prompt and answer together) from the logits before it.
pub fn first_token(logits: &[f32], sampling: &Sampling, position: usize) -> u32 {
    sampling::pick(logits, sampling, position as u64).token
}
