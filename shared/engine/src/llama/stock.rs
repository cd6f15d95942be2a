//! The operations of [`super::ops`] in Burn's operators, for devices without kernels of their own.

use burn::tensor::{DType, Int, Tensor, activation};

use crate::kernels::Heads;

pub(super) fn rms_norm(x: Tensor<2>, weight: Tensor<1>, epsilon: f32) -> Tensor<2> {
    let mean = (x.clone() * x.clone()).mean_dim(1);
    x * (mean + epsilon).sqrt().recip() * weight.unsqueeze()
}

pub(super) fn gate(x: Tensor<2>) -> Tensor<2> {
    let [rows, width] = x.dims();
    let gates = x.clone().slice([0..rows, 0..width / 2]);
    activation::silu(gates) * x.slice([0..rows, width / 2..width])
}

pub(super) fn attention(
    heads: Heads,
    [q, k, v]: [Tensor<2>; 3],
    keys: Tensor<2>,
    values: Tensor<2>,
    start: usize,
) -> (Tensor<2>, Tensor<2>, Tensor<2>) {
    let device = q.device();
    let Heads { queries, kv, size } = heads;
    let (group, rows, width) = (queries / kv, q.dims()[0], heads.kv_width());
    let end = start + rows;
    let keys = keys.slice_assign([start..end, 0..width], k.cast(DType::BF16));
    let values = values.slice_assign([start..end, 0..width], v.cast(DType::BF16));

    // [kv, positions, size]; the query heads of a KV head stand below each other: [kv, group * rows, size].
    let cached = |cache: &Tensor<2>| {
        cache.clone().slice([0..end, 0..width]).cast(DType::F32).reshape([end, kv, size]).swap_dims(0, 1)
    };
    let q = q.reshape([rows, queries, size]).swap_dims(0, 1).reshape([kv, group * rows, size]);
    let scores = q.matmul(cached(&keys).swap_dims(1, 2)) / (size as f32).sqrt();

    let position = Tensor::<1, Int>::arange(0..end as i64, &device).reshape([1, 1, end]);
    let row = Tensor::<1, Int>::arange(start as i64..end as i64, &device).reshape([1, rows, 1]);
    let future = position.expand([1, rows, end]).greater(row.expand([1, rows, end])).repeat_dim(1, group);
    let weights = activation::softmax(scores.mask_fill(future.expand([kv, group * rows, end]), f32::NEG_INFINITY), 2);

    let out = weights.matmul(cached(&values)).reshape([queries, rows, size]).swap_dims(0, 1);
    (out.reshape([rows, queries * size]), keys, values)
}
