//! Another engine's answers, teacher-forced, on real models: those that `BATON_TEST_MODEL` and `BATON_TEST_GEMMA` name, or
//! where `baton setup` puts them.

use std::path::{Path, PathBuf};

use baton_engine::llama::Llama;
use baton_model::config;
use baton_model::gguf;
use baton_model::model::{Compute, Model, Options, Step};
use serde::Deserialize;

/// Where the reference's best two log-probabilities differ by more, the best token must be the same.
const CLEAR: f64 = 0.05;

#[derive(Deserialize)]
struct Case {
    id: String,
    prompt_tokens: Vec<u32>,
    completion_tokens: Vec<u32>,
    /// Of the tokens that end a character: the reference tells nothing about the bytes before.
    steps: Vec<Reference>,
}

#[derive(Deserialize)]
struct Reference {
    token: u32,
    logprob: f64,
    top: Vec<(u32, f64)>,
}

/// The file that `variable` names, or that of Baton's own models which `baton setup` with `arguments` brings.
fn model_path(variable: &str, file: &str, arguments: &str) -> PathBuf {
    let home = || match std::env::var_os("BATON_HOME") {
        Some(home) => PathBuf::from(home),
        None => Path::new(&std::env::var_os("HOME").expect("HOME is set")).join(".local/share/baton"),
    };
    let path = std::env::var_os(variable).map_or_else(|| home().join("models").join(file), PathBuf::from);
    assert!(path.exists(), "{} is missing: run `baton setup{arguments}`, or set {variable}", path.display());
    path
}

/// Log-probability of `token`, and the likeliest token.
fn judge(logits: &[f32], token: u32) -> (f64, u32) {
    let best = (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b])).unwrap();
    let highest = f64::from(logits[best]);
    let sum: f64 = logits.iter().map(|logit| (f64::from(*logit) - highest).exp()).sum();
    (f64::from(logits[token as usize]) - highest - sum.ln(), best as u32)
}

#[test]
fn smollm2_agrees_with_another_engine() {
    agrees(&model_path("BATON_TEST_MODEL", "SmolLM2-135M-Instruct.Q4_1.gguf", ""), "smollm2-raw.jsonl");
}

/// One of the prompts is longer than the sliding window.
#[test]
fn gemma3_agrees_with_another_engine() {
    let path = model_path("BATON_TEST_GEMMA", "gemma-3-270m.Q4_K_M.gguf", " --model gemma3-270m");
    agrees(&path, "gemma3-raw.jsonl");
}

fn agrees(model: &Path, reference: &str) {
    let file = gguf::open(model).unwrap();
    let spec = config::spec(&file).unwrap();
    let mut model = Llama::load(file, &Options { compute: Compute::Exact, ..Options::default() }).unwrap();
    assert_eq!((model.spec().kv, model.spec().vocabulary), (spec.kv, spec.vocabulary));

    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/tests/reference").join(reference);
    let (mut count, mut sum) = (0, 0.0);
    for line in std::fs::read_to_string(path).unwrap().lines() {
        let case: Case = serde_json::from_str(line).unwrap();
        let sequence = model.open();
        let mut next = case.prompt_tokens;
        let mut tokens = case.completion_tokens.into_iter();
        for step in &case.steps {
            next.extend(tokens.by_ref().take_while(|token| *token != step.token));
            let logits = model.forward(&[Step { sequence, tokens: &next, logits: 1 }]).unwrap().remove(0);
            let (logprob, best) = judge(&logits, step.token);
            sum += (logprob - step.logprob).abs();
            count += 1;
            if step.top[0].1 - step.top[1].1 > CLEAR {
                assert_eq!(best, step.top[0].0, "{} after {:?}", case.id, &next);
            }
            next = vec![step.token];
        }
        model.close(sequence);
    }
    let mean = sum / f64::from(count);
    assert!(count > 150 && mean < 0.01, "mean error {mean} over {count} steps");
}
