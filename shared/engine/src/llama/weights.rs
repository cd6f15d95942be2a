//! A model's weights, dequantized and arranged for the forward pass.

use burn::tensor::{Device, Tensor, TensorData};

use super::Error;
use super::config::{Config, matrix, vector};
use super::ops::{Linear, Operators};
use crate::gguf;

pub(super) struct Weights {
    pub(super) layers: Vec<Layer>,
    pub(super) norm: Tensor<1>,
    /// What every head of queries and keys is multiplied with after its rotation, see [`hadamard`].
    pub(super) mixing: Linear,
    /// Hidden state to logits.
    pub(super) head: Linear,
}

pub(super) struct Layer {
    pub(super) attention_norm: Tensor<1>,
    /// Queries, keys and values in one, each head's rotated values as [`unpair`] orders them.
    pub(super) qkv: Linear,
    pub(super) attention_output: Linear,
    pub(super) feed_forward_norm: Tensor<1>,
    /// Gates, then ups.
    pub(super) gate_up: Linear,
    pub(super) down: Linear,
}

impl Weights {
    pub(super) fn load(
        file: &gguf::File,
        config: &Config,
        operators: Operators,
        device: &Device,
    ) -> Result<Weights, Error> {
        let norm = |name: &str| -> Result<Tensor<1>, Error> {
            let values = vector(file, name, config.hidden)?;
            Ok(Tensor::from_data(TensorData::new(values, [config.hidden]), device))
        };
        let layers = (0..config.layers).map(|index| {
            let name = |part: &str| format!("blk.{index}.{part}.weight");
            Ok(Layer {
                attention_norm: norm(&name("attn_norm"))?,
                qkv: qkv(file, config, operators, device, name)?,
                attention_output: {
                    let width = config.heads.queries * config.heads.size;
                    let weights = matrix(file, &name("attn_output"), width, config.hidden)?;
                    operators.load(device, width, config.hidden, |o, row| weights.dequantize_row(o, row))
                },
                feed_forward_norm: norm(&name("ffn_norm"))?,
                gate_up: {
                    let width = config.feed_forward;
                    let gate = matrix(file, &name("ffn_gate"), config.hidden, width)?;
                    let up = matrix(file, &name("ffn_up"), config.hidden, width)?;
                    operators.load(device, config.hidden, 2 * width, |o, row| {
                        if o < width { gate.dequantize_row(o, row) } else { up.dequantize_row(o - width, row) }
                    })
                },
                down: {
                    let weights = matrix(file, &name("ffn_down"), config.feed_forward, config.hidden)?;
                    operators.load(device, config.feed_forward, config.hidden, |o, row| weights.dequantize_row(o, row))
                },
            })
        });
        let layers = layers.collect::<Result<_, Error>>()?;
        let head = match file.tensor("output.weight") {
            Some(_) => matrix(file, "output.weight", config.hidden, config.vocabulary)?,
            None => config.embedding(file)?,
        };
        let head =
            operators.load(device, config.hidden, config.vocabulary, |token, row| head.dequantize_row(token, row));
        let size = config.heads.size;
        let mixing = operators.load(device, size, size, hadamard);
        Ok(Weights { layers, norm: norm("output_norm.weight")?, mixing, head })
    }
}

fn qkv(
    file: &gguf::File,
    config: &Config,
    operators: Operators,
    device: &Device,
    name: impl Fn(&str) -> String,
) -> Result<Linear, Error> {
    let heads = config.heads;
    let (queries, kv) = (heads.queries * heads.size, heads.kv_width());
    let q = matrix(file, &name("attn_q"), config.hidden, queries)?;
    let k = matrix(file, &name("attn_k"), config.hidden, kv)?;
    let v = matrix(file, &name("attn_v"), config.hidden, kv)?;
    let source = |o: usize| o - o % heads.size + unpair(o % heads.size, config.rope.width);
    Ok(operators.load(device, config.hidden, queries + 2 * kv, |o, row| {
        if o < queries {
            q.dequantize_row(source(o), row);
        } else if o < queries + kv {
            k.dequantize_row(source(o - queries), row);
        } else {
            v.dequantize_row(o - queries - kv, row);
        }
    }))
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

/// Row `o` of an orthogonal matrix that spreads every value evenly over a power-of-two block of the head (Sylvester's
/// Hadamard matrix, scaled). Being orthogonal, it leaves the products of queries and keys as they are; but keys have a
/// few channels far larger than the rest, in which bf16 rounding does most of its damage, and mixed keys have none
/// (Ashkboos et al., "QuaRot", 2024). With SmolLM2 it takes the greatest log-probability error from 0.13 to 0.045.
fn hadamard(o: usize, row: &mut [f32]) {
    let block = 1 << row.len().trailing_zeros();
    let scale = 1.0 / (block as f32).sqrt();
    for (i, value) in row.iter_mut().enumerate() {
        *value = match (i / block == o / block, (i & o & (block - 1)).count_ones() % 2) {
            (false, _) => 0.0,
            (true, 0) => scale,
            (true, _) => -scale,
        };
    }
}
