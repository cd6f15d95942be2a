//! The GPU path, on whatever device `wgpu` finds: `.ci/run` gives it Mesa's software Vulkan driver. A parity with the CPU's
//! exact mode, and what failures of the device leave.

mod failure;
mod parity;
#[path = "../../../model/tests/it/gguf/writer.rs"]
mod writer;

use baton_engine::llama::{self, Llama};
use baton_model::checkpoint::Checkpoint;
use baton_model::model::{Compute, Model, Options, SequenceId, Step};

/// Little enough for any driver's largest buffer.
const KV_BYTES: u64 = 8 << 20;

fn load(file: Checkpoint, device: &str, kv_bytes: u64) -> Result<Llama, llama::Error> {
    Llama::load(file, &Options { device: device.to_owned(), compute: Compute::Exact, kv_bytes })
}

/// Tokens without a pattern.
fn tokens(count: usize, vocabulary: usize, seed: usize) -> Vec<u32> {
    (0..count).map(|i| ((i + seed) * (i + 37) * 7919 % vocabulary) as u32).collect()
}

/// The logits of the last `logits` of the tokens.
fn forward(model: &mut Llama, sequence: SequenceId, tokens: &[u32], logits: usize) -> Vec<f32> {
    model.forward(&[Step { sequence, tokens, logits }]).unwrap().remove(0)
}
