//! The operations of `ops` in Burn's operators, for devices without kernels of their own.

use baton_model::config::Heads;
use burn::tensor::{DType, IndexingUpdateOp, Int, Tensor, TensorData, activation};

use super::operators::{GATE_BLOCK, HeadNorms, Pass};
use super::stock_cache::{StockCache, indices, scatter, slots};
use crate::kernels::{Activation, Attention, Rotation, Segment};

/// The score of a position that a query does not see: its weight is 0. Shaders need not know infinity.
const UNSEEN: f32 = -1e30;

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
    let heads = |from: usize, count: usize, norm: Option<&Tensor<1>>| {
        let x = qkv.clone().slice([0..rows, from * size..(from + count) * size]).reshape([rows, count, size]);
        let x = match norm.zip(norms) {
            Some((weight, HeadNorms { epsilon, .. })) => rms_norm(x, weight.clone(), *epsilon),
            None => x,
        };
        mix(rotate(x, pass.rotation))
    };
    let q = heads(0, queries, norms.map(|norms| &norms.queries));
    let k = heads(queries, kv, norms.map(|norms| &norms.keys)).reshape([rows, kv * size]);
    let v = qkv.clone().slice([0..rows, width - kv * size..width]);
    cache.write(&slots(pass.segments), k, v);

    // Joined by sums, see `failure`: a part without contents must leave the whole without, as it does not in `cat`.
    let mut parts = pass.segments.iter().map(|segment| {
        let part = segment.row..segment.row + segment.rows;
        (part.clone(), attend(attention, q.clone().slice([part]), segment, cache))
    });
    match (parts.next(), pass.segments.len()) {
        (Some((_, whole)), 1) => whole,
        (first, _) => first
            .into_iter()
            .chain(parts)
            .fold(Tensor::zeros([rows, queries * size], (&qkv.device(), DType::F32)), |whole, (part, out)| {
                scatter(whole, &part.collect::<Vec<_>>(), out, IndexingUpdateOp::Add)
            }),
    }
}

/// The attention of a segment's queries, `[rows, queries, size]`, over all of its sequence's positions.
fn attend(attention: Attention, q: Tensor<3>, segment: &Segment, cache: &StockCache) -> Tensor<2> {
    let Heads { queries, kv, size } = attention.heads;
    let device = q.device();
    let (group, rows, start) = (queries / kv, segment.rows, segment.start);
    let end = start + rows;
    let whole = Segment { row: 0, rows: end, start: 0, pages: segment.pages.clone() };

    // [kv, positions, size]; the query heads of a KV head stand below each other: [kv, group * rows, size].
    let slots = indices(&slots(&[whole]), &device);
    let cached = |cache: &Tensor<2>| {
        cache.clone().select(0, slots.clone()).cast(DType::F32).reshape([end, kv, size]).swap_dims(0, 1)
    };
    let q = q.swap_dims(0, 1).reshape([kv, group * rows, size]);
    let scores = q.matmul(cached(&cache.keys).swap_dims(1, 2)) * attention.scale;

    let shape = [kv, group, rows, end];
    let position = Tensor::<1, Int>::arange(0..end as i64, &device).reshape([1, 1, 1, end]).expand(shape);
    let row = Tensor::<1, Int>::arange(start as i64..end as i64, &device).reshape([1, 1, rows, 1]).expand(shape);
    let mut unseen = position.clone().greater(row.clone());
    if let Some(window) = attention.window {
        unseen = unseen.bool_or(position.lower_equal(row - window as i64));
    }
    let weights = activation::softmax(scores.reshape(shape).mask_fill(unseen, UNSEEN), 3);

    let weights = weights.reshape([kv, group * rows, end]);
    let out = weights.matmul(cached(&cache.values)).reshape([queries, rows, size]).swap_dims(0, 1);
    out.reshape([rows, queries * size])
}

/// Rotates every head of `x` (`[rows, heads, size]`): with `a` the first half of the rotated values and `b` the second,
/// `(a cos - b sin, b cos + a sin)`; each value is turned with its partner in the other half.
fn rotate(x: Tensor<3>, rotation: &Rotation) -> Tensor<3> {
    let [rows, _, size] = x.dims();
    let (pairs, device) = (rotation.pairs, x.device());
    let turn = |values: &[f32], first: f32, rest: f32| {
        let row = |row: &[f32]| {
            let halves = row.iter().map(|value| first * value).chain(row.iter().copied());
            halves.chain(std::iter::repeat_n(rest, size - 2 * pairs)).collect::<Vec<f32>>()
        };
        let values: Vec<f32> = values.chunks_exact(pairs).flat_map(row).collect();
        Tensor::<3>::from_data(TensorData::new(values, [rows, 1, size]), &device)
    };
    let partners: Vec<usize> = (pairs..2 * pairs).chain(0..pairs).chain(2 * pairs..size).collect();
    let partner = x.clone().select(2, indices(&partners, &device));
    x * turn(&rotation.cos, 1.0, 1.0) + partner * turn(&rotation.sin, -1.0, 0.0)
}

/// Multiplies every head of `x` with the Hadamard matrix of [`crate::kernels`], a power-of-two block at a time.
fn mix(x: Tensor<3>) -> Tensor<3> {
    let [rows, heads, size] = x.dims();
    let block = 1 << size.trailing_zeros();
    let scale = 1.0 / (block as f32).sqrt();
    let values = (0..block * block).map(|at: usize| {
        let sign = ((at / block) & (at % block)).count_ones() % 2;
        if sign == 0 { scale } else { -scale }
    });
    let matrix = Tensor::<2>::from_data(TensorData::new(values.collect::<Vec<f32>>(), [block, block]), &x.device());
    x.reshape([rows * heads * size / block, block]).matmul(matrix).reshape([rows, heads, size])
}
