//! What a model file says about the model, checked.

use baton_contract::kv;

use super::Error;
use crate::gguf::{self, Value};
use crate::kernels::Heads;
use crate::model::Spec;

/// Names the type and layout of the KV cache, as part of a model's fingerprint: bf16; keys rotated, a head as the first
/// elements of all pairs before the second ones, then mixed by the Hadamard matrix of `weights.rs`.
const KV_LAYOUT: &[u8] = b"bf16 kv v1";

const EMBEDDING: &str = "token_embd.weight";

/// The model's hyperparameters. Sizes count values.
#[derive(Clone, Debug)]
pub(super) struct Config {
    pub(super) layers: usize,
    pub(super) hidden: usize,
    pub(super) feed_forward: usize,
    pub(super) heads: Heads,
    pub(super) vocabulary: usize,
    pub(super) context: usize,
    pub(super) rope: Rope,
    /// What RMS norm adds to the mean square.
    pub(super) epsilon: f32,
}

/// Rotary position embedding (Su et al., "RoFormer", 2021): pair `i` of a head turns by `position * base^(-2i / width)`.
#[derive(Clone, Debug)]
pub(super) struct Rope {
    pub(super) base: f64,
    /// Leading values of a head that are rotated, an even number.
    pub(super) width: usize,
}

/// What the model in `file` is, without loading its weights. Reads the whole file for its digest.
pub fn spec(file: &gguf::File) -> Result<Spec, Error> {
    Ok(Config::read(file)?.spec(file))
}

impl Config {
    pub(super) fn read(file: &gguf::File) -> Result<Config, Error> {
        let architecture = file.string("general.architecture")?;
        if architecture != "llama" {
            return Err(Error::Architecture { found: architecture.to_owned() });
        }
        refuse_variants(file)?;

        let layers = size(file, "llama.block_count", 1024)?;
        let hidden = size(file, "llama.embedding_length", 1 << 16)?;
        let queries = size(file, "llama.attention.head_count", 1024)?;
        let kv = optional_size(file, "llama.attention.head_count_kv", 1024, queries)?;
        let head_size = optional_size(file, "llama.attention.key_length", 1024, hidden / queries)?;
        let value_size = optional_size(file, "llama.attention.value_length", 1024, head_size)?;
        let rope_width = optional_size(file, "llama.rope.dimension_count", 1024, head_size)?;
        require("query heads", queries, queries.is_multiple_of(kv), || format!("a multiple of the {kv} KV heads"))?;
        require("a head's values", head_size, head_size > 0 && head_size.is_multiple_of(16), || {
            "a multiple of 16".to_owned()
        })?;
        require("llama.attention.value_length", value_size, value_size == head_size, || head_size.to_string())?;
        require("llama.rope.dimension_count", rope_width, rope_width <= head_size && rope_width % 2 == 0, || {
            format!("an even number up to {head_size}")
        })?;
        let base = match file.get("llama.rope.freq_base") {
            None => 10_000.0,
            Some(_) => file.float("llama.rope.freq_base")?,
        };
        if !(base.is_finite() && base > 0.0) {
            return Err(unsupported("llama.rope.freq_base", base, "a positive number"));
        }

        let embedding = file.tensor(EMBEDDING).ok_or_else(|| Error::MissingTensor { tensor: EMBEDDING.to_owned() })?;
        let vocabulary = embedding.rows();
        require(EMBEDDING, vocabulary, u32::try_from(vocabulary).is_ok(), || "below 2^32 tokens".to_owned())?;
        Ok(Config {
            layers,
            hidden,
            feed_forward: size(file, "llama.feed_forward_length", 1 << 20)?,
            heads: Heads { queries, kv, size: head_size },
            vocabulary,
            context: size(file, "llama.context_length", 1 << 24)?,
            rope: Rope { base, width: rope_width },
            epsilon: file.float("llama.attention.layer_norm_rms_epsilon")? as f32,
        })
    }

    pub(super) fn spec(&self, file: &gguf::File) -> Spec {
        let mut fingerprint = blake3::Hasher::new();
        fingerprint.update(&file.digest()).update(KV_LAYOUT);
        fingerprint.update(&self.rope.base.to_le_bytes()).update(&(self.rope.width as u64).to_le_bytes());
        Spec {
            name: file.get("general.name").and_then(Value::as_str).unwrap_or("llama").to_owned(),
            kv: kv::Shape { layers: self.layers, width: self.heads.kv_width() },
            vocabulary: self.vocabulary,
            context: self.context,
            fingerprint: *fingerprint.finalize().as_bytes(),
        }
    }

    /// The token embeddings, `[vocabulary, hidden]`.
    pub(super) fn embedding<'a>(&self, file: &'a gguf::File) -> Result<gguf::Tensor<'a>, Error> {
        matrix(file, EMBEDDING, self.hidden, self.vocabulary)
    }
}

/// A weight matrix of `outputs` rows with `inputs` values each.
pub(super) fn matrix<'a>(
    file: &'a gguf::File,
    name: &str,
    inputs: usize,
    outputs: usize,
) -> Result<gguf::Tensor<'a>, Error> {
    let tensor = file.tensor(name).ok_or_else(|| Error::MissingTensor { tensor: name.to_owned() })?;
    if tensor.dims == [inputs, outputs] {
        return Ok(tensor);
    }
    let (tensor, found) = (name.to_owned(), tensor.dims.to_vec());
    Err(Error::TensorShape { tensor, expected: vec![inputs, outputs], found })
}

/// A vector of `len` weights.
pub(super) fn vector(file: &gguf::File, name: &str, len: usize) -> Result<Vec<f32>, Error> {
    let tensor = file.tensor(name).ok_or_else(|| Error::MissingTensor { tensor: name.to_owned() })?;
    if tensor.dims != [len] {
        let (tensor, found) = (name.to_owned(), tensor.dims.to_vec());
        return Err(Error::TensorShape { tensor, expected: vec![len], found });
    }
    let mut values = vec![0.0; len];
    tensor.dequantize_row(0, &mut values);
    Ok(values)
}

/// Refuses what would compute, but not the model that was meant.
fn refuse_variants(file: &gguf::File) -> Result<(), Error> {
    if let Some(scaling) = file.get("llama.rope.scaling.type").and_then(Value::as_str)
        && scaling != "none"
    {
        return Err(unsupported("llama.rope.scaling.type", scaling, "none"));
    }
    for key in ["llama.rope.scaling.factor", "llama.rope.scale_linear"] {
        if let Some(factor) = file.get(key).and_then(Value::as_f64)
            && factor != 1.0
        {
            return Err(unsupported(key, factor, "1"));
        }
    }
    if let Some(experts) = file.get("llama.expert_count").and_then(Value::as_u64)
        && experts != 0
    {
        return Err(unsupported("llama.expert_count", experts, "0"));
    }
    for tensor in ["rope_freqs.weight", "blk.0.attn_q.bias", "blk.0.attn_output.bias", "blk.0.ffn_up.bias"] {
        if file.tensor(tensor).is_some() {
            return Err(unsupported(tensor, "a tensor", "none of that name"));
        }
    }
    Ok(())
}

fn unsupported(key: &str, found: impl ToString, expected: impl ToString) -> Error {
    Error::Unsupported { key: key.to_owned(), found: found.to_string(), expected: expected.to_string() }
}

fn require(key: &str, found: usize, holds: bool, expected: impl FnOnce() -> String) -> Result<(), Error> {
    if holds { Ok(()) } else { Err(unsupported(key, found, expected())) }
}

fn size(file: &gguf::File, key: &str, most: usize) -> Result<usize, Error> {
    let value = file.unsigned(key)?;
    match usize::try_from(value) {
        Ok(value) if (1..=most).contains(&value) => Ok(value),
        _ => Err(unsupported(key, value, format!("1 to {most}"))),
    }
}

fn optional_size(file: &gguf::File, key: &str, most: usize, default: usize) -> Result<usize, Error> {
    if file.get(key).is_some() { size(file, key, most) } else { Ok(default) }
}
