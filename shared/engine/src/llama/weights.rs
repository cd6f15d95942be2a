//! A model's weights, arranged for the forward pass.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

use baton_model::checkpoint::{self, Checkpoint};
use baton_model::config::{Config, Pairs, matrix, vector};
use baton_model::quants::Type;
use baton_model::sampling::all_finite;
use burn::tensor::{Device, Tensor, TensorData};

use super::arena::Arena;
use super::error::Error;
use super::operators::{GATE_BLOCK, HeadNorms, Operators};
use super::ops::Linear;
use crate::kernels::{BLOCK, Format, PANEL, Quantized, Rows};

pub(super) struct Weights {
    /// `[vocabulary, hidden]`; none where the head's are the same.
    embedding: Option<Linear>,
    pub(super) layers: Vec<Layer>,
    pub(super) norm: Tensor<1>,
    /// Hidden state to logits.
    pub(super) head: Linear,
}

pub(super) struct Layer {
    pub(super) attention_norm: Tensor<1>,
    /// Queries, keys and values in one, each head's rotated values as [`unpair`] orders them.
    pub(super) qkv: Linear,
    pub(super) qkv_bias: Option<Tensor<1>>,
    pub(super) head_norms: Option<HeadNorms>,
    pub(super) attention_output: Linear,
    /// Of what attention adds to the residual stream.
    pub(super) post_attention_norm: Option<Tensor<1>>,
    pub(super) feed_forward_norm: Tensor<1>,
    /// By 16 gates and their 16 ups.
    pub(super) gate_up: Linear,
    pub(super) down: Linear,
    /// Of what the feed-forward part adds to the residual stream.
    pub(super) post_feed_forward_norm: Option<Tensor<1>>,
}

impl Weights {
    pub(super) fn load(
        file: &Checkpoint,
        config: &Config,
        operators: Operators,
        device: &Device,
    ) -> Result<Weights, Error> {
        let arena = Arena::reserve(arena_bytes(file)).map_err(Error::Memory)?;
        let loader = Loader { file, config, operators, device, arena: Mutex::new(arena) };
        let embedding = config.embedding(file)?;
        let output = match file.tensor("output.weight") {
            Some(_) => Some(matrix(file, "output.weight", config.hidden, config.vocabulary)?),
            None => None,
        };
        let weights = Weights {
            layers: (0..config.layers.len()).map(|index| loader.layer(index)).collect::<Result<_, Error>>()?,
            norm: loader.norm("output_norm.weight", config.hidden)?,
            head: loader.whole(output.unwrap_or(embedding))?,
            embedding: output.map(|_| loader.whole(embedding)).transpose()?,
        };
        loader.arena.into_inner().unwrap_or_else(PoisonError::into_inner).freeze().map_err(Error::Memory)?;
        Ok(weights)
    }

    pub(super) fn embedding(&self) -> &Linear {
        self.embedding.as_ref().unwrap_or(&self.head)
    }
}

struct Loader<'a> {
    file: &'a Checkpoint,
    config: &'a Config,
    operators: Operators,
    device: &'a Device,
    arena: Mutex<Arena>,
}

impl Loader<'_> {
    fn layer(&self, index: usize) -> Result<Layer, Error> {
        let Config { hidden, feed_forward, heads, .. } = *self.config;
        let name = |part: &str| format!("blk.{index}.{part}.weight");
        let optional = |part: &str, len: usize| match self.file.tensor(&name(part)) {
            Some(_) => self.norm(&name(part), len).map(Some),
            None => Ok(None),
        };
        let head_norm = |part: &str| -> Result<Option<Tensor<1>>, Error> {
            if self.file.tensor(&name(part)).is_none() {
                return Ok(None);
            }
            let values = self.norm_values(&name(part), heads.size)?;
            let ordered: Vec<f32> = (0..heads.size).map(|i| values[self.source(i)]).collect();
            Ok(Some(self.tensor(ordered)))
        };
        let gate = matrix(self.file, &name("ffn_gate"), hidden, feed_forward)?;
        let up = matrix(self.file, &name("ffn_up"), hidden, feed_forward)?;
        Ok(Layer {
            attention_norm: self.norm(&name("attn_norm"), hidden)?,
            qkv: self.qkv(name)?,
            qkv_bias: self.qkv_bias(index)?,
            head_norms: head_norm("attn_q_norm")?.zip(head_norm("attn_k_norm")?).map(|(queries, keys)| HeadNorms {
                queries,
                keys,
                epsilon: self.config.epsilon,
            }),
            attention_output: self.whole(matrix(self.file, &name("attn_output"), heads.query_width(), hidden)?)?,
            post_attention_norm: optional("post_attention_norm", hidden)?,
            feed_forward_norm: self.norm(&name("ffn_norm"), hidden)?,
            gate_up: self.combined(&[gate, up], 2 * feed_forward, |output| {
                let (block, offset) = (output / (2 * GATE_BLOCK), output % (2 * GATE_BLOCK));
                (offset / GATE_BLOCK, block * GATE_BLOCK + offset % GATE_BLOCK)
            })?,
            down: self.whole(matrix(self.file, &name("ffn_down"), feed_forward, hidden)?)?,
            post_feed_forward_norm: optional("post_ffw_norm", hidden)?,
        })
    }

    fn qkv(&self, name: impl Fn(&str) -> String) -> Result<Linear, Error> {
        let Config { hidden, heads, .. } = *self.config;
        let (queries, kv) = (heads.query_width(), heads.kv_width());
        let q = matrix(self.file, &name("attn_q"), hidden, queries)?;
        let k = matrix(self.file, &name("attn_k"), hidden, kv)?;
        let v = matrix(self.file, &name("attn_v"), hidden, kv)?;
        self.combined(&[q, k, v], heads.row_width(), |output| {
            if output < queries {
                (0, self.source(output))
            } else if output < queries + kv {
                (1, self.source(output - queries))
            } else {
                (2, output - queries - kv)
            }
        })
    }

    fn qkv_bias(&self, index: usize) -> Result<Option<Tensor<1>>, Error> {
        let heads = self.config.heads;
        let part = |part: &str, len: usize| {
            let name = format!("blk.{index}.{part}.bias");
            self.file.tensor(&name).map(|_| self.vector(&name, len)).transpose()
        };
        let q = part("attn_q", heads.query_width())?;
        let k = part("attn_k", heads.kv_width())?;
        let v = part("attn_v", heads.kv_width())?;
        if q.is_none() && k.is_none() && v.is_none() {
            return Ok(None);
        }
        let mut bias = Vec::with_capacity(heads.row_width());
        for (values, width) in [(q, heads.query_width()), (k, heads.kv_width())] {
            let values = values.unwrap_or_else(|| vec![0.0; width]);
            bias.extend((0..width).map(|output| values[self.source(output)]));
        }
        bias.extend(v.unwrap_or_else(|| vec![0.0; heads.kv_width()]));
        Ok(Some(self.tensor(bias)))
    }

    /// Which value of a head's in the file is output `output` of ours, see [`unpair`].
    fn source(&self, output: usize) -> usize {
        let size = self.config.heads.size;
        match self.config.pairs {
            Pairs::Adjacent => output - output % size + unpair(output % size, self.config.rope_width()),
            Pairs::Halves => output,
        }
    }

    fn norm(&self, name: &str, len: usize) -> Result<Tensor<1>, Error> {
        Ok(self.tensor(self.norm_values(name, len)?))
    }

    fn norm_values(&self, name: &str, len: usize) -> Result<Vec<f32>, Error> {
        let values = self.vector(name, len)?;
        Ok(values.into_iter().map(|value| value + self.config.norm_shift).collect())
    }

    fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>, Error> {
        let values = vector(self.file, name, len)?;
        if all_finite(&values) { Ok(values) } else { Err(Error::NonFinite { tensor: name.to_owned() }) }
    }

    /// What the file calls a tensor, which it holds at one place.
    fn name_of(&self, tensor: &checkpoint::Tensor<'_>) -> String {
        let is_it = |name: &&str| self.file.tensor(name).is_some_and(|other| std::ptr::eq(other.bytes, tensor.bytes));
        self.file.tensor_names().find(is_it).unwrap_or_default().to_owned()
    }

    fn tensor(&self, values: Vec<f32>) -> Tensor<1> {
        let len = values.len();
        Tensor::from_data(TensorData::new(values, [len]), self.device)
    }

    /// All rows of a matrix as they are.
    fn whole(&self, tensor: checkpoint::Tensor<'_>) -> Result<Linear, Error> {
        self.combined(&[tensor], tensor.rows(), |output| (0, output))
    }

    /// Rows of several matrices; `source` tells which matrix and row an output is.
    fn combined(
        &self,
        tensors: &[checkpoint::Tensor<'_>],
        outputs: usize,
        source: impl Fn(usize) -> (usize, usize) + Sync,
    ) -> Result<Linear, Error> {
        let inputs = tensors[0].row_len();
        let formats = tensors.iter().map(|tensor| format(tensor.dtype, inputs));
        let format = formats.reduce(Format::join).unwrap_or(Format::F32);
        let arena = &mut self.arena.lock().unwrap_or_else(PoisonError::into_inner);
        let rows = Combined { tensors, source, spoilt: AtomicUsize::new(tensors.len()) };
        let loaded = self.operators.load(self.device, arena, format, inputs, outputs, &rows);
        match tensors.get(rows.spoilt.into_inner()) {
            None => Ok(loaded),
            Some(tensor) => Err(Error::NonFinite { tensor: self.name_of(tensor) }),
        }
    }
}

/// More than the packed weights take: all values in f32, and a panel more of each matrix, whose last one is filled up.
fn arena_bytes(file: &Checkpoint) -> usize {
    let tensors = file.tensor_names().filter_map(|name| file.tensor(name));
    let values = tensors.map(|tensor| tensor.row_len().saturating_mul(tensor.rows().saturating_add(2 * PANEL)));
    values.fold(0usize, usize::saturating_add).saturating_mul(size_of::<f32>())
}

/// How the kernels keep a type.
fn format(dtype: Type, inputs: usize) -> Format {
    match (dtype, dtype.grouping()) {
        (_, Some(grouping)) if inputs.is_multiple_of(BLOCK) => Format::Quantized(Quantized {
            bits: if grouping.max < 16 { 4 } else { 8 },
            group: grouping.len,
            zero: grouping.zero,
            half: grouping.half,
        }),
        (Type::F16, _) => Format::F16,
        (Type::BF16, _) => Format::BF16,
        _ => Format::F32,
    }
}

/// Rows of several matrices.
struct Combined<'a, F> {
    tensors: &'a [checkpoint::Tensor<'a>],
    source: F,
    /// Which of them was found to hold what is no finite number; none if it is none of them.
    spoilt: AtomicUsize,
}

impl<F> Combined<'_, F> {
    fn check(&self, tensor: usize, numbers: &[f32]) {
        if !all_finite(numbers) {
            self.spoilt.store(tensor, Relaxed);
        }
    }
}

impl<F: Fn(usize) -> (usize, usize) + Sync> Rows for Combined<'_, F> {
    fn unpack(&self, output: usize, quants: &mut [u8], scales: &mut [f32], offsets: &mut [f32]) -> usize {
        let (tensor, row) = (self.source)(output);
        self.tensors[tensor].unpack_row(row, quants, scales, offsets);
        self.check(tensor, scales);
        self.check(tensor, offsets);
        self.tensors[tensor].dtype.grouping().map_or(BLOCK, |grouping| grouping.len)
    }

    fn dequantize(&self, output: usize, values: &mut [f32]) {
        let (tensor, row) = (self.source)(output);
        self.tensors[tensor].dequantize_row(row, values);
        self.check(tensor, values);
    }
}

/// Which value of a head in the file is value `i` of ours. GGUF's llama files keep the two values that rotate together
/// side by side; we keep all first ones before all second ones, which makes the rotation a matter of whole halves.
/// Attention doesn't notice, since queries and keys are ordered alike.
fn unpair(i: usize, rope_width: usize) -> usize {
    let half = rope_width / 2;
    match i {
        i if i < half => 2 * i,
        i if i < rope_width => 2 * (i - half) + 1,
        i => i,
    }
}
