//! One answer in the making: which token comes next, what text it makes final, and when the answer ends.
//!
//! The pipeline's decode and the one-process reference both generate through this, so that they can't differ.

use std::sync::Arc;

use baton_contract::{job::Answer, outcome::FinishReason, sampling::Sampling};

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
    answer: Answer,
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
        Self { vocabulary, stream, sampling, prompt_tokens, max_tokens, answer: Answer::default() }
    }

    /// Chooses the next token from the logits after the last one.
    pub fn sample(&self, logits: &[f32]) -> u32 {
        first_token(logits, &self.sampling, self.prompt_tokens + self.answer.tokens.len())
    }

    /// Appends a token to the answer.
    pub fn accept(&mut self, token: u32) -> Emitted {
        let index = self.answer.tokens.len() as u32;
        self.answer.tokens.push(token);
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
            } else if self.answer.tokens.len() >= self.max_tokens {
                text.push_str(&self.stream.finish());
                finish = Some(FinishReason::Length);
            }
        }
        self.answer.text.push_str(&text);
        Emitted { index, token, text, finish }
    }

    /// Tokens the answer may have.
    pub fn max_tokens(&self) -> usize {
        self.max_tokens
    }

    pub fn into_answer(self) -> Answer {
        self.answer
    }
}

/// Chooses the token at `position` (from 0 in prompt and answer together) from the logits before it.
pub fn first_token(logits: &[f32], sampling: &Sampling, position: usize) -> u32 {
    sampling::pick(logits, sampling, position as u64).token
}
