//! Rows of activations in 8 bits.
//!
//! Blocks of 32 values share a scale, the largest magnitude over 127. The two largest values of a row are kept apart in
//! f32: a single large value would take the precision from its whole block, and transformers have such values in nearly
//! every row (Dettmers et al., "LLM.int8()", 2022). Keeping two costs some 5 % of a product and lowers the divergence from the
//! exact mode by a factor of 2.4 (SmolLM2; four would give 2.9).

use super::TINY;
use super::isa::{Isa, Kernel, LANES};
use super::packed::BLOCK;

/// Values of a row that are kept apart.
pub(super) const OUTLIERS: usize = 2;

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Outlier {
    pub(super) input: usize,
    pub(super) value: f32,
}

/// Quantized rows; a value is `scale * q`, or an outlier, whose `q` is 0.
pub(super) struct Activations {
    inputs: usize,
    /// Inputs that share one of `sums`: the group of the weights.
    group: usize,
    /// Signed, four inputs each: `[rows][inputs / 4]`.
    quads: Vec<[u8; 4]>,
    /// `[rows][inputs / 32]`.
    scales: Vec<f32>,
    /// Sum of the values of each group without outliers, which the offset of the weights is multiplied with:
    /// `[rows][inputs / group]`.
    sums: Vec<f32>,
    /// `[rows]`.
    outliers: Vec<[Outlier; OUTLIERS]>,
}

/// One row of [`Activations`].
#[derive(Clone, Copy, Default)]
pub(super) struct Row<'a> {
    pub(super) quads: &'a [[u8; 4]],
    pub(super) scales: &'a [f32],
    pub(super) sums: &'a [f32],
    pub(super) outliers: &'a [Outlier],
}

/// A row to be written.
pub(super) struct RowMut<'a> {
    group: usize,
    quads: &'a mut [[u8; 4]],
    scales: &'a mut [f32],
    sums: &'a mut [f32],
    outliers: &'a mut [Outlier; OUTLIERS],
}

impl Activations {
    pub(super) fn new(rows: usize, inputs: usize, group: usize) -> Activations {
        Activations {
            inputs,
            group,
            quads: vec![[0; 4]; rows * inputs / 4],
            scales: vec![0.0; rows * inputs / BLOCK],
            sums: vec![0.0; rows * inputs / group],
            outliers: vec![Default::default(); rows],
        }
    }

    #[inline(always)]
    pub(super) fn row(&self, row: usize) -> Row<'_> {
        let part = |len: usize| row * len..(row + 1) * len;
        Row {
            quads: &self.quads[part(self.inputs / 4)],
            scales: &self.scales[part(self.inputs / BLOCK)],
            sums: &self.sums[part(self.inputs / self.group)],
            outliers: &self.outliers[row],
        }
    }

    pub(super) fn rows_mut(&mut self) -> impl Iterator<Item = RowMut<'_>> {
        let group = self.group;
        let numbers =
            self.scales.chunks_exact_mut(self.inputs / BLOCK).zip(self.sums.chunks_exact_mut(self.inputs / group));
        let rows = self.quads.chunks_exact_mut(self.inputs / 4).zip(numbers).zip(&mut self.outliers);
        rows.map(move |((quads, (scales, sums)), outliers)| RowMut { group, quads, scales, sums, outliers })
    }
}

/// Quantizes `values`, `[inputs]`, of which it takes the outliers out.
pub(super) struct Quantize<'a> {
    pub(super) values: &'a mut [f32],
    pub(super) to: RowMut<'a>,
}

impl Kernel for Quantize<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Quantize { values, to } = self;
        // The scales are the largest magnitudes first.
        for (largest, block) in to.scales.iter_mut().zip(values.as_chunks::<BLOCK>().0) {
            *largest = magnitude(isa, block);
        }
        for outlier in to.outliers.iter_mut() {
            let mut block = 0;
            for (index, largest) in to.scales.iter().enumerate() {
                if *largest > to.scales[block] {
                    block = index;
                }
            }
            let (blocks, _) = values.as_chunks_mut::<BLOCK>();
            let at = blocks[block].iter().position(|value| value.abs() == to.scales[block]).unwrap_or(0);
            *outlier = Outlier { input: block * BLOCK + at, value: blocks[block][at] };
            blocks[block][at] = 0.0;
            to.scales[block] = magnitude(isa, &blocks[block]);
        }
        let (quads, _) = to.quads.as_chunks_mut::<{ BLOCK / 4 }>();
        for ((block, scale), quads) in values.as_chunks::<BLOCK>().0.iter().zip(to.scales.iter_mut()).zip(quads) {
            let inverse = isa.splat(if *scale > TINY { 127.0 / *scale } else { 0.0 });
            let (bytes, _) = quads.as_flattened_mut().as_chunks_mut::<LANES>();
            for (vector, bytes) in block.as_chunks::<LANES>().0.iter().zip(bytes) {
                isa.store_signed(isa.mul(isa.load(vector), inverse), bytes);
            }
            *scale /= 127.0;
        }
        let group = to.group;
        for (index, (sum, quads)) in to.sums.iter_mut().zip(to.quads.chunks_exact(group / 4)).enumerate() {
            let bytes = quads.as_flattened().iter();
            let quants: i32 = bytes.map(|byte| i32::from(*byte as i8)).sum();
            *sum = quants as f32 * to.scales[index * group / BLOCK];
        }
    }
}

/// The largest magnitude.
#[inline(always)]
fn magnitude<I: Isa>(isa: I, block: &[f32; BLOCK]) -> f32 {
    let zero = isa.splat(0.0);
    let mut largest = zero;
    for vector in block.as_chunks::<LANES>().0 {
        let v = isa.load(vector);
        largest = isa.max(isa.max(v, isa.sub(zero, v)), largest);
    }
    isa.highest_lane(largest)
}
