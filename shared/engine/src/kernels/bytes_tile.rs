//! Products of bytes: up to six rows times 32 columns, from which the fast mode's linear layers and attention are made.

#![expect(clippy::needless_range_loop, reason = "rows and halves index several arrays at once")]

use super::activations::Tile;
use super::isa::{Isa, LANES, Line};
use super::packed::{BLOCK, PANEL, Panel};
use super::tile::ROWS;

// No `array::map` here: std's closures are compiled without the instruction set, and called.

/// Adds to `sums`, over quads from the rows' `first` one on, the products of `M` rows with 32 columns, as integers: exact,
/// so in any order.
///
/// Two lines a quad hold the columns. `ROWS_UNSIGNED` tells which of the factors are unsigned: those of the rows, or of the
/// columns; the others are signed.
#[inline(always)]
fn add_products<I: Isa, const M: usize, const ROWS_UNSIGNED: bool>(
    isa: I,
    rows: &[&[[u8; 4]]; M],
    first: usize,
    lines: &[[Line; 2]],
    mut sums: [[I::I; 2]; M],
) -> [[I::I; 2]; M] {
    let (steps, rest) = lines.as_chunks::<STEP>();
    let mut quads: [&[[[u8; 4]; STEP]]; M] = [&[]; M];
    let mut last: [&[[u8; 4]]; M] = [&[]; M];
    for r in 0..M {
        (quads[r], last[r]) = rows[r][first..first + lines.len()].as_chunks();
    }
    for (step, lines) in steps.iter().enumerate() {
        for k in 0..STEP {
            let columns = [isa.load_bytes(&lines[k][0]), isa.load_bytes(&lines[k][1])];
            for r in 0..M {
                sums[r] = add_product::<I, ROWS_UNSIGNED>(isa, isa.splat_bytes(quads[r][step][k]), columns, sums[r]);
            }
        }
    }
    for (k, columns) in rest.iter().enumerate() {
        let columns = [isa.load_bytes(&columns[0]), isa.load_bytes(&columns[1])];
        for r in 0..M {
            sums[r] = add_product::<I, ROWS_UNSIGNED>(isa, isa.splat_bytes(last[r][k]), columns, sums[r]);
        }
    }
    sums
}

/// Quads that are added without a look at their number.
const STEP: usize = 8;

#[inline(always)]
fn add_product<I: Isa, const ROW_UNSIGNED: bool>(isa: I, row: I::B, columns: [I::B; 2], sums: [I::I; 2]) -> [I::I; 2] {
    let mut to = sums;
    for n in 0..2 {
        let (unsigned, signed) = if ROW_UNSIGNED { (row, columns[n]) } else { (columns[n], row) };
        to[n] = isa.dot(sums[n], unsigned, signed);
    }
    to
}

/// Up to [`ROWS`] rows times a panel: `out[r][c] = sum over k of x[r][k] weights[k][c]`.
///
/// A sum is, in this order: group by group the scaled integer sum and, unless it is part of that, the offset's share, then
/// the outliers.
#[inline(always)]
pub(super) fn quantized_tile<I: Isa>(isa: I, x: Tile<'_>, panel: Panel<'_>, out: &mut [[f32; PANEL]; ROWS]) {
    match (panel.group, panel.zero.is_some()) {
        (32, false) => rows::<I, 8, false>(isa, x, panel, out),
        (32, true) => rows::<I, 8, true>(isa, x, panel, out),
        (_, false) => rows::<I, 4, false>(isa, x, panel, out),
        (_, true) => rows::<I, 4, true>(isa, x, panel, out),
    }
}

#[inline(always)]
fn rows<I: Isa, const QUADS: usize, const ZERO: bool>(isa: I, x: Tile<'_>, panel: Panel<'_>, out: &mut [[f32; PANEL]]) {
    match x.outliers.len() {
        1 => quantized::<I, 1, QUADS, ZERO>(isa, x, panel, out),
        2 => quantized::<I, 2, QUADS, ZERO>(isa, x, panel, out),
        3 => quantized::<I, 3, QUADS, ZERO>(isa, x, panel, out),
        4 => quantized::<I, 4, QUADS, ZERO>(isa, x, panel, out),
        5 => quantized::<I, 5, QUADS, ZERO>(isa, x, panel, out),
        _ => quantized::<I, ROWS, QUADS, ZERO>(isa, x, panel, out),
    }
}

/// A tile of `M` rows; a group is `QUADS` quads, and has no offset but starts where [`Tile::starts`] says if the weights have
/// a `ZERO`.
#[inline(always)]
fn quantized<I: Isa, const M: usize, const QUADS: usize, const ZERO: bool>(
    isa: I,
    x: Tile<'_>,
    panel: Panel<'_>,
    out: &mut [[f32; PANEL]],
) {
    let (quads, _) = x.quads.as_chunks::<M>();
    let (x_scales, _) = x.scales.as_chunks::<M>();
    let x_sums = x.sums.as_chunks::<M>().0.iter().zip(x.starts.as_chunks::<M>().0);
    let (lines, _) = panel.lines.as_chunks::<2>();

    let mut totals = [[isa.splat(0.0); 2]; M];
    let groups = quads.as_chunks::<QUADS>().0.iter().zip(lines.as_chunks::<QUADS>().0).zip(x_sums);
    let numbers = panel.scales.iter().zip(panel.offsets);
    for (group, (((quads, lines), (x_sums, starts)), (scales, offsets))) in groups.zip(numbers).enumerate() {
        let mut found = [[isa.splat_int(0); 2]; M];
        if ZERO {
            for r in 0..M {
                found[r] = [isa.splat_int(starts[r]); 2];
            }
        }
        for k in 0..QUADS {
            let columns = [isa.load_bytes(&lines[k][0]), isa.load_bytes(&lines[k][1])];
            for r in 0..M {
                let row = isa.splat_bytes(quads[k][r]);
                for n in 0..2 {
                    found[r][n] = isa.dot(found[r][n], columns[n], row);
                }
            }
        }
        let x_scales = &x_scales[4 * QUADS * group / BLOCK];
        for n in 0..2 {
            let scales = isa.load(&scales.as_chunks::<LANES>().0[n]);
            let offsets = isa.load(&offsets.as_chunks::<LANES>().0[n]);
            for r in 0..M {
                let scales = isa.mul(scales, isa.splat(x_scales[r]));
                totals[r][n] = isa.fma(isa.to_floats(found[r][n]), scales, totals[r][n]);
                if !ZERO {
                    totals[r][n] = isa.fma(offsets, isa.splat(x_sums[r]), totals[r][n]);
                }
            }
        }
    }
    for r in 0..M {
        for outlier in &x.outliers[r] {
            let (group, quad) = (outlier.input / (4 * QUADS), &lines[outlier.input / 4]);
            for n in 0..2 {
                let scales = isa.load(&panel.scales[group].as_chunks::<LANES>().0[n]);
                let offsets = isa.load(&panel.offsets[group].as_chunks::<LANES>().0[n]);
                let quants = isa.byte_of_lanes(isa.load_bytes(&quad[n]), outlier.input % 4);
                totals[r][n] = isa.fma(isa.splat(outlier.value), isa.fma(scales, quants, offsets), totals[r][n]);
            }
        }
        for n in 0..2 {
            isa.store(totals[r][n], &mut out[r].as_chunks_mut::<LANES>().0[n]);
        }
    }
}

/// A query of attention on bytes.
#[derive(Clone, Copy, Default)]
pub(super) struct Query<'a> {
    /// Signed, four values each.
    pub(super) quads: &'a [[u8; 4]],
    /// What the products are too high by, since the keys are unsigned: 128 times the sum of the quants.
    pub(super) excess: i32,
}

/// The products of up to [`ROWS`] queries with 32 keys, times the keys' scales, to `out` from `at` on, one slice a query.
#[inline(always)]
pub(super) fn scores_tile<I: Isa>(
    isa: I,
    queries: &[Query<'_>],
    keys: &[Line],
    scales: &[f32],
    out: &mut [&mut [f32]; ROWS],
    at: usize,
) {
    match queries.len() {
        1 => scores::<I, 1>(isa, queries, keys, scales, out, at),
        2 => scores::<I, 2>(isa, queries, keys, scales, out, at),
        3 => scores::<I, 3>(isa, queries, keys, scales, out, at),
        4 => scores::<I, 4>(isa, queries, keys, scales, out, at),
        5 => scores::<I, 5>(isa, queries, keys, scales, out, at),
        _ => scores::<I, ROWS>(isa, queries, keys, scales, out, at),
    }
}

#[inline(always)]
fn scores<I: Isa, const M: usize>(
    isa: I,
    queries: &[Query<'_>],
    keys: &[Line],
    scales: &[f32],
    out: &mut [&mut [f32]; ROWS],
    at: usize,
) {
    let mut quads: [&[[u8; 4]]; M] = [&[]; M];
    let mut start = [[isa.splat_int(0); 2]; M];
    for r in 0..M {
        quads[r] = queries[r].quads;
        start[r] = [isa.splat_int(-queries[r].excess); 2];
    }
    let found = add_products::<I, M, false>(isa, &quads, 0, keys.as_chunks().0, start);
    let (scales, _) = scales.as_chunks::<LANES>();
    for n in 0..2 {
        let scales = isa.load(&scales[n]);
        for r in 0..M {
            let (out, _) = out[r][at..at + PANEL].as_chunks_mut::<LANES>();
            isa.store(isa.mul(isa.to_floats(found[r][n]), scales), &mut out[n]);
        }
    }
}

/// The weights of a query for some pages.
#[derive(Clone, Copy, Default)]
pub(super) struct Weights<'a> {
    /// Unsigned, of four positions each, 16 quads a page.
    pub(super) quads: &'a [[u8; 4]],
    /// What the products are worth.
    pub(super) scale: f32,
    /// What the totals so far are multiplied with.
    pub(super) keep: f32,
}

/// Weighs 32 of a head's values in some pages for up to [`ROWS`] queries: `totals[r] = totals[r] keep + scale * sum`.
/// `values` yields a page's lines.
#[inline(always)]
pub(super) fn weigh_tile<'a, I: Isa>(
    isa: I,
    weights: &[Weights<'_>],
    values: impl Iterator<Item = &'a [Line]>,
    totals: &mut [[f32; PANEL]],
) {
    match weights.len() {
        1 => weigh::<I, 1>(isa, weights, values, totals),
        2 => weigh::<I, 2>(isa, weights, values, totals),
        3 => weigh::<I, 3>(isa, weights, values, totals),
        4 => weigh::<I, 4>(isa, weights, values, totals),
        5 => weigh::<I, 5>(isa, weights, values, totals),
        _ => weigh::<I, ROWS>(isa, weights, values, totals),
    }
}

#[inline(always)]
fn weigh<'a, I: Isa, const M: usize>(
    isa: I,
    weights: &[Weights<'_>],
    values: impl Iterator<Item = &'a [Line]>,
    totals: &mut [[f32; PANEL]],
) {
    let mut quads: [&[[u8; 4]]; M] = [&[]; M];
    for r in 0..M {
        quads[r] = weights[r].quads;
    }
    let mut found = [[isa.splat_int(0); 2]; M];
    for (page, lines) in values.enumerate() {
        let (lines, _) = lines.as_chunks::<2>();
        found = add_products::<I, M, true>(isa, &quads, page * lines.len(), lines, found);
    }
    for r in 0..M {
        let (keep, scale) = (isa.splat(weights[r].keep), isa.splat(weights[r].scale));
        let (totals, _) = totals[r].as_chunks_mut::<LANES>();
        for n in 0..2 {
            let kept = isa.mul(isa.load(&totals[n]), keep);
            isa.store(isa.fma(isa.to_floats(found[r][n]), scale, kept), &mut totals[n]);
        }
    }
}
