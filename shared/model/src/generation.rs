//! One answer in the making: which token comes next, what text it makes final, and when the answer ends.
//!
//! Prefill, decode and the one-process reference all generate through this, so that they can't differ.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use baton_contract::job::Job;
use baton_contract::outcome::{Alternative, Code, Failure, FinishReason, TokenLogprob};
use baton_contract::sampling::{MAX_TOP_LOGPROBS, Sampling};

use crate::sampling::{self, Distribution, Grammars, Sampler};
use crate::text::TextStream;
use crate::vocabulary::Vocabulary;

/// Log-probabilities that a job's answers may tell together, and the bytes that they may take in its result, which is one
/// message of the broker's.
pub const MAX_LOGPROBS: u64 = 50_000;
const MAX_LOGPROB_BYTES: usize = 6 << 20;

/// Why an answer can't begin or go on. It would end the same way anywhere else, but for [`Error::may_pass_elsewhere`].
#[derive(Clone, Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say what the variants mean")]
pub enum Error {
    #[error(transparent)]
    Constraint(#[from] sampling::Error),
    #[error("logit_bias: token id {token} is outside the vocabulary of {vocabulary}")]
    Bias { token: u32, vocabulary: usize },
    #[error(
        "top_logprobs: expected at most {MAX_LOGPROBS} log-probabilities in all answers, found {found}; lower it, n or \
         max_tokens"
    )]
    TooManyLogprobs { found: u64 },
    #[error(
        "top_logprobs: the answers' log-probabilities take more than {MAX_LOGPROB_BYTES} bytes; lower it, n or max_tokens"
    )]
    LogprobsTooLong,
    #[error(
        "expected finite logits for token {index} of the answer, found {count} of {vocabulary} that are infinite or no \
         numbers; check the model's file (baton verify) and the device"
    )]
    NonFinite { index: usize, count: usize, vocabulary: usize },
}

impl Error {
    /// What the request's sender is told.
    pub fn failure(&self) -> Failure {
        let code = if self.may_pass_elsewhere() { Code::NonFinite } else { Code::InvalidValue };
        Failure::new(code, self.to_string())
    }

    /// Whether the fault is this worker's, and not the request's.
    pub fn may_pass_elsewhere(&self) -> bool {
        matches!(self, Self::NonFinite { .. })
    }
}

/// What one token brought.
#[derive(Clone, Debug, PartialEq)]
pub struct Emitted {
    /// The token's place in the answer, from 0.
    pub index: u32,
    /// Its id.
    pub token: u32,
    /// Text that became final with it.
    pub text: String,
    /// If the job asks for them.
    pub logprobs: Option<TokenLogprob>,
    /// Of how many of the answer's tokens the text is final, so that their log-probabilities are: a stop text may take back
    /// what follows.
    pub settled: u32,
    /// Bytes of the last of those tokens that the text has, if a stop text cut it.
    pub cut: Option<usize>,
    /// Set with the last token.
    pub finish: Option<FinishReason>,
}

/// How much of an answer's log-probabilities belongs to its text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settled {
    tokens: usize,
    cut: Option<usize>,
}

impl Emitted {
    /// As of this token.
    pub fn settled(&self) -> Settled {
        Settled { tokens: self.settled as usize, cut: self.cut }
    }
}

impl Settled {
    /// Takes the log-probabilities away of tokens that the answer's text does not have. The last may be one of which it has a
    /// part: then it is told as far as that goes.
    pub fn keep(self, logprobs: &mut Vec<TokenLogprob>) {
        logprobs.truncate(self.tokens);
        let Some((last, cut)) = logprobs.last_mut().zip(self.cut) else { return };
        let chosen = &mut last.chosen;
        // One that is half a character is left whole.
        if chosen.token.as_bytes() == chosen.bytes && chosen.token.is_char_boundary(cut) {
            chosen.token.truncate(cut);
            chosen.bytes.truncate(cut);
        }
    }
}

/// What the answers of one model have in common. Clones are cheap and share what was prepared.
#[derive(Clone)]
pub struct Generator {
    vocabulary: Arc<Vocabulary>,
    grammars: Arc<Grammars>,
}

impl Generator {
    /// Generates with a model's vocabulary.
    pub fn new(vocabulary: Arc<Vocabulary>) -> Generator {
        Generator { vocabulary, grammars: Arc::default() }
    }

    /// The vocabulary.
    pub fn vocabulary(&self) -> &Arc<Vocabulary> {
        &self.vocabulary
    }

    /// Begins each of a job's answers. Compiles its constraint, so it may take some tens of milliseconds.
    pub fn start_all(&self, job: &Job) -> Result<Vec<Generation>, Error> {
        (0..job.samples).map(|choice| self.start(job, choice)).collect()
    }

    /// Begins the answer of a job that stands at this place among its answers.
    pub fn start(&self, job: &Job, choice: u32) -> Result<Generation, Error> {
        let vocabulary = self.vocabulary.spec().vocabulary;
        if let Some(&(token, _)) = job.sampling.logit_bias.iter().find(|(token, _)| *token as usize >= vocabulary) {
            return Err(Error::Bias { token, vocabulary });
        }
        let found = job.sampling.logprobs_of(job.max_tokens).saturating_mul(u64::from(job.samples));
        if found > MAX_LOGPROBS {
            return Err(Error::TooManyLogprobs { found });
        }
        let compile = |constraint| self.grammars.compile(&self.vocabulary, constraint);
        let constraint = job.sampling.constraint.as_ref().map(compile).transpose()?;
        let Sampling { logprobs, .. } = job.sampling;
        Ok(Generation {
            vocabulary: self.vocabulary.clone(),
            stream: TextStream::new(self.vocabulary.clone(), &job.stop),
            sampler: Sampler::new(job.sampling.of_choice(choice), &job.prompt, constraint),
            top_logprobs: logprobs.map(|count| count.min(MAX_TOP_LOGPROBS) as usize),
            logprob_bytes: 0,
            // The first of several answers stands in the result twice.
            max_logprob_bytes: MAX_LOGPROB_BYTES / if job.samples > 1 { job.samples as usize + 1 } else { 1 },
            max_tokens: job.max_tokens as usize,
            accepted: 0,
            settled: 0,
            open: VecDeque::new(),
        })
    }
}

/// One answer while it is generated.
pub struct Generation {
    vocabulary: Arc<Vocabulary>,
    stream: TextStream,
    sampler: Sampler,
    /// How many alternatives to a token are told, if any log-probabilities are.
    top_logprobs: Option<usize>,
    /// What those told so far take in the result, and what they may.
    logprob_bytes: usize,
    max_logprob_bytes: usize,
    max_tokens: usize,
    /// Tokens accepted so far.
    accepted: usize,
    /// Those of them whose text is final, and where the text of the others begins and ends.
    settled: usize,
    open: VecDeque<Range<usize>>,
}

impl Generation {
    /// Chooses the next token from the logits `[vocabulary]` after the last one, and appends it to the answer.
    pub fn next(&mut self, logits: &[f32]) -> Result<Emitted, Error> {
        if !sampling::all_finite(logits) {
            let count = logits.iter().filter(|logit| !logit.is_finite()).count();
            return Err(Error::NonFinite { index: self.accepted, count, vocabulary: logits.len() });
        }
        let token = self.sampler.pick(logits)?;
        let logprobs = self.top_logprobs.map(|count| {
            let distribution = Distribution::of(logits);
            let tell = |token| self.alternative(token, distribution.logprob(token));
            TokenLogprob { chosen: tell(token), top_logprobs: distribution.top(count).into_iter().map(tell).collect() }
        });
        self.accept(token, logprobs)
    }

    /// Appends a token to the answer that was chosen before.
    pub fn accept(&mut self, token: u32, logprobs: Option<TokenLogprob>) -> Result<Emitted, Error> {
        self.logprob_bytes += logprobs.as_ref().map_or(0, TokenLogprob::json_bytes);
        if self.logprob_bytes > self.max_logprob_bytes {
            return Err(Error::LogprobsTooLong);
        }
        self.sampler.accept(token)?;
        let index = self.accepted as u32;
        self.accepted += 1;
        let mut text = String::new();
        let (mut finish, mut cut) = (None, None);
        let start = self.stream.made();
        if self.vocabulary.is_end(token) {
            text = self.stream.finish();
            self.open.push_back(start..start);
            finish = Some(FinishReason::Stop);
        } else {
            let delta = self.stream.push(token);
            text.push_str(&delta.text);
            self.open.push_back(start..self.stream.made());
            self.settle();
            if delta.stopped {
                cut = self.cut();
                finish = Some(FinishReason::Stop);
            } else if self.accepted >= self.max_tokens {
                text.push_str(&self.stream.finish());
                finish = Some(FinishReason::Length);
            }
        }
        if finish.is_some() && !self.open.is_empty() {
            // Nothing takes them back any more.
            self.settled = self.accepted;
            self.open.clear();
        }
        Ok(Emitted { index, token, text, logprobs, settled: self.settled as u32, cut, finish })
    }

    /// Notes the tokens whose text is final now.
    fn settle(&mut self) {
        let released = self.stream.released();
        while self.open.pop_front_if(|text| text.start < released && text.end <= released).is_some() {
            self.settled += 1;
        }
    }

    /// Notes the tokens that the text has after a stop text cut it; how much of the last, if not all.
    fn cut(&mut self) -> Option<usize> {
        let released = self.stream.released();
        let mut cut = None;
        while let Some(text) = self.open.pop_front_if(|text| text.start < released) {
            self.settled += 1;
            cut = (text.end > released).then_some(released - text.start);
        }
        self.open.clear();
        cut
    }

    /// Tokens the answer may have.
    pub fn max_tokens(&self) -> usize {
        self.max_tokens
    }

    fn alternative(&self, id: u32, logprob: f32) -> Alternative {
        let bytes = self.vocabulary.token_bytes(id).to_vec();
        Alternative { token: String::from_utf8_lossy(&bytes).into_owned(), id, logprob, bytes }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logprob(text: &[u8]) -> TokenLogprob {
        let token = String::from_utf8_lossy(text).into_owned();
        let chosen = Alternative { token, id: 7, logprob: -0.5, bytes: text.to_vec() };
        TokenLogprob { chosen, top_logprobs: Vec::new() }
    }

    #[test]
    fn a_token_that_a_stop_text_begins_in_is_told_as_far_as_the_text_goes() {
        let told = |text: &[u8], cut| {
            let mut logprobs = vec![logprob(b"a"), logprob(text), logprob(b"gone")];
            Settled { tokens: 2, cut: Some(cut) }.keep(&mut logprobs);
            let [_, last] = &logprobs[..] else { panic!("{logprobs:?}") };
            (last.chosen.token.clone(), last.chosen.bytes.len(), last.chosen.id)
        };
        assert_eq!(told(b"bc", 1), ("b".into(), 1, 7));
        // Its first byte ends a character of the tokens before it.
        assert_eq!(told(b"\xa9bc", 2), ("\u{fffd}bc".into(), 3, 7));
    }
}
