//! Rows of activations in 8 bits.
//!
//! Blocks of 32 values share a scale, the largest magnitude over 127. The two largest values of a row are kept apart in
//! f32: a single large value would take the precision from its whole block, and transformers have such values in nearly
//! every row (Dettmers et al., "LLM.int8()", 2022). Keeping two costs some 5 % of a product and lowers the divergence from the
//! exact mode by a factor of 2.4 (SmolLM2; four would give 2.9).

use std::ops::Range;

use super::isa::{Isa, Kernel, LANES};
use super::packed::{BLOCK, Quantized};
use super::tile::split;
use super::vectors::{ROUND, TINY, sum_lanes};

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
    /// What they are multiplied with.
    weights: Quantized,
    /// Signed, four inputs each: `[inputs / 4][rows of the tile]` for each tile.
    quads: Vec<[u8; 4]>,
    /// `[inputs / 32][rows of the tile]`.
    scales: Vec<f32>,
    /// Sum of the values of each of the weights' groups without outliers, which their offset is multiplied with, if they
    /// have offsets: `[inputs / group][rows of the tile]`.
    sums: Vec<f32>,
    /// Where a group's product of integers starts: minus the weights' zero, if they have one, times the sum of its quants.
    starts: Vec<i32>,
    /// `[rows]`.
    outliers: Vec<[Outlier; OUTLIERS]>,
}

/// The rows of a tile, one to six.
#[derive(Clone, Copy)]
pub(super) struct Tile<'a> {
    pub(super) quads: &'a [[u8; 4]],
    pub(super) scales: &'a [f32],
    pub(super) sums: &'a [f32],
    pub(super) starts: &'a [i32],
    pub(super) outliers: &'a [[Outlier; OUTLIERS]],
}

/// A tile to be written.
pub(super) struct TileMut<'a> {
    /// Which rows it is.
    pub(super) rows: Range<usize>,
    weights: Quantized,
    quads: &'a mut [[u8; 4]],
    scales: &'a mut [f32],
    sums: &'a mut [f32],
    starts: &'a mut [i32],
    outliers: &'a mut [[Outlier; OUTLIERS]],
}

impl Activations {
    pub(super) fn new(rows: usize, inputs: usize, weights: Quantized) -> Activations {
        let groups = rows * inputs / weights.group;
        Activations {
            rows,
            inputs,
            weights,
            quads: vec![[0; 4]; rows * inputs / 4],
            scales: vec![0.0; rows * inputs / BLOCK],
            sums: vec![0.0; groups],
            starts: vec![0; groups],
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
            sums: &self.sums[part(self.inputs / self.weights.group)],
            starts: &self.starts[part(self.inputs / self.weights.group)],
            outliers: &self.outliers[rows.clone()],
        }
    }

    pub(super) fn tiles_mut(&mut self) -> Vec<TileMut<'_>> {
        let Activations { rows, inputs, weights, .. } = *self;
        let (mut quads, mut scales) = (&mut self.quads[..], &mut self.scales[..]);
        let (mut sums, mut starts) = (&mut self.sums[..], &mut self.starts[..]);
        let mut outliers = &mut self.outliers[..];
        let tile = |rows: Range<usize>| TileMut {
            weights,
            quads: quads.split_off_mut(..rows.len() * inputs / 4).unwrap_or_default(),
            scales: scales.split_off_mut(..rows.len() * inputs / BLOCK).unwrap_or_default(),
            sums: sums.split_off_mut(..rows.len() * inputs / weights.group).unwrap_or_default(),
            starts: starts.split_off_mut(..rows.len() * inputs / weights.group).unwrap_or_default(),
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
    /// Scratch.
    pub(super) largest: &'a mut Vec<f32>,
}

impl Kernel for Quantize<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Quantize { values, row, to, largest } = self;
        let count = to.outliers.len();
        let (blocks, _) = values.as_chunks_mut::<BLOCK>();
        let finite = is_finite(isa, blocks);
        largest.clear();
        for block in blocks.iter() {
            largest.push(magnitude(isa, block));
        }
        for outlier in to.outliers[row].iter_mut() {
            let (mut block, mut highest) = (0, 0.0);
            for (index, found) in largest.iter().enumerate() {
                if *found > highest {
                    (block, highest) = (index, *found);
                }
            }
            let mut at = 0;
            while at + 1 < BLOCK && blocks[block][at].abs() != highest {
                at += 1;
            }
            *outlier = Outlier { input: block * BLOCK + at, value: blocks[block][at] };
            blocks[block][at] = 0.0;
            largest[block] = magnitude(isa, &blocks[block]);
        }
        let group = to.weights.group;
        let zero = -f32::from(to.weights.zero.unwrap_or(0));
        let scales = to.scales.chunks_exact_mut(count);
        let quads = to.quads.chunks_exact_mut(BLOCK / 4 * count);
        let sums = to.sums.chunks_exact_mut(BLOCK / group * count);
        let starts = to.starts.chunks_exact_mut(BLOCK / group * count);
        let parts = scales.zip(quads).zip(sums.zip(starts));
        for ((block, largest), ((scales, quads), (sums, starts))) in blocks.iter().zip(largest).zip(parts) {
            let inverse = isa.splat(if *largest > TINY { 127.0 / *largest } else { 0.0 });
            // Bytes know no numbers but finite ones: a row with another becomes none at all, instead of some answer.
            let scale = if finite { *largest / 127.0 } else { f32::NAN };
            scales[row] = scale;
            let mut quants = [0; BLOCK];
            let mut rounded = [isa.splat(0.0); 2];
            let halves = block.as_chunks::<LANES>().0.iter().zip(quants.as_chunks_mut::<LANES>().0).zip(&mut rounded);
            for ((vector, quants), rounded) in halves {
                let scaled = isa.mul(isa.load(vector), inverse);
                isa.store_signed(scaled, quants);
                *rounded = isa.sub(isa.add(scaled, isa.splat(ROUND)), isa.splat(ROUND));
            }
            for (quad, quants) in quads.chunks_exact_mut(count).zip(quants.as_chunks::<4>().0) {
                quad[row] = *quants;
            }
            // Sums of integers, so exact in any order.
            if group == BLOCK {
                let sum = sum_lanes(isa, isa.add(rounded[0], rounded[1]));
                sums[row] = sum * scale;
                starts[row] = (sum * zero) as i32;
            } else {
                for (part, rounded) in rounded.into_iter().enumerate() {
                    let sum = sum_lanes(isa, rounded);
                    sums[part * count + row] = sum * scale;
                    starts[part * count + row] = (sum * zero) as i32;
                }
            }
        }
    }
}

/// Whether all values are numbers, and none infinite: only then their products with 0 add up to 0.
#[inline(always)]
fn is_finite<I: Isa>(isa: I, blocks: &[[f32; BLOCK]]) -> bool {
    let zero = isa.splat(0.0);
    let mut sum = zero;
    for block in blocks {
        for vector in block.as_chunks::<LANES>().0 {
            sum = isa.fma(isa.load(vector), zero, sum);
        }
    }
    sum_lanes(isa, sum) == 0.0
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
