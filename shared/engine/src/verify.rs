//! Replays another engine's answers and measures the differences.

use std::io::BufRead;

use serde::{Deserialize, Serialize};

use crate::model::{self, Model, Step};
use crate::sampling;
use crate::source::Vocabulary;

/// Where the reference's best two log-probabilities differ by more than this, a correct engine must pick the same token.
const CLEAR: f64 = 0.05;

/// One answer of the reference engine: a line of a reference file.
#[derive(Clone, Debug, Deserialize)]
pub struct Case {
    pub id: String,
    #[serde(flatten)]
    pub prompt: Prompt,
    pub prompt_tokens: Vec<u32>,
    pub completion_tokens: Vec<u32>,
    /// What is known of the completion tokens, in their order. The reference tells nothing of a token that ends inside a
    /// character, so there may be fewer steps than tokens.
    pub steps: Vec<ReferenceStep>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub enum Prompt {
    /// Messages, and what the chat template made of them.
    Chat {
        messages: Vec<serde_json::Value>,
        rendered: String,
    },
    Raw {
        prompt: String,
    },
}

/// A token that the reference engine generated.
#[derive(Clone, Debug, Deserialize)]
pub struct ReferenceStep {
    pub token: u32,
    /// Natural logarithm of its probability.
    pub logprob: f64,
    /// The likeliest tokens with their log-probabilities, likeliest first.
    pub top: Vec<(u32, f64)>,
}

/// How an engine's answers compare with the reference's.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Report {
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
    pub max_abs_logprob_error: f64,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the reference file can't be read: {0}")]
    Read(#[from] std::io::Error),
    #[error("line {line} of the reference file is no case: {source}")]
    Line { line: usize, source: serde_json::Error },
    #[error("the reference holds no steps; give a file with at least one answer")]
    Empty,
    #[error("case {id}: the steps are no subsequence of the completion tokens; write the reference file again")]
    Steps { id: String },
    #[error("case {id}: {source}")]
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
/// every step is compared on the same history, and one difference doesn't hide what follows.
pub fn run(
    vocabulary: &Vocabulary,
    model: &mut dyn Model,
    cases: impl Iterator<Item = Result<Case, Error>>,
) -> Result<Report, Error> {
    let mut report = Report::default();
    let (mut agreed, mut error_sum) = (0, 0.0);
    for case in cases {
        let case = case?;
        report.cases += 1;
        let (rendered_alike, encoded_alike) = compare_prompt(vocabulary, &case);
        report.template_mismatches += usize::from(!rendered_alike);
        report.tokenizer_mismatches += usize::from(!encoded_alike);
        let passes = passes(&case).ok_or_else(|| Error::Steps { id: case.id.clone() })?;
        replay(model, &case, &passes, |step, logits| {
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
    if report.steps == 0 {
        return Err(Error::Empty);
    }
    report.top1_agreement = agreed as f64 / report.steps as f64;
    report.mean_abs_logprob_error = error_sum / report.steps as f64;
    Ok(report)
}

/// Whether the case's messages render, and its text encodes, as the reference's did.
fn compare_prompt(vocabulary: &Vocabulary, case: &Case) -> (bool, bool) {
    let encodes = |tokens: Option<Vec<u32>>| tokens.as_ref() == Some(&case.prompt_tokens);
    match &case.prompt {
        Prompt::Raw { prompt } => (true, encodes(vocabulary.encode(prompt, false).ok())),
        Prompt::Chat { messages, rendered } => {
            let rendered_alike = vocabulary.render(messages).is_ok_and(|text| text == *rendered);
            let mut encoded_alike = encodes(vocabulary.encode(rendered, true).ok());
            if rendered_alike {
                encoded_alike &= encodes(vocabulary.encode_chat(messages).ok());
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
