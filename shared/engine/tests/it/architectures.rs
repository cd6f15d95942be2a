//! Each architecture and tokenizer against another engine's answers on tiny models (`../architectures/make.py` wrote both).
//! Their weights are random, so that nothing but the right computation gives the answers.

use std::path::{Path, PathBuf};

use baton_engine::llama::Llama;
use baton_model::gguf;
use baton_model::model::{Compute, Model, Options, Step};
use baton_model::source::{Source, vocabulary};
use serde::Deserialize;

#[derive(Deserialize)]
struct Case {
    model: String,
    id: String,
    prompt: String,
    prompt_tokens: Vec<u32>,
    /// One for each token of the prompt but the first.
    #[serde(default)]
    steps: Vec<Reference>,
}

#[derive(Deserialize)]
struct Reference {
    token: u32,
    logprob: f64,
    /// The likeliest tokens, descending.
    top: Vec<(u32, f64)>,
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/architectures")
}

fn cases(model: &str) -> Vec<Case> {
    let text = std::fs::read_to_string(folder().join("answers.jsonl")).unwrap();
    let cases = text.lines().map(|line| serde_json::from_str::<Case>(line).unwrap());
    cases.filter(|case| case.model == model).collect()
}

fn logprobs(logits: &[f32]) -> Vec<f64> {
    let highest = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let sum: f64 = logits.iter().map(|logit| (f64::from(*logit) - highest).exp()).sum();
    logits.iter().map(|logit| f64::from(*logit) - highest - sum.ln()).collect()
}

/// Computes a case whole, and once more token by token, which has to see the same through the KV cache.
fn agrees(name: &str) {
    let file = gguf::open(&folder().join(format!("{name}.gguf"))).unwrap();
    let mut model = Llama::load(file, &Options { compute: Compute::Exact, ..Options::default() }).unwrap();
    let case = cases(name).into_iter().find(|case| !case.steps.is_empty()).unwrap();
    let tokens = &case.prompt_tokens[..case.steps.len()];
    let (whole, split) = (model.open(), model.open());
    let logits = model.forward(&[Step { sequence: whole, tokens, logits: tokens.len() }]).unwrap().remove(0);
    let single = tokens
        .iter()
        .flat_map(|token| model.forward(&[Step { sequence: split, tokens: &[*token], logits: 1 }]).unwrap().remove(0));
    assert_eq!(single.collect::<Vec<_>>(), logits, "{name}: the same bits, however split");

    let (mut sum, mut count) = (0.0, 0.0);
    for (row, step) in logits.chunks_exact(logits.len() / tokens.len()).zip(&case.steps) {
        let found = logprobs(row);
        for (token, logprob) in step.top.iter().copied().chain([(step.token, step.logprob)]) {
            sum += (found[token as usize] - logprob).abs();
            count += 1.0;
        }
    }
    let mean = sum / count;
    assert!(count > 150.0 && mean <= 0.01, "{name}: mean log-probability error {mean} over {count} values");
}

#[test]
fn llama_with_llama_3_rope_scaling_agrees() {
    agrees("llama3");
}

#[test]
fn llama_with_linear_rope_scaling_agrees() {
    agrees("llama-linear");
}

#[test]
fn qwen2_agrees() {
    agrees("qwen2");
}

#[test]
fn qwen3_agrees() {
    agrees("qwen3");
}

#[test]
fn gemma3_agrees_beyond_its_window() {
    agrees("gemma3");
}

#[test]
fn q4_k_agrees() {
    agrees("llama-q4_k");
}

#[test]
fn q6_k_and_q5_k_agree() {
    agrees("llama-q6_k");
}

#[test]
fn q2_k_and_q3_k_agree() {
    agrees("qwen2-q3_k");
}

#[test]
fn q5_0_q5_1_and_q4_1_agree() {
    agrees("qwen3-q5_0");
}

/// Spaces, capitals, digits, scripts, bytes without a piece, texts of special tokens.
#[test]
fn tokens_equal_the_reference() {
    for model in ["llama3", "llama-linear", "qwen2", "gemma3"] {
        let vocabulary = vocabulary(&Source::Checkpoint(folder().join(format!("{model}.gguf")))).unwrap();
        let cases = cases(model);
        assert_eq!(cases.len(), 12);
        for Case { id, prompt, prompt_tokens, .. } in cases {
            let tokens = vocabulary.encode(&prompt, id.starts_with('!')).unwrap();
            assert_eq!(tokens, prompt_tokens, "{model}, {id}: {prompt:?}");
        }
    }
}
