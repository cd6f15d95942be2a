//! One forward pass over the rows of several sequences.

use baton_model::config::{self, Config, Gate};
use burn::tensor::{Device, Int, Tensor, TensorData};

use super::cache::Cache;
use super::failure::Failure;
use super::operators::{Norm, Operators, Pass};
use super::ops::Linear;
use super::weights::{Layer, Weights};
use crate::kernels::{Activation, Attention, Rotation, Segment};

/// What a pass reads: the model.
pub(super) struct Network<'a> {
    pub(super) config: &'a Config,
    pub(super) weights: &'a Weights,
    pub(super) operators: Operators,
    pub(super) device: &'a Device,
}

/// The rows of a pass.
pub(super) struct Batch {
    pub(super) tokens: Vec<u32>,
    pub(super) segments: Vec<Segment>,
    /// Of how many of its last rows each segment wants the logits.
    pub(super) logits: Vec<usize>,
}

impl Network<'_> {
    /// Extends the caches, one a layer, by the batch's tokens, and returns the logits that each segment wants.
    pub(super) fn pass(&self, batch: &Batch, caches: &mut [Cache]) -> Result<Vec<Vec<f32>>, Failure> {
        let mut x = self.weights.embedding().rows(&batch.tokens, self.device);
        if self.config.embedding_scale != 1.0 {
            x = x * self.config.embedding_scale;
        }
        let rotations: Vec<Rotation> = self.config.ropes.iter().map(|rope| rotation(rope, &batch.segments)).collect();
        let layers = self.weights.layers.iter().zip(&self.config.layers).zip(caches);
        for ((layer, kind), cache) in layers {
            let pass = Pass { rotation: &rotations[kind.rope], segments: &batch.segments };
            x = self.layer(x, layer, kind, pass, cache);
        }

        let wanted = batch.segments.iter().zip(&batch.logits).flat_map(|(segment, logits)| {
            let end = segment.row + segment.rows;
            (end - logits..end).map(|row| row as i64)
        });
        let wanted: Vec<i64> = wanted.collect();
        if wanted.is_empty() {
            if self.operators == Operators::Stock {
                // What fails is told to whoever reads.
                let first = x.slice([0..1, 0..1]).try_into_data().map_err(Failure::new)?;
                first.as_slice::<f32>().map_err(Failure::new)?;
            }
            return Ok(vec![Vec::new(); batch.segments.len()]);
        }
        let count = wanted.len();
        if count < batch.tokens.len() {
            x = x.select(0, Tensor::<1, Int>::from_data(TensorData::new(wanted, [count]), self.device));
        }
        let logits = self.operators.linear(x, Some(self.norm(&self.weights.norm)), &self.weights.head);
        let logits = logits.try_into_data().map_err(Failure::new)?;
        let logits = logits.as_slice::<f32>().map_err(Failure::new)?;
        let mut rest = logits;
        let mut take = |count: &usize| {
            let (taken, later) = rest.split_at(count * self.config.vocabulary);
            rest = later;
            taken.to_vec()
        };
        Ok(batch.logits.iter().map(&mut take).collect())
    }

    fn norm<'a>(&self, weight: &'a Tensor<1>) -> Norm<'a> {
        Norm { weight, epsilon: self.config.epsilon }
    }

    /// One transformer layer on the residual stream `x` (`[rows, hidden]`).
    fn layer(&self, x: Tensor<2>, layer: &Layer, kind: &config::Layer, pass: Pass<'_>, cache: &mut Cache) -> Tensor<2> {
        let operators = self.operators;
        let mut qkv = operators.linear(x.clone(), Some(self.norm(&layer.attention_norm)), &layer.qkv);
        if let Some(bias) = &layer.qkv_bias {
            qkv = qkv + bias.clone().unsqueeze();
        }
        let attention = Attention { heads: self.config.heads, scale: self.config.attention_scale, window: kind.window };
        let attended = operators.attention(attention, qkv, layer.head_norms.as_ref(), pass, cache);
        let x = self.add(x, attended, &layer.attention_output, layer.post_attention_norm.as_ref());

        let activation = match self.config.gate {
            Gate::Silu => Activation::Silu,
            Gate::Gelu => Activation::Gelu,
        };
        let gated = operators.gated_linear(x.clone(), self.norm(&layer.feed_forward_norm), &layer.gate_up, activation);
        self.add(x, gated, &layer.down, layer.post_feed_forward_norm.as_ref())
    }

    /// Adds the product of `part` to the residual stream, normed before if `norm` says so.
    fn add(&self, x: Tensor<2>, part: Tensor<2>, layer: &Linear, norm: Option<&Tensor<1>>) -> Tensor<2> {
        match norm {
            None => self.operators.add_linear(x, part, layer),
            Some(norm) => {
                let product = self.operators.linear(part, None, layer);
                x + self.operators.rms_norm(product, self.norm(norm))
            }
        }
    }
}

/// The turns of the segments' rows.
fn rotation(rope: &config::Rope, segments: &[Segment]) -> Rotation {
    let pairs = rope.frequencies.len();
    let positions = segments.iter().flat_map(|segment| segment.start..segment.start + segment.rows);
    let (mut cos, mut sin) = (Vec::new(), Vec::new());
    for position in positions {
        for frequency in &rope.frequencies {
            let (s, c) = (position as f64 * frequency).sin_cos();
            cos.push(c as f32);
            sin.push(s as f32);
        }
    }
    Rotation { pairs, cos: cos.into(), sin: sin.into() }
}
