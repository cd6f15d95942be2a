//! What a model file says about the model, checked.

mod error;
mod keys;
mod parts;
mod tensors;

use baton_contract::kv;

use crate::checkpoint::{Checkpoint, Tensor, Value};
use crate::model::Spec;
pub use error::Error;
use error::{require, unsupported};
use keys::Keys;
pub use parts::{Architecture, Gate, Heads, Layer, Pairs, Rope};
pub use tensors::{matrix, vector};

/// Names the type and layout of the KV cache, as part of a model's fingerprint: bf16; keys rotated, a head as the first
/// elements of all pairs before the second ones, then mixed by the Hadamard matrix of `weights.rs`.
const KV_LAYOUT: &[u8] = b"bf16 kv v1";

const EMBEDDING: &str = "token_embd.weight";
/// What is missing from the norms' weights: Hugging Face's Gemma models keep them less 1.
const NORM_SHIFT: &str = "baton.norm.shift";

/// The model's hyperparameters. Sizes count values.
#[derive(Clone, Debug)]
pub struct Config {
    /// The family, which says what the others mean.
    pub architecture: Architecture,
    /// One entry a layer.
    pub layers: Vec<Layer>,
    /// Values of a token between two layers.
    pub hidden: usize,
    /// Values of a token inside a feed-forward layer.
    pub feed_forward: usize,
    /// Tokens that the model can choose from.
    pub vocabulary: usize,
    /// Tokens that a sequence may have.
    pub context: usize,
    /// How queries, keys and values are divided.
    pub heads: Heads,
    /// What the layers' `rope` refers to; all rotate equally many values.
    pub ropes: Vec<Rope>,
    /// Which values of a head are rotated together.
    pub pairs: Pairs,
    /// The activation of the feed-forward layers.
    pub gate: Gate,
    /// What the products of queries and keys are multiplied with.
    pub attention_scale: f32,
    /// What the embeddings are multiplied with, on the way in only.
    pub embedding_scale: f32,
    /// What is to be added to every norm's weights.
    pub norm_shift: f32,
    /// What RMS norm adds to the mean square.
    pub epsilon: f32,
}

/// What the model in `file` is, without loading its weights. Reads the whole file for its digest.
pub fn spec(file: &Checkpoint) -> Result<Spec, Error> {
    Ok(Config::read(file)?.spec(file))
}

impl Config {
    /// Reads the configuration of a model that can be computed, or says why it can't be.
    pub fn read(file: &Checkpoint) -> Result<Config, Error> {
        let architecture = Architecture::of(file)?;
        let keys = Keys { file, architecture };
        let layers = keys.size("block_count", 1024)?;
        keys.refuse_variants()?;
        refuse_parts(file, architecture, layers)?;

        let hidden = keys.size("embedding_length", 1 << 16)?;
        let queries = keys.size("attention.head_count", 1024)?;
        let kv = keys.size_or("attention.head_count_kv", 1024, queries)?;
        let head_size = keys.size_or("attention.key_length", 1024, hidden / queries)?;
        let value_size = keys.size_or("attention.value_length", 1024, head_size)?;
        let rope_width = keys.size_or("rope.dimension_count", 1024, head_size)?;
        require("query heads", queries, queries.is_multiple_of(kv), || format!("a multiple of the {kv} KV heads"))?;
        require("a head's values", head_size, head_size > 0 && head_size.is_multiple_of(16), || {
            "a multiple of 16".to_owned()
        })?;
        keys.require("attention.value_length", value_size, value_size == head_size, || head_size.to_string())?;
        keys.require("rope.dimension_count", rope_width, rope_width <= head_size && rope_width % 2 == 0, || {
            format!("an even number up to {head_size}")
        })?;
        let context = keys.size("context_length", 1 << 24)?;
        let embedding = file.tensor(EMBEDDING).ok_or_else(|| Error::MissingTensor { tensor: EMBEDDING.to_owned() })?;
        let vocabulary = embedding.rows();
        require(EMBEDDING, vocabulary, u32::try_from(vocabulary).is_ok(), || "below 2^32 tokens".to_owned())?;

        let feed_forward = keys.size("feed_forward_length", 1 << 20)?;
        keys.require("feed_forward_length", feed_forward, feed_forward.is_multiple_of(16), || {
            "a multiple of 16".to_owned()
        })?;

        let gemma = architecture == Architecture::Gemma3;
        // Gemma 3 27B, the one with 62 layers, scales as if its heads shared the hidden values.
        let scaled_size = if gemma && layers == 62 { hidden / queries } else { head_size };
        let (layers, ropes) = keys.attention(layers, context, rope_width)?;
        Ok(Config {
            architecture,
            layers,
            hidden,
            feed_forward,
            vocabulary,
            context,
            heads: Heads { queries, kv, size: head_size },
            ropes,
            pairs: keys.pairs()?,
            gate: if gemma { Gate::Gelu } else { Gate::Silu },
            attention_scale: keys.positive_or("attention.scale", 1.0 / (scaled_size as f64).sqrt())? as f32,
            embedding_scale: if gemma { (hidden as f32).sqrt() } else { 1.0 },
            norm_shift: match file.get(NORM_SHIFT) {
                None => 0.0,
                Some(_) => match file.float(NORM_SHIFT)? {
                    shift if shift == 0.0 || shift == 1.0 => shift as f32,
                    other => return Err(unsupported(NORM_SHIFT, other, "0 or 1")),
                },
            },
            epsilon: file.float(&keys.key("attention.layer_norm_rms_epsilon"))? as f32,
        })
    }

    /// Values of a head that are rotated, the first ones: an even number.
    pub fn rope_width(&self) -> usize {
        self.ropes.first().map_or(0, |rope| 2 * rope.frequencies.len())
    }

    /// What the model is. Reads the whole file for its digest.
    pub fn spec(&self, file: &Checkpoint) -> Spec {
        let mut fingerprint = blake3::Hasher::new();
        fingerprint.update(&file.digest()).update(KV_LAYOUT);
        // All that we made of the file: the same bytes, understood differently, are another model.
        fingerprint.update(format!("{self:?}").as_bytes());
        Spec {
            name: file.get("general.name").and_then(Value::as_str).unwrap_or(self.architecture.name()).to_owned(),
            kv: kv::Shape { layers: self.layers.len(), width: self.heads.kv_width() },
            vocabulary: self.vocabulary,
            context: self.context,
            fingerprint: *fingerprint.finalize().as_bytes(),
        }
    }

    /// The token embeddings, `[vocabulary, hidden]`.
    pub fn embedding<'a>(&self, file: &'a Checkpoint) -> Result<Tensor<'a>, Error> {
        matrix(file, EMBEDDING, self.hidden, self.vocabulary)
    }
}

/// Refuses weights that we would leave out, and demands those without which the architecture is another one.
fn refuse_parts(file: &Checkpoint, architecture: Architecture, layers: usize) -> Result<(), Error> {
    let gemma = architecture == Architecture::Gemma3;
    let head_norms = gemma || architecture == Architecture::Qwen3;
    let expected = [
        ("attn_q_norm.weight", head_norms),
        ("attn_k_norm.weight", head_norms),
        ("post_attention_norm.weight", gemma),
        ("post_ffw_norm.weight", gemma),
        ("attn_output.bias", false),
        ("ffn_gate.bias", false),
        ("ffn_up.bias", false),
        ("ffn_down.bias", false),
    ];
    for (part, expected) in expected {
        for layer in 0..layers {
            let tensor = format!("blk.{layer}.{part}");
            match (file.tensor(&tensor).is_some(), expected) {
                (true, false) => return Err(unsupported(&tensor, "a tensor", "none of that name")),
                (false, true) => return Err(Error::MissingTensor { tensor }),
                _ => {}
            }
        }
    }
    match file.tensor("output.bias") {
        Some(_) => Err(unsupported("output.bias", "a tensor", "none of that name")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests;
