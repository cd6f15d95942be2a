//! What a model file says about the model, checked.

mod keys;

use baton_contract::kv;

use super::Error;
use crate::checkpoint::{Checkpoint, Tensor, Value};
use crate::kernels::Heads;
use crate::model::Spec;
use keys::Keys;

/// Names the type and layout of the KV cache, as part of a model's fingerprint: bf16; keys rotated, a head as the first
/// elements of all pairs before the second ones, then mixed by the Hadamard matrix of `weights.rs`.
const KV_LAYOUT: &[u8] = b"bf16 kv v1";

const EMBEDDING: &str = "token_embd.weight";
/// What is missing from the norms' weights: Hugging Face's Gemma models keep them less 1.
const NORM_SHIFT: &str = "baton.norm.shift";

/// What to say of models that are none of [`Architecture`].
pub(super) const ARCHITECTURES: &str = "llama (mistral too), qwen2, qwen3, gemma3";

/// The families of models; how they differ is in the other fields of [`Config`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Architecture {
    Llama,
    Qwen2,
    Qwen3,
    Gemma3,
}

/// The model's hyperparameters. Sizes count values.
#[derive(Clone, Debug)]
pub(super) struct Config {
    pub(super) architecture: Architecture,
    /// One entry a layer.
    pub(super) layers: Vec<Layer>,
    pub(super) hidden: usize,
    pub(super) feed_forward: usize,
    pub(super) vocabulary: usize,
    pub(super) context: usize,
    pub(super) heads: Heads,
    /// What the layers' `rope` refers to; all rotate equally many values.
    pub(super) ropes: Vec<Rope>,
    pub(super) pairs: Pairs,
    pub(super) gate: Gate,
    /// What the products of queries and keys are multiplied with.
    pub(super) attention_scale: f32,
    /// What the embeddings are multiplied with, on the way in only.
    pub(super) embedding_scale: f32,
    /// What is to be added to every norm's weights.
    pub(super) norm_shift: f32,
    /// What RMS norm adds to the mean square.
    pub(super) epsilon: f32,
}

/// What sets a layer apart from the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layer {
    /// How many positions attention sees at most: the token's own and those right before it. Without, all.
    pub(super) window: Option<usize>,
    /// Index into [`Config::ropes`].
    pub(super) rope: usize,
}

/// Rotary position embedding (Su et al., "RoFormer", 2021): at position `p` the rotated pair `i` of a head turns by
/// `p * frequencies[i]` radians. What lies beyond the pairs stays.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Rope {
    pub(super) frequencies: Vec<f64>,
}

/// Which values of a head in the file rotate together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pairs {
    /// `2i` and `2i + 1`.
    Adjacent,
    /// `i` and `i + width / 2`, where `width` is the number of rotated values.
    Halves,
}

/// What the gates of the feed-forward part go through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Gate {
    /// `x / (1 + e^-x)`.
    Silu,
    /// The tanh approximation of GELU: `x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3)))`.
    Gelu,
}

/// What the model in `file` is, without loading its weights. Reads the whole file for its digest.
pub fn spec(file: &Checkpoint) -> Result<Spec, Error> {
    Ok(Config::read(file)?.spec(file))
}

impl Architecture {
    fn of(file: &Checkpoint) -> Result<Architecture, Error> {
        match file.string("general.architecture")? {
            "llama" => Ok(Architecture::Llama),
            "qwen2" => Ok(Architecture::Qwen2),
            "qwen3" => Ok(Architecture::Qwen3),
            "gemma3" => Ok(Architecture::Gemma3),
            other => Err(Error::Architecture { found: other.to_owned() }),
        }
    }

    /// The name in model files, which all keys of the architecture begin with.
    pub(super) fn name(self) -> &'static str {
        match self {
            Architecture::Llama => "llama",
            Architecture::Qwen2 => "qwen2",
            Architecture::Qwen3 => "qwen3",
            Architecture::Gemma3 => "gemma3",
        }
    }
}

impl Config {
    pub(super) fn read(file: &Checkpoint) -> Result<Config, Error> {
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
    pub(super) fn rope_width(&self) -> usize {
        self.ropes.first().map_or(0, |rope| 2 * rope.frequencies.len())
    }

    pub(super) fn spec(&self, file: &Checkpoint) -> Spec {
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
    pub(super) fn embedding<'a>(&self, file: &'a Checkpoint) -> Result<Tensor<'a>, Error> {
        matrix(file, EMBEDDING, self.hidden, self.vocabulary)
    }
}

/// A weight matrix of `outputs` rows with `inputs` values each.
pub(super) fn matrix<'a>(file: &'a Checkpoint, name: &str, inputs: usize, outputs: usize) -> Result<Tensor<'a>, Error> {
    let tensor = file.tensor(name).ok_or_else(|| Error::MissingTensor { tensor: name.to_owned() })?;
    if tensor.dims == [inputs, outputs] {
        return Ok(tensor);
    }
    let (tensor, found) = (name.to_owned(), tensor.dims.to_vec());
    Err(Error::TensorShape { tensor, expected: vec![inputs, outputs], found })
}

/// A vector of `len` weights.
pub(super) fn vector(file: &Checkpoint, name: &str, len: usize) -> Result<Vec<f32>, Error> {
    let tensor = file.tensor(name).ok_or_else(|| Error::MissingTensor { tensor: name.to_owned() })?;
    if tensor.dims != [len] {
        let (tensor, found) = (name.to_owned(), tensor.dims.to_vec());
        return Err(Error::TensorShape { tensor, expected: vec![len], found });
    }
    let mut values = vec![0.0; len];
    tensor.dequantize_row(0, &mut values);
    Ok(values)
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

fn unsupported(key: &str, found: impl ToString, expected: impl ToString) -> Error {
    Error::Unsupported { key: key.to_owned(), found: found.to_string(), expected: expected.to_string() }
}

fn require(key: &str, found: usize, holds: bool, expected: impl FnOnce() -> String) -> Result<(), Error> {
    if holds { Ok(()) } else { Err(unsupported(key, found, expected())) }
}

#[cfg(test)]
mod tests;
