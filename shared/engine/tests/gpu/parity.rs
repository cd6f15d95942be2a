//! The same answers as the CPU's exact mode, over all tiny models: every architecture, full and quantized weights.

use std::path::{Path, PathBuf};

use baton_contract::kv;
use baton_engine::llama::Llama;
use baton_model::gguf;
use baton_model::model::{Model, SequenceId, Step};

use crate::{KV_BYTES, forward, load, tokens};

/// Of log-probabilities, natural logarithms.
const TOLERANCE: f64 = 0.01;

fn models() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/architectures");
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut models: Vec<PathBuf> = files.filter(|path| path.extension().is_some_and(|end| end == "gguf")).collect();
    models.sort();
    assert!(models.len() >= 9, "too few models: {models:?}");
    models
}

fn open(path: &Path, device: &str) -> (Llama, SequenceId) {
    let mut model = load(gguf::open(path).unwrap(), device, KV_BYTES).unwrap();
    let sequence = model.open();
    (model, sequence)
}

fn bits(logits: &[f32]) -> Vec<u32> {
    logits.iter().map(|logit| logit.to_bits()).collect()
}

fn logprobs(logits: &[f32]) -> impl Iterator<Item = f64> {
    let highest = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let sum: f64 = logits.iter().map(|logit| (f64::from(*logit) - highest).exp()).sum();
    logits.iter().map(move |logit| f64::from(*logit) - highest - sum.ln())
}

/// Mean and greatest difference of all log-probabilities of all rows.
fn difference(found: &[f32], expected: &[f32], vocabulary: usize) -> (f64, f64) {
    assert_eq!(found.len(), expected.len());
    let rows = found.chunks_exact(vocabulary).zip(expected.chunks_exact(vocabulary));
    let errors = rows.flat_map(|(found, expected)| {
        logprobs(found).zip(logprobs(expected)).map(|(found, expected)| (found - expected).abs()).collect::<Vec<_>>()
    });
    let (mut sum, mut greatest) = (0.0, 0.0f64);
    for error in errors {
        assert!(error.is_finite());
        sum += error;
        greatest = greatest.max(error);
    }
    (sum / found.len() as f64, greatest)
}

fn assert_near(what: &str, found: &[f32], expected: &[f32], vocabulary: usize) {
    let (mean, greatest) = difference(found, expected, vocabulary);
    println!("{what}: log-probability error mean {mean:.6}, greatest {greatest:.6}");
    assert!(greatest <= TOLERANCE, "{what}: log-probability error mean {mean}, greatest {greatest}");
}

/// Now and then a rounding to bf16 falls the other way.
fn assert_same_kv(name: &str, found: &kv::Block, expected: &kv::Block) {
    let pairs = || found.layers.iter().flatten().zip(expected.layers.iter().flatten());
    let count = pairs().count();
    let same = pairs().filter(|(found, expected)| found == expected).count();
    println!("{name}: {same} of {count} KV values are the same");
    assert_eq!(count, expected.layers.iter().map(Vec::len).sum::<usize>());
    assert!(same as f64 >= 0.95 * count as f64, "{name}: only {same} of {count} KV values are the same");
}

#[test]
fn every_model_answers_as_on_the_cpu() {
    for path in models() {
        let name = path.file_stem().unwrap().to_str().unwrap();
        let ((mut cpu, on_cpu), (mut gpu, on_gpu)) = (open(&path, "flex"), open(&path, "wgpu"));
        let vocabulary = cpu.spec().vocabulary;
        assert_ne!(cpu.spec().fingerprint, gpu.spec().fingerprint, "their KV differs in a few bits");

        // A prompt of more than one page, longer than Gemma's window, in two steps; then a token.
        let prompt = tokens(100, vocabulary, 1);
        for part in [&prompt[..70], &prompt[70..99], &prompt[99..]] {
            let expected = forward(&mut cpu, on_cpu, part, part.len());
            let found = forward(&mut gpu, on_gpu, part, part.len());
            assert_near(&format!("{name}, {} tokens", part.len()), &found, &expected, vocabulary);
        }
        let block = gpu.export(on_gpu, 0..100).unwrap();
        assert_same_kv(name, &block, &cpu.export(on_cpu, 0..100).unwrap());

        // What was imported is to the bit what was computed, also where it crosses pages and lies in others.
        let copy = gpu.open();
        let [first, second] = [0..30, 30..100].map(|range| gpu.export(on_gpu, range).unwrap());
        gpu.import(copy, &prompt[..30], &first).unwrap();
        gpu.import(copy, &prompt[30..], &second).unwrap();
        assert!(gpu.export(copy, 0..100).unwrap() == block, "{name}: KV changed on its way");
        let [original, copied] = [on_gpu, copy].map(|sequence| forward(&mut gpu, sequence, &[5], 1));
        assert_eq!(bits(&copied), bits(&original), "{name}: the imported KV computes something else");
    }
}

#[test]
fn neighbours_change_no_answer() {
    for name in ["llama3", "gemma3"] {
        let path = models().into_iter().find(|path| path.file_stem().is_some_and(|stem| stem == name)).unwrap();
        let (mut model, _) = open(&path, "wgpu");
        let vocabulary = model.spec().vocabulary;
        let prompts = [tokens(90, vocabulary, 3), tokens(21, vocabulary, 4)];
        let alone = prompts.each_ref().map(|prompt| {
            let sequence = model.open();
            let mut logits = forward(&mut model, sequence, prompt, 1);
            logits.extend(forward(&mut model, sequence, &[7], 1));
            logits
        });
        let sequences = prompts.each_ref().map(|_| model.open());
        let mut together = [Vec::new(), Vec::new()];
        for tokens in [prompts.each_ref().map(Vec::as_slice), [&[7], &[7]]] {
            let step = |i: usize| Step { sequence: sequences[i], tokens: tokens[i], logits: 1 };
            let found = model.forward(&[step(0), step(1)]).unwrap();
            together.iter_mut().zip(found).for_each(|(together, found)| together.extend(found));
        }
        for (found, expected) in together.iter().zip(&alone) {
            assert_near(&format!("{name}, of two"), found, expected, vocabulary);
        }
    }
}
