//! Transformers of the llama family on Burn (Touvron et al., "LLaMA", 2023): RMS norm before each part, rotary positions,
//! grouped queries, gated feed-forward, tied or separate output head; with what Qwen 2 and 3 and Gemma 3 do otherwise.
//!
//! The KV cache is bf16 (round to nearest even; attention reads the rounded values, also of the tokens of its own pass) in
//! pages that the open sequences share out among them. On `flex` a sequence's logits and KV are the same to the bit whatever
//! the batch and however its tokens are split into passes, because every output of every operation is.

mod arena;
mod cache;
mod error;
mod failure;
mod forward;
mod model;
mod operators;
mod ops;
mod proof;
mod recovery;
mod stock;
mod stock_cache;
#[cfg(test)]
mod tests;
mod weights;

pub use error::Error;
pub use model::Llama;
