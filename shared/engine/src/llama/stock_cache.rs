//! The KV cache of one layer on devices without kernels of their own.

use burn::tensor::{DType, Device, IndexingUpdateOp, Int, Tensor, TensorData};

use crate::kernels::Segment;

/// Both `[slots, kv * size]`, in bf16 or what [`kv_dtype`] takes for it.
pub(super) struct StockCache {
    pub(super) keys: Tensor<2>,
    pub(super) values: Tensor<2>,
}

impl StockCache {
    /// Writes rows of keys and values, `[slots, kv * size]`, rounded to bf16.
    pub(super) fn write(&mut self, slots: &[usize], keys: Tensor<2>, values: Tensor<2>) {
        for (to, new) in [(&mut self.keys, keys), (&mut self.values, values)] {
            let new = match to.dtype() {
                DType::F32 => round(new),
                dtype => new.cast(dtype),
            };
            to.inplace(|to| scatter(to, slots, new, IndexingUpdateOp::Assign));
        }
    }
}

/// What a cache on `device` is kept in: bf16, or f32 values that are bf16 numbers where the device can't compute in bf16.
pub(super) fn kv_dtype(device: &Device) -> DType {
    if device.supports_dtype(DType::BF16) { DType::BF16 } else { DType::F32 }
}

/// The slots of the segments' rows, in their order.
pub(super) fn slots(segments: &[Segment]) -> Vec<usize> {
    let runs = segments.iter().flat_map(Segment::runs);
    runs.flat_map(|(slot, rows)| slot..slot + rows.len()).collect()
}

/// Rounds f32 values to bf16 numbers, to nearest, ties to even, below 2^111.
///
/// `x + 2^16 x` is of 16 more bits than `x`, so its rounding takes from `x` what bf16 has no room for. That the three
/// operations are kernels of their own, not fused, is what keeps a compiler from simplifying them.
fn round(x: Tensor<2>) -> Tensor<2> {
    let large = x.clone() * 65_536.0;
    (x + large.clone()) - large
}

/// Puts rows of values in the place of those of `to`, or adds them.
pub(super) fn scatter(to: Tensor<2>, rows: &[usize], values: Tensor<2>, update: IndexingUpdateOp) -> Tensor<2> {
    let rows = indices(rows, &to.device()).unsqueeze_dim::<2>(1);
    to.scatter_nd(rows, values, update)
}

/// Places as a tensor.
pub(super) fn indices(values: &[usize], device: &Device) -> Tensor<1, Int> {
    let values: Vec<i64> = values.iter().map(|value| *value as i64).collect();
    let count = values.len();
    Tensor::from_data(TensorData::new(values, [count]), device)
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;

    #[test]
    fn rounding_is_that_of_bf16() {
        // Every value between two bf16 numbers of one exponent and those of the next, ties among them; then other sizes.
        let ties = (0x3f7f_0000u32..0x3f82_0000).step_by(0x80).map(f32::from_bits);
        let sizes = (0u32..1 << 16).map(|i| f32::from_bits(i.wrapping_mul(0x9e37_79b1) % 0x6700_0000 + 0x0100_0000));
        let values: Vec<f32> = ties.chain(sizes).flat_map(|value| [value, -value]).collect();
        let expected: Vec<f32> = values.iter().map(|value| bf16::from_f32(*value).to_f32()).collect();
        let count = values.len();
        let rounded = round(Tensor::from_data(TensorData::new(values, [count, 1]), &Device::flex()));
        assert_eq!(rounded.into_data().as_slice::<f32>().unwrap(), expected);
    }
}
