//! One forward pass over the rows of several sequences.

use burn::tensor::{Device, Int, Tensor, TensorData};
use rayon::prelude::*;

use super::config::Config;
use super::ops::{Cache, Linear, Operators};
use super::weights::{Layer, Weights};
use crate::gguf;

/// Consecutive rows of one sequence in a pass.
pub(super) struct Segment<'a> {
    pub(super) tokens: &'a [u32],
    /// The position of the first token.
    pub(super) start: usize,
    /// One entry a layer, with room for all of `tokens`.
    pub(super) caches: &'a mut [Cache],
    /// Of how many of the last tokens the logits are wanted.
    pub(super) logits: usize,
}

/// What a pass reads: the model.
pub(super) struct Network<'a> {
    pub(super) config: &'a Config,
    pub(super) weights: &'a Weights,
    pub(super) embedding: gguf::Tensor<'a>,
    pub(super) operators: Operators,
    pub(super) device: &'a Device,
}

/// The cosines and sines of a pass, both `[rows, 1, head size]`, for [`rotate`].
struct Rotation {
    cos: Tensor<3>,
    sin: Tensor<3>,
}

impl Network<'_> {
    /// Extends the caches by the segments' tokens, and returns the logits of each segment.
    pub(super) fn pass(&self, segments: &mut [Segment<'_>]) -> Vec<Vec<f32>> {
        let mut x = self.embed(segments);
        let rotation = self.rotation(segments);
        for (index, layer) in self.weights.layers.iter().enumerate() {
            x = self.layer(x, index, layer, &rotation, segments);
        }

        let mut end = 0;
        let mut wanted = Vec::new();
        for segment in segments.iter() {
            end += segment.tokens.len();
            wanted.extend((end - segment.logits..end).map(|row| row as i64));
        }
        if wanted.is_empty() {
            return vec![Vec::new(); segments.len()];
        }
        let count = wanted.len();
        let rows = Tensor::<1, Int>::from_data(TensorData::new(wanted, [count]), self.device);
        let x = self.operators.rms_norm(x.select(0, rows), &self.weights.norm, self.config.epsilon);
        let logits = self.linear(x, &self.weights.head).into_data();
        let logits = logits.as_slice::<f32>().expect("the layers compute in f32");
        let mut rows = logits.chunks_exact(self.config.vocabulary);
        segments.iter().map(|segment| rows.by_ref().take(segment.logits).flatten().copied().collect()).collect()
    }

    fn linear(&self, x: Tensor<2>, layer: &Linear) -> Tensor<2> {
        self.operators.linear(x, layer)
    }

    fn embed(&self, segments: &[Segment<'_>]) -> Tensor<2> {
        let hidden = self.config.hidden;
        let tokens: Vec<u32> = segments.iter().flat_map(|segment| segment.tokens).copied().collect();
        let mut values = vec![0.0; tokens.len() * hidden];
        for (row, token) in values.chunks_exact_mut(hidden).zip(&tokens) {
            self.embedding.dequantize_row(*token as usize, row);
        }
        Tensor::from_data(TensorData::new(values, [tokens.len(), hidden]), self.device)
    }

    fn rotation(&self, segments: &[Segment<'_>]) -> Rotation {
        let (size, rope) = (self.config.heads.size, &self.config.rope);
        let half = rope.width / 2;
        let frequencies: Vec<f64> = (0..half).map(|i| rope.base.powf(-((2 * i) as f64) / rope.width as f64)).collect();
        let rows: usize = segments.iter().map(|segment| segment.tokens.len()).sum();
        // What lies beyond the rotated values is kept: times 1, plus 0.
        let (mut cos, mut sin) = (vec![1.0f32; rows * size], vec![0.0f32; rows * size]);
        let positions = segments.iter().flat_map(|segment| segment.start..segment.start + segment.tokens.len());
        for ((position, cos), sin) in positions.zip(cos.chunks_exact_mut(size)).zip(sin.chunks_exact_mut(size)) {
            for (i, frequency) in frequencies.iter().enumerate() {
                let angle = position as f64 * frequency;
                (cos[i], cos[half + i]) = (angle.cos() as f32, angle.cos() as f32);
                (sin[i], sin[half + i]) = (-angle.sin() as f32, angle.sin() as f32);
            }
        }
        let tensor = |values| Tensor::from_data(TensorData::new(values, [rows, 1, size]), self.device);
        Rotation { cos: tensor(cos), sin: tensor(sin) }
    }

    /// One transformer layer on the residual stream `x` (`[rows, hidden]`).
    fn layer(
        &self,
        x: Tensor<2>,
        index: usize,
        layer: &Layer,
        rotation: &Rotation,
        segments: &mut [Segment<'_>],
    ) -> Tensor<2> {
        let epsilon = self.config.epsilon;
        let normed = self.operators.rms_norm(x.clone(), &layer.attention_norm, epsilon);
        let attended = self.attention(self.linear(normed, &layer.qkv), index, rotation, segments);
        let x = x + self.linear(attended, &layer.attention_output);
        let normed = self.operators.rms_norm(x.clone(), &layer.feed_forward_norm, epsilon);
        let gated = self.operators.gate(self.linear(normed, &layer.gate_up));
        x + self.linear(gated, &layer.down)
    }

    fn attention(&self, qkv: Tensor<2>, index: usize, rotation: &Rotation, segments: &mut [Segment<'_>]) -> Tensor<2> {
        let heads = self.config.heads;
        let rows = qkv.dims()[0];
        let (queries, kv) = (heads.queries * heads.size, heads.kv_width());
        let rotating =
            qkv.clone().slice([0..rows, 0..queries + kv]).reshape([rows, heads.queries + heads.kv, heads.size]);
        let rotated = rotate(rotating, rotation, self.config.rope.width);
        let mixed = self.linear(rotated.reshape([rows * (heads.queries + heads.kv), heads.size]), &self.weights.mixing);
        let mixed = mixed.reshape([rows, heads.queries + heads.kv, heads.size]);
        let q = mixed.clone().slice([0..rows, 0..heads.queries]).reshape([rows, queries]);
        let k = mixed.slice([0..rows, heads.queries..heads.queries + heads.kv]).reshape([rows, kv]);
        let v = qkv.slice([0..rows, queries + kv..queries + 2 * kv]);

        let attend = |(segment, row): (&mut Segment<'_>, usize)| {
            let rows = row..row + segment.tokens.len();
            let part = [&q, &k, &v].map(|tensor| tensor.clone().slice([rows.clone()]));
            self.operators.attention(heads, part, &mut segment.caches[index], segment.start)
        };
        let mut row = 0;
        let mut placed: Vec<_> = segments
            .iter_mut()
            .map(|segment| {
                row += segment.tokens.len();
                let first = row - segment.tokens.len();
                (segment, first)
            })
            .collect();
        if placed.len() == 1 {
            return Tensor::cat(placed.into_iter().map(attend).collect(), 0);
        }
        // One task a sequence; a device of its own would rather be fed from one thread.
        let parts = match self.operators {
            Operators::Kernels => placed.par_drain(..).map(attend).collect(),
            Operators::Stock => placed.drain(..).map(attend).collect(),
        };
        Tensor::cat(parts, 0)
    }
}

/// Rotates every head of `x` (`[rows, heads, head size]`): with `a` the first half of the rotated values and `b` the
/// second, `(a cos - b sin, b cos + a sin)`.
fn rotate(x: Tensor<3>, rotation: &Rotation, width: usize) -> Tensor<3> {
    let [rows, heads, size] = x.dims();
    let part = |from: usize, to: usize| x.clone().slice([0..rows, 0..heads, from..to]);
    let mut swapped = vec![part(width / 2, width), part(0, width / 2)];
    if width < size {
        swapped.push(part(width, size));
    }
    let swapped = Tensor::cat(swapped, 2);
    x * rotation.cos.clone() + swapped * rotation.sin.clone()
}
