//! Replays another engine's answers and measures the differences; and those between two ways of computing.

use std::io::BufRead;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::model::{self, Model, SequenceId, Step};
use crate::sampling;
use crate::vocabulary::Vocabulary;

/// Where the reference's best two log-probabilities differ by more than this, a correct engine must pick the same token.
const CLEAR: f64 = 0.05;

/// Tokens whose logits two models give at a time: it bounds their memory, `[64, vocabulary]` for each of the two.
const PIECE: usize = 64;

/// One answer of the reference engine: a line of a reference file.
#[derive(Clone, Debug, Deserialize)]
pub struct Case {
    /// Names it in reports.
    pub id: String,
    /// What is to be continued.
    #[serde(flatten)]
    pub prompt: Prompt,
    /// The prompt's token ids.
    pub prompt_tokens: Vec<u32>,
    /// The reference's answer, as token ids.
    pub completion_tokens: Vec<u32>,
    /// What is known of the completion tokens, in their order. The reference tells nothing of a token that ends inside a
    /// character, so there may be fewer steps than tokens.
    pub steps: Vec<ReferenceStep>,
}

impl Case {
    /// All of the case's tokens: the prompt and what the reference answered.
    pub fn tokens(&self) -> Vec<u32> {
        [&self.prompt_tokens[..], &self.completion_tokens].concat()
    }
}

/// What the reference was asked.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub enum Prompt {
    /// Messages, and what the chat template made of them.
    Chat {
        /// As the chat template takes them.
        messages: Vec<serde_json::Value>,
        /// What the template makes of them.
        rendered: String,
    },
    /// Text to be continued.
    Raw {
        /// The text.
        prompt: String,
    },
}

/// A token that the reference engine generated.
#[derive(Clone, Debug, Deserialize)]
pub struct ReferenceStep {
    /// The token that the reference chose.
    pub token: u32,
    /// Natural logarithm of its probability.
    pub logprob: f64,
    /// The likeliest tokens with their log-probabilities, likeliest first.
    pub top: Vec<(u32, f64)>,
}

/// How an engine's answers compare with the reference's.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Report {
    /// Cases that were compared.
    pub cases: usize,
    /// Generated tokens compared.
    pub steps: usize,
    /// Cases whose messages were rendered to another text.
    pub template_mismatches: usize,
    /// Cases whose prompt became other tokens.
    pub tokenizer_mismatches: usize,
    /// Share of the steps at which the likeliest token is the reference's, 0 to 1.
    pub top1_agreement: f64,
    /// Steps at which the reference's best two log-probabilities are clearly apart (by more than 0.05).
    pub clear_steps: usize,
    /// Clear steps at which the likeliest token is not the reference's.
    pub clear_mismatches: usize,
    /// Mean and greatest difference of the log-probability of the reference's token, natural logarithms.
    pub mean_abs_logprob_error: f64,
    /// The largest difference of a log-probability.
    pub max_abs_logprob_error: f64,
    /// Steps at which the model's logits are infinite or no numbers; they are compared with nothing.
    pub non_finite: usize,
}

/// How far one way of computing is from the exact one, over the positions of some texts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Divergence {
    /// Positions compared: every token of the texts.
    pub positions: usize,
    /// Mean and greatest Kullback-Leibler divergence of the next token's distribution from the exact one, in nats.
    pub mean_kl: f64,
    /// The largest of a single position.
    pub max_kl: f64,
    /// Share of the positions at which both have the same likeliest token, 0 to 1.
    pub same_top: f64,
}

/// How far a sequence with another KV cache is from the one with the exact cache, over the tokens that follow in a text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Continuation {
    /// From the exact cache's distributions.
    #[serde(flatten)]
    pub divergence: Divergence,
    /// Perplexity of the text's tokens that follow: e to the mean of the negative natural log-probabilities.
    pub exact_perplexity: f64,
    /// Of the text, with this cache.
    pub perplexity: f64,
}

/// Why a reference could not be replayed.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say what the variants mean")]
pub enum Error {
    #[error("the reference file can't be read")]
    Read(#[from] std::io::Error),
    #[error("line {line} of the reference file is no case")]
    Line { line: usize, source: serde_json::Error },
    #[error("the reference holds no steps; give a file with at least one answer")]
    Empty,
    #[error("case {id}: the steps are no subsequence of the completion tokens; write the reference file again")]
    Steps { id: String },
    #[error("case {id} can't be computed")]
    Model { id: String, source: model::Error },
}

/// The cases of a reference file: a JSON object a line, empty lines skipped.
pub fn cases(reader: impl BufRead) -> impl Iterator<Item = Result<Case, Error>> {
    (1..).zip(reader.lines()).filter_map(|(line, text)| match text {
        Err(error) => Some(Err(error.into())),
        Ok(text) if text.trim().is_empty() => None,
        Ok(text) => Some(serde_json::from_str(&text).map_err(|source| Error::Line { line, source })),
    })
}

/// Replays the cases, each on a sequence of its own. The reference's tokens are fed, not the model's choices, so that
/// every step is compared on the same history, and one difference doesn't hide what follows. Messages are rendered at a time,
/// in milliseconds since 1970.
pub fn run(
    vocabulary: &Vocabulary,
    model: &mut dyn Model,
    at_ms: u64,
    cases: impl Iterator<Item = Result<Case, Error>>,
) -> Result<Report, Error> {
    let mut report = Report::default();
    let (mut agreed, mut error_sum) = (0, 0.0);
    for case in cases {
        let case = case?;
        report.cases += 1;
        let (rendered_alike, encoded_alike) = compare_prompt(vocabulary, at_ms, &case);
        report.template_mismatches += usize::from(!rendered_alike);
        report.tokenizer_mismatches += usize::from(!encoded_alike);
        let passes = passes(&case).ok_or_else(|| Error::Steps { id: case.id.clone() })?;
        replay(model, &case, &passes, |step, logits| {
            if !sampling::all_finite(logits) {
                report.non_finite += 1;
                return;
            }
            let top = sampling::greedy(logits);
            let error = (f64::from(sampling::logprob(logits, step.token)) - step.logprob).abs();
            let clear = matches!(step.top[..], [(_, best), (_, second), ..] if best - second > CLEAR);
            let best = step.top.first().map_or(step.token, |&(token, _)| token);
            report.steps += 1;
            agreed += usize::from(top == step.token);
            report.clear_steps += usize::from(clear);
            report.clear_mismatches += usize::from(clear && top != best);
            error_sum += error;
            report.max_abs_logprob_error = report.max_abs_logprob_error.max(error);
        })
        .map_err(|source| Error::Model { id: case.id.clone(), source })?;
    }
    if report.steps + report.non_finite == 0 {
        return Err(Error::Empty);
    }
    let steps = report.steps.max(1) as f64;
    report.top1_agreement = agreed as f64 / steps;
    report.mean_abs_logprob_error = error_sum / steps;
    Ok(report)
}

/// Whether the case's messages render, and its text encodes, as the reference's did.
fn compare_prompt(vocabulary: &Vocabulary, at_ms: u64, case: &Case) -> (bool, bool) {
    let encodes = |tokens: Option<Vec<u32>>| tokens.as_ref() == Some(&case.prompt_tokens);
    match &case.prompt {
        Prompt::Raw { prompt } => (true, encodes(vocabulary.encode(prompt, false).ok())),
        Prompt::Chat { messages, rendered } => {
            let rendered_alike = vocabulary.render(messages, at_ms).is_ok_and(|text| text == *rendered);
            let mut encoded_alike = encodes(vocabulary.encode(rendered, true).ok());
            if rendered_alike {
                encoded_alike &= encodes(vocabulary.encode_chat(messages, at_ms).ok());
            }
            (rendered_alike, encoded_alike)
        }
    }
}

/// The tokens to feed before each step: the prompt, and then the completion, cut before the token of each step.
fn passes(case: &Case) -> Option<Vec<Vec<u32>>> {
    let mut next = case.prompt_tokens.clone();
    let mut completion = case.completion_tokens.iter();
    let pass = |step: &ReferenceStep| {
        let skipped = completion.as_slice();
        let token = completion.position(|&token| token == step.token)?;
        next.extend(&skipped[..token]);
        Some(std::mem::replace(&mut next, vec![step.token]))
    };
    case.steps.iter().map(pass).collect()
}

/// Runs the model over the case's tokens and shows each step's logits.
fn replay(
    model: &mut dyn Model,
    case: &Case,
    passes: &[Vec<u32>],
    mut compare: impl FnMut(&ReferenceStep, &[f32]),
) -> Result<(), model::Error> {
    let sequence = model.open();
    let mut replayed = || {
        for (step, tokens) in case.steps.iter().zip(passes) {
            let logits = model.forward(&[Step { sequence, tokens, logits: 1 }])?;
            compare(step, &logits[0]);
        }
        Ok(())
    };
    let result = replayed();
    model.close(sequence);
    result
}

/// Feeds the same texts to two loads of one model and compares what they expect after every token.
pub fn divergence(
    exact: &mut dyn Model,
    other: &mut dyn Model,
    texts: &[Vec<u32>],
) -> Result<Divergence, model::Error> {
    let mut tally = Tally::default();
    for text in texts {
        let sequences = (exact.open(), other.open());
        let mut feed = || {
            for tokens in text.chunks(PIECE) {
                let logits = tokens.len();
                let reference = exact.forward(&[Step { sequence: sequences.0, tokens, logits }])?;
                let compared = other.forward(&[Step { sequence: sequences.1, tokens, logits }])?;
                tally.add(exact.spec().vocabulary, &reference[0], &compared[0])?;
            }
            Ok(())
        };
        let fed = feed();
        exact.close(sequences.0);
        other.close(sequences.1);
        fed?;
    }
    Ok(tally.divergence())
}

/// Feeds a text's next tokens to two sequences of one model that stand at the same place, one with the exact KV cache and one
/// with another, and compares what they expect after every token but the last, which is only expected. Both sequences
/// have grown by as many tokens then.
pub fn continuation(
    model: &mut dyn Model,
    exact: SequenceId,
    other: SequenceId,
    next: &[u32],
) -> Result<Continuation, model::Error> {
    let vocabulary = model.spec().vocabulary;
    let mut tally = Tally::default();
    let (mut exact_sum, mut other_sum) = (0.0, 0.0);
    let fed = &next[..next.len().saturating_sub(1)];
    for (tokens, expected) in fed.chunks(PIECE).zip(next.get(1..).unwrap_or_default().chunks(PIECE)) {
        let step = |sequence| Step { sequence, tokens, logits: tokens.len() };
        let logits = model.forward(&[step(exact), step(other)])?;
        tally.add(vocabulary, &logits[0], &logits[1])?;
        for (sum, logits) in [(&mut exact_sum, &logits[0]), (&mut other_sum, &logits[1])] {
            let rows = logits.chunks(vocabulary).zip(expected);
            *sum -= rows.map(|(row, &token)| f64::from(sampling::logprob(row, token))).sum::<f64>();
        }
    }
    let perplexity = |sum: f64| (sum / (fed.len().max(1)) as f64).exp();
    Ok(Continuation {
        divergence: tally.divergence(),
        exact_perplexity: perplexity(exact_sum),
        perplexity: perplexity(other_sum),
    })
}

/// What [`Divergence`] is summed up from.
#[derive(Default)]
struct Tally {
    positions: usize,
    kl_sum: f64,
    max_kl: f64,
    same: usize,
}

impl Tally {
    /// Adds the logits of some positions, `[positions, vocabulary]` each.
    fn add(&mut self, vocabulary: usize, exact: &[f32], other: &[f32]) -> Result<(), model::Error> {
        if ![exact, other].into_iter().all(sampling::all_finite) {
            return Err(model::Error::NonFiniteLogits);
        }
        let rows = exact.par_chunks(vocabulary).zip(other.par_chunks(vocabulary));
        let rows: Vec<_> = rows.map(|(p, q)| (kl(p, q), sampling::greedy(p) == sampling::greedy(q))).collect();
        self.positions += rows.len();
        for (kl, alike) in rows {
            self.kl_sum += kl;
            self.max_kl = self.max_kl.max(kl);
            self.same += usize::from(alike);
        }
        Ok(())
    }

    fn divergence(self) -> Divergence {
        let Tally { positions, kl_sum, max_kl, same } = self;
        let mean = |sum: f64| if positions > 0 { sum / positions as f64 } else { 0.0 };
        Divergence { positions, mean_kl: mean(kl_sum), max_kl, same_top: mean(same as f64) }
    }
}

/// The Kullback-Leibler divergence, in nats, of the distribution of the logits `q` from that of `p`:
/// the sum of `p (ln p - ln q)`.
fn kl(p: &[f32], q: &[f32]) -> f64 {
    // The greatest logit goes first, so that no exponential overflows.
    let log_total = |logits: &[f32]| {
        let best = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        best + logits.iter().map(|&logit| (f64::from(logit) - best).exp()).sum::<f64>().ln()
    };
    let (p_total, q_total) = (log_total(p), log_total(q));
    let part = |(&p, &q): (&f32, &f32)| {
        let (p, q) = (f64::from(p) - p_total, f64::from(q) - q_total);
        // What p holds impossible counts for nothing, whatever q holds of it.
        if p == f64::NEG_INFINITY { 0.0 } else { p.exp() * (p - q) }
    };
    let sum: f64 = p.iter().zip(q).map(part).sum();
    // Rounding may leave a little less than nothing; a sum that is no number stays one.
    if sum < 0.0 { 0.0 } else { sum }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::{AnswerTokens, Options, Sim};

    #[test]
    fn the_divergence_is_that_of_the_probabilities() {
        // 1/4 and 3/4 against halves, whatever is added to all logits.
        let (p, q) = ([1000.0, 1000.0 + 3f32.ln(), f32::NEG_INFINITY], [-7.0, -7.0, -7.0 - 40.0]);
        let expected = 0.25 * 0.5f64.ln() + 0.75 * 1.5f64.ln();
        assert!((kl(&p, &q) - expected).abs() < 1e-4, "{}", kl(&p, &q));
        assert_eq!(kl(&p, &p), 0.0);
        assert!(kl(&p, &[f32::NAN; 3]).is_nan());
    }

    #[test]
    fn models_are_compared_at_every_position() {
        let sim = |answer_tokens| {
            let options = Options { layers: 1, kv_width: 2, answer_tokens, ..Options::default() };
            Sim::new(options, 1 << 20).unwrap()
        };
        let texts = [vec![b'?'.into(); 2 * PIECE + 1], vec![b'a'.into()]];
        let found = divergence(&mut sim(None), &mut sim(None), &texts).unwrap();
        assert_eq!(found, Divergence { positions: 2 * PIECE + 2, mean_kl: 0.0, max_kl: 0.0, same_top: 1.0 });

        // This one wants to end its answer after the first token.
        let mut hasty = sim(Some(AnswerTokens { min: 1, max: 1 }));
        let found = divergence(&mut sim(None), &mut hasty, &[b"?a".map(u32::from).to_vec()]).unwrap();
        assert_eq!((found.positions, found.same_top), (2, 0.5));
        assert!(found.max_kl > 1.0 && (found.mean_kl - found.max_kl / 2.0).abs() < 1e-9, "{found:?}");
        assert_eq!(hasty.memory().free_pages, hasty.memory().pages);
    }

    #[test]
    fn sequences_are_compared_over_the_tokens_that_follow() {
        let options = Options { layers: 1, kv_width: 2, ..Options::default() };
        let mut model = Sim::new(options, 1 << 20).unwrap();
        let [exact, same, other] = [b"what", b"what", b"when"].map(|history| opened(&mut model, history));
        let next = vec![b'a'.into(); PIECE + 3];
        let found = continuation(&mut model, exact, same, &next).unwrap();
        assert_eq!(found.divergence, Divergence { positions: PIECE + 2, mean_kl: 0.0, max_kl: 0.0, same_top: 1.0 });
        assert_eq!(found.perplexity, found.exact_perplexity);
        assert_eq!([exact, same].map(|sequence| model.len(sequence).unwrap()), [4 + PIECE + 2; 2]);

        // Other histories expect other tokens; the perplexity is that of the token that follows.
        let exact = opened(&mut model, b"what");
        let found = continuation(&mut model, exact, other, &next[..3]).unwrap();
        assert_eq!(found.divergence.positions, 2);
        assert!(found.divergence.mean_kl > 0.0, "{found:?}");
        for (history, found) in [(b"whataa", found.exact_perplexity), (b"whenaa", found.perplexity)] {
            let probe = model.open();
            let tokens = history.map(u32::from);
            let logits = model.forward(&[Step { sequence: probe, tokens: &tokens, logits: 2 }]).unwrap().remove(0);
            let rows = logits.chunks(model.spec().vocabulary);
            let probability = rows.map(|row| f64::from(row[usize::from(b'a')]).exp() / total(row)).product::<f64>();
            assert!((found * probability.sqrt() - 1.0).abs() < 1e-4, "{found}, {probability}");
        }
    }

    fn opened(model: &mut Sim, history: &[u8; 4]) -> SequenceId {
        let sequence = model.open();
        let tokens = history.map(u32::from);
        model.forward(&[Step { sequence, tokens: &tokens, logits: 0 }]).unwrap();
        sequence
    }

    fn total(logits: &[f32]) -> f64 {
        logits.iter().map(|&logit| f64::from(logit).exp()).sum()
    }
}
