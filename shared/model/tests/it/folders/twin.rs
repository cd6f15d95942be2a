//! A GGUF file of the weights of a folder.

use baton_model::checkpoint::Checkpoint;
use baton_model::{gguf, hugging_face};
use safetensors::tensor::Dtype;

use super::folder::{FEED_FORWARD, Folder, HEAD, HEADS, HIDDEN, KV_HEADS, Tensor, Written};
use super::writer::{BF16, F16, F32, Writer};

/// Hugging Face's names and GGUF's, of a layer's parts. The one after attention is Gemma's only under the name here.
const PARTS: [(&str, &str); 14] = [
    ("input_layernorm", "attn_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("post_attention_layernorm", "ffn_norm"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
    ("post_attention_layernorm", "post_attention_norm"),
    ("pre_feedforward_layernorm", "ffn_norm"),
    ("post_feedforward_layernorm", "post_ffw_norm"),
];

pub fn open(written: &Written) -> Checkpoint {
    hugging_face::open(written.path()).unwrap_or_else(|error| panic!("{error}"))
}

/// The same model as GGUF. Llama files have the values that rotate together side by side, Gemma files whole norms.
pub fn twin(folder: &Folder, architecture: &str) -> Checkpoint {
    let mut to = Writer::new(1);
    let key = |name: &str| format!("{architecture}.{name}");
    to.string("general.architecture", architecture);
    to.number(&key("block_count"), 2);
    to.number(&key("context_length"), 512);
    to.number(&key("embedding_length"), HIDDEN);
    to.number(&key("feed_forward_length"), FEED_FORWARD);
    to.number(&key("attention.head_count"), HEADS);
    to.number(&key("attention.head_count_kv"), KV_HEADS);
    to.number(&key("attention.key_length"), HEAD);
    to.number(&key("attention.value_length"), HEAD);
    to.number(&key("rope.dimension_count"), HEAD);
    to.float(&key("rope.freq_base"), 10_000.0);
    to.float(&key("attention.layer_norm_rms_epsilon"), 1e-6);
    let gemma = architecture == "gemma3";
    if gemma {
        to.number(&key("attention.sliding_window"), 8);
        to.number(&key("attention.sliding_window_pattern"), 2);
    }
    let mut put = |from: &str, name: &str| {
        let Some(Tensor { dtype, shape, bytes }) = folder.tensors.get(from) else { return };
        let dims: Vec<usize> = shape.iter().rev().copied().collect();
        let kind = match dtype {
            Dtype::F32 => F32,
            Dtype::F16 => F16,
            _ => BF16,
        };
        let rotates = architecture == "llama" && (name.ends_with("attn_q.weight") || name.ends_with("attn_k.weight"));
        let bytes = match (rotates, gemma && name.ends_with("norm.weight")) {
            (true, _) => side_by_side(bytes, shape[0]),
            (_, true) => one_more(bytes),
            _ => bytes.clone(),
        };
        to.tensor(name, &dims, kind, &bytes);
    };
    put("model.embed_tokens.weight", "token_embd.weight");
    put("model.norm.weight", "output_norm.weight");
    for layer in 0..2 {
        let skipped = if gemma { ("post_attention_layernorm", "ffn_norm") } else { PARTS[11] };
        for (from, name) in PARTS.into_iter().filter(|part| *part != skipped) {
            put(&format!("model.layers.{layer}.{from}.weight"), &format!("blk.{layer}.{name}.weight"));
        }
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), to.finish()).unwrap();
    gguf::open(file.path()).unwrap()
}

/// Reorders the rows of each head: both halves' first rows, both halves' second rows, and so on.
pub fn side_by_side(bytes: &[u8], rows: usize) -> Vec<u8> {
    let row = bytes.len() / rows;
    let from = |to: usize| to / HEAD * HEAD + to % HEAD / 2 + to % 2 * HEAD / 2;
    (0..rows).flat_map(|to| &bytes[from(to) * row..(from(to) + 1) * row]).copied().collect()
}

/// The same numbers in f32 plus 1.
pub fn one_more(bytes: &[u8]) -> Vec<u8> {
    let (values, _) = bytes.as_chunks();
    values.iter().flat_map(|value| (f32::from_le_bytes(*value) + 1.0).to_le_bytes()).collect()
}
