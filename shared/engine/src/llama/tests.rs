//! The kernels against Burn's stock operators, in whole models.

use std::path::Path;

use baton_model::gguf;
use baton_model::model::{Model, Step};
use burn::tensor::Device;
use half::bf16;

use super::Llama;
use super::operators::Operators;
use crate::kernels::Mode;

#[path = "../../../model/tests/it/gguf/writer.rs"]
mod writer;

/// Logits of a long and a short sequence, which run together, the long one in two parts; and the long one's KV.
fn computed(path: &Path, operators: Operators) -> (Vec<f32>, Vec<f32>) {
    let file = gguf::open(path).unwrap();
    let mut model = Llama::load_with(file, Device::flex(), operators, 1 << 20).unwrap();
    let vocabulary = model.spec().vocabulary as u32;
    let tokens: Vec<u32> = (0..100).map(|i| (i * i + 37) % vocabulary).collect();
    let [long, short] = [(); 2].map(|()| model.open());
    let mut logits = model.forward(&[Step { sequence: long, tokens: &tokens[..30], logits: 30 }]).unwrap();
    logits.extend(
        model
            .forward(&[
                Step { sequence: short, tokens: &tokens[50..65], logits: 15 },
                Step { sequence: long, tokens: &tokens[30..], logits: 70 },
            ])
            .unwrap(),
    );
    let block = model.export(long, 0..tokens.len()).unwrap();
    (logits.concat(), block.layers.concat().into_iter().map(|bits| bf16::from_bits(bits).to_f32()).collect())
}

/// The root of the mean square of the differences, as a part of that of `expected`.
fn difference(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let squares = |values: &mut dyn Iterator<Item = f32>| values.map(|x| f64::from(x).powi(2)).sum::<f64>();
    let differences = squares(&mut found.iter().zip(expected).map(|(a, b)| a - b));
    (differences / squares(&mut expected.iter().copied())).sqrt()
}

fn compare(name: &str, path: &Path) {
    let (logits, kv) = computed(path, Operators::Stock);
    // In the exact mode a rounding of the cache to bf16 falls the other way now and then; the fast mode rounds more.
    for (mode, limit) in [(Mode::Exact, 0.002), (Mode::Fast, 0.1)] {
        let (found_logits, found_kv) = computed(path, Operators::Kernels(mode));
        let differences = (difference(&found_logits, &logits), difference(&found_kv, &kv));
        assert!(differences.0 < limit && differences.1 < limit, "{name}, {mode:?}: {differences:?}");
    }
}

/// Biases (qwen2), norms of heads (qwen3, gemma3), norms of what layers add, windows and GELU (gemma3), many types.
#[test]
fn architectures_compute_the_same_with_stock_operators() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/architectures");
    let models =
        ["llama3", "llama-linear", "llama-q4_k", "llama-q6_k", "qwen2", "qwen2-q3_k", "qwen3", "qwen3-q5_0", "gemma3"];
    for name in models {
        compare(name, &folder.join(format!("{name}.gguf")));
    }
}

#[test]
fn shapes_compute_the_same_with_stock_operators() {
    let tiny = writer::Tiny::new(5);
    let shapes = [
        tiny,
        writer::Tiny { rope: 8, window: Some(20), quantized: true, ..tiny },
        writer::Tiny { queries: 6, head: 48, rope: 48, tied: false, ..tiny },
        writer::Tiny { queries: 8, kv: 1, head: 32, rope: 16, quantized: true, window: Some(1), ..tiny },
    ];
    for shape in shapes {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), shape.file()).unwrap();
        compare(&format!("{shape:?}"), file.path());
    }
}
