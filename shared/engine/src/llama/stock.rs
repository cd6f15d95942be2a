//! The operations of [`super::ops`] in Burn's operators, for devices without kernels of their own.

use burn::tensor::{DType, Int, Tensor, TensorData, activation};

use super::cache::StockCache;
use super::ops::{GATE_BLOCK, HeadNorms, Pass};
use crate::kernels::{Activation, Attention, Heads, Rotation, Segment};

pub(super) fn rms_norm<const D: usize>(x: Tensor<D>, weight: Tensor<1>, epsilon: f32) -> Tensor<D> {
    let mean = (x.clone() * x.clone()).mean_dim(D - 1);
    x * (mean + epsilon).sqrt().recip() * weight.unsqueeze()
}

pub(super) fn gate(x: Tensor<2>, activation: Activation) -> Tensor<2> {
    let [rows, width] = x.dims();
    let blocks = width / (2 * GATE_BLOCK);
    let x = x.reshape([rows * blocks, 2 * GATE_BLOCK]);
    let gates = x.clone().slice([0..rows * blocks, 0..GATE_BLOCK]);
    let values = x.slice([0..rows * blocks, GATE_BLOCK..2 * GATE_BLOCK]);
    let gates = match activation {
        Activation::Silu => activation::silu(gates),
        Activation::Gelu => activation::gelu_approximate(gates),
    };
    (gates * values).reshape([rows, width / 2])
}

pub(super) fn attention(
    attention: Attention,
    qkv: Tensor<2>,
    norms: Option<&HeadNorms>,
    pass: Pass<'_>,
    cache: &mut StockCache,
) -> Tensor<2> {
    let Heads { queries, kv, size } = attention.heads;
    let [rows, width] = qkv.dims();
    let heads = |from: usize, count: usize| {
        qkv.clone().slice([0..rows, from * size..(from + count) * size]).reshape([rows, count, size])
    };
    let (mut q, mut k) = (heads(0, queries), heads(queries, kv));
    if let Some(HeadNorms { queries, keys, epsilon }) = norms {
        q = rms_norm(q, queries.clone(), *epsilon);
        k = rms_norm(k, keys.clone(), *epsilon);
    }
    let rotated = mix(rotate(Tensor::cat(vec![q, k], 1), pass.rotation));
    let q = rotated.clone().slice([0..rows, 0..queries]);
    let k = rotated.slice([0..rows, queries..queries + kv]).reshape([rows, kv * size]).cast(DType::BF16);
    let v = qkv.slice([0..rows, width - kv * size..width]).cast(DType::BF16);

    let out = pass.segments.iter().map(|segment| {
        let part = segment.row..segment.row + segment.rows;
        StockCache::put(&mut cache.keys, segment, k.clone().slice([part.clone()]));
        StockCache::put(&mut cache.values, segment, v.clone().slice([part.clone()]));
        attend(attention, q.clone().slice([part]), segment, cache)
    });
    Tensor::cat(out.collect(), 0)
}

/// The attention of a segment's queries, `[rows, queries, size]`, over all of its sequence's positions.
fn attend(attention: Attention, q: Tensor<3>, segment: &Segment, cache: &StockCache) -> Tensor<2> {
    let Heads { queries, kv, size } = attention.heads;
    let device = q.device();
    let (group, rows, start) = (queries / kv, segment.rows, segment.start);
    let end = start + rows;
    let whole = Segment { row: 0, rows: end, start: 0, pages: segment.pages.clone() };

    // [kv, positions, size]; the query heads of a KV head stand below each other: [kv, group * rows, size].
    let cached = |cache: &Tensor<2>| {
        let runs = whole.runs().map(|(slot, rows)| cache.clone().slice([slot..slot + rows.len()]));
        Tensor::cat(runs.collect(), 0).cast(DType::F32).reshape([end, kv, size]).swap_dims(0, 1)
    };
    let q = q.swap_dims(0, 1).reshape([kv, group * rows, size]);
    let scores = q.matmul(cached(&cache.keys).swap_dims(1, 2)) * attention.scale;

    let position = Tensor::<1, Int>::arange(0..end as i64, &device).reshape([1, 1, end]).expand([1, rows, end]);
    let row = Tensor::<1, Int>::arange(start as i64..end as i64, &device).reshape([1, rows, 1]).expand([1, rows, end]);
    let mut unseen = position.clone().greater(row.clone());
    if let Some(window) = attention.window {
        unseen = unseen.bool_or(position.lower_equal(row - window as i64));
    }
    let unseen = unseen.repeat_dim(1, group).expand([kv, group * rows, end]);
    let weights = activation::softmax(scores.mask_fill(unseen, f32::NEG_INFINITY), 2);

    let out = weights.matmul(cached(&cache.values)).reshape([queries, rows, size]).swap_dims(0, 1);
    out.reshape([rows, queries * size])
}

/// Rotates every head of `x` (`[rows, heads, size]`): with `a` the first half of the rotated values and `b` the second,
/// `(a cos - b sin, b cos + a sin)`.
fn rotate(x: Tensor<3>, rotation: &Rotation) -> Tensor<3> {
    let [rows, heads, size] = x.dims();
    let pairs = rotation.pairs;
    let turn = |values: &[f32]| {
        let values = TensorData::new(values.to_vec(), [rows, 1, pairs]);
        Tensor::<3>::from_data(values, &x.device()).expand([rows, heads, pairs])
    };
    let (cos, sin) = (turn(&rotation.cos), turn(&rotation.sin));
    let part = |from: usize, to: usize| x.clone().slice([0..rows, 0..heads, from..to]);
    let (a, b) = (part(0, pairs), part(pairs, 2 * pairs));
    let mut parts = vec![a.clone() * cos.clone() - b.clone() * sin.clone(), b * cos + a * sin];
    if 2 * pairs < size {
        parts.push(part(2 * pairs, size));
    }
    Tensor::cat(parts, 2)
}

/// Multiplies every head of `x` with the Hadamard matrix of [`crate::kernels`], a power-of-two block at a time.
fn mix(x: Tensor<3>) -> Tensor<3> {
    let [rows, heads, size] = x.dims();
    let block = 1 << size.trailing_zeros();
    let scale = 1.0 / (block as f32).sqrt();
    let values = (0..block * block).map(|at: usize| {
        let sign = (at / block & at % block).count_ones() % 2;
        if sign == 0 { scale } else { -scale }
    });
    let matrix = Tensor::<2>::from_data(TensorData::new(values.collect::<Vec<f32>>(), [block, block]), &x.device());
    x.reshape([rows * heads * size / block, block]).matmul(matrix).reshape([rows, heads, size])
}
