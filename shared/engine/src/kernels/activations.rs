//! Rows of activations in 8 bits.
//!
//! Blocks of 32 values share a scale, the largest magnitude over 127. The two largest values of a row are kept apart in
//! f32: a single large value would take the precision from its whole block, and transformers have such values in nearly
//! every row (Dettmers et al., "LLM.int8()", 2022). Keeping two costs some 5 % of a product and lowers the divergence from the
//! exact mode by a factor of 2.4 (SmolLM2; four would give 2.9).

use std::ops::Range;

use super::TINY;
use super::isa::{Isa, Kernel, LANES};
use super::packed::BLOCK;
use super::tile::split;

/// Values of a row that are kept apart.
pub(super) const OUTLIERS: usize = 2;

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Outlier {
    pub(super) input: usize,
    pub(super) value: f32,
}

/// Quantized rows; a value is `scale * q`, or an outlier, whose `q` is 0.
///
/// Rows lie by tiles, those that are multiplied together, [`split`] says which; inside a tile the rows' entries alternate, so
/// that a product reads one stream.
pub(super) struct Activations {
    rows: usize,
    inputs: usize,
    /// Inputs that share one of `sums`: the group of the weights.
    group: usize,
    /// Signed, four inputs each: `[inputs / 4][rows of the tile]` for each tile.
    quads: Vec<[u8; 4]>,
    /// `[inputs / 32][rows of the tile]`.
    scales: Vec<f32>,
    /// Sum of the values of each group without outliers, which the offset of the weights is multiplied with:
    /// `[inputs / group][rows of the tile]`.
    sums: Vec<f32>,
    /// `[rows]`.
    outliers: Vec<[Outlier; OUTLIERS]>,
}

/// The rows of a tile, one to six.
#[derive(Clone, Copy)]
pub(super) struct Tile<'a> {
    pub(super) quads: &'a [[u8; 4]],
    pub(super) scales: &'a [f32],
    pub(super) sums: &'a [f32],
    pub(super) outliers: &'a [[Outlier; OUTLIERS]],
}

/// A tile to be written.
pub(super) struct TileMut<'a> {
    /// Which rows it is.
    pub(super) rows: Range<usize>,
    group: usize,
    quads: &'a mut [[u8; 4]],
    scales: &'a mut [f32],
    sums: &'a mut [f32],
    outliers: &'a mut [[Outlier; OUTLIERS]],
}

impl Activations {
    pub(super) fn new(rows: usize, inputs: usize, group: usize) -> Activations {
        Activations {
            rows,
            inputs,
            group,
            quads: vec![[0; 4]; rows * inputs / 4],
            scales: vec![0.0; rows * inputs / BLOCK],
            sums: vec![0.0; rows * inputs / group],
            outliers: vec![Default::default(); rows],
        }
    }

    /// The tiles' rows.
    pub(super) fn tiles(&self) -> impl Iterator<Item = Range<usize>> {
        split(self.rows)
    }

    /// The tile of these rows, which must be one of [`Self::tiles`].
    #[inline(always)]
    pub(super) fn tile(&self, rows: Range<usize>) -> Tile<'_> {
        let part = |len: usize| rows.start * len..rows.end * len;
        Tile {
            quads: &self.quads[part(self.inputs / 4)],
            scales: &self.scales[part(self.inputs / BLOCK)],
            sums: &self.sums[part(self.inputs / self.group)],
            outliers: &self.outliers[rows.clone()],
        }
    }

    pub(super) fn tiles_mut(&mut self) -> Vec<TileMut<'_>> {
        let Activations { rows, inputs, group, .. } = *self;
        let (mut quads, mut scales) = (&mut self.quads[..], &mut self.scales[..]);
        let (mut sums, mut outliers) = (&mut self.sums[..], &mut self.outliers[..]);
        let tile = |rows: Range<usize>| TileMut {
            group,
            quads: quads.split_off_mut(..rows.len() * inputs / 4).unwrap_or_default(),
            scales: scales.split_off_mut(..rows.len() * inputs / BLOCK).unwrap_or_default(),
            sums: sums.split_off_mut(..rows.len() * inputs / group).unwrap_or_default(),
            outliers: outliers.split_off_mut(..rows.len()).unwrap_or_default(),
            rows,
        };
        split(rows).map(tile).collect()
    }
}

/// Quantizes `values`, `[inputs]`, of which it takes the outliers out, to row `row` of a tile.
pub(super) struct Quantize<'a, 'b> {
    pub(super) values: &'a mut [f32],
    pub(super) row: usize,
    pub(super) to: &'a mut TileMut<'b>,
}

impl Kernel for Quantize<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Quantize { values, row, to } = self;
        let count = to.outliers.len();
        // The scales are the largest magnitudes first.
        for (largest, block) in to.scales[row..].iter_mut().step_by(count).zip(values.as_chunks::<BLOCK>().0) {
            *largest = magnitude(isa, block);
        }
        for outlier in to.outliers[row].iter_mut() {
            let (mut block, mut largest) = (0, 0.0);
            for (index, found) in to.scales[row..].iter().step_by(count).enumerate() {
                if *found > largest {
                    (block, largest) = (index, *found);
                }
            }
            let (blocks, _) = values.as_chunks_mut::<BLOCK>();
            let at = blocks[block].iter().position(|value| value.abs() == largest).unwrap_or(0);
            *outlier = Outlier { input: block * BLOCK + at, value: blocks[block][at] };
            blocks[block][at] = 0.0;
            to.scales[block * count + row] = magnitude(isa, &blocks[block]);
        }
        let group = to.group;
        for (index, block) in values.as_chunks::<BLOCK>().0.iter().enumerate() {
            let scale = &mut to.scales[index * count + row];
            let inverse = isa.splat(if *scale > TINY { 127.0 / *scale } else { 0.0 });
            *scale /= 127.0;
            let mut quants = [0; BLOCK];
            for (vector, quants) in block.as_chunks::<LANES>().0.iter().zip(quants.as_chunks_mut::<LANES>().0) {
                isa.store_signed(isa.mul(isa.load(vector), inverse), quants);
            }
            let quads = &mut to.quads[index * (BLOCK / 4) * count..(index + 1) * (BLOCK / 4) * count];
            for (quad, quants) in quads.iter_mut().skip(row).step_by(count).zip(quants.as_chunks::<4>().0) {
                *quad = *quants;
            }
            for (part, quants) in quants.chunks_exact(group).enumerate() {
                let sum: i32 = quants.iter().map(|byte| i32::from(*byte as i8)).sum();
                to.sums[(index * BLOCK / group + part) * count + row] = sum as f32 * *scale;
            }
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
