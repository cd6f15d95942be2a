//! Products of bytes: up to six rows times 32 columns, from which the fast mode's linear layers and attention are made.

use super::activations::Row;
use super::isa::{Isa, LANES, Line};
use super::packed::{BLOCK, PANEL, Panel};
use super::tile::ROWS;

// No `array::map` here: std's closures are compiled without the instruction set, and called.

/// The sums over quads, from the rows' `first` one on, of the products of `M` rows with 32 columns, as integers: exact, so in any order.
///
/// Two lines a quad hold the columns. `ROWS_UNSIGNED` tells which of the factors are unsigned: those of the rows, or of the
/// columns; the others are signed.
#[inline(always)]
fn sums<I: Isa, const M: usize, const ROWS_UNSIGNED: bool>(
    isa: I,
    rows: &[&[[u8; 4]]; M],
    first: usize,
    lines: &[[Line; 2]],
) -> [[I::I; 2]; M] {
    let mut quads: [&[[u8; 4]]; M] = [&[]; M];
    for r in 0..M {
        quads[r] = &rows[r][first..first + lines.len()];
    }
    let mut sums = [[isa.zero_ints(); 2]; M];
    for (quad, columns) in lines.iter().enumerate() {
        let columns = [isa.load_bytes(&columns[0]), isa.load_bytes(&columns[1])];
        for r in 0..M {
            let row = isa.splat_bytes(quads[r][quad]);
            for n in 0..2 {
                let (unsigned, signed) = if ROWS_UNSIGNED { (row, columns[n]) } else { (columns[n], row) };
                sums[r][n] = isa.dot(sums[r][n], unsigned, signed);
            }
        }
    }
    sums
}

/// Up to [`ROWS`] rows times a panel: `out[r][c] = sum over k of x[r][k] weights[k][c]`.
///
/// A sum is, in this order: group by group the scaled integer sum and the offset's share, then the outliers.
#[inline(always)]
pub(super) fn quantized_tile<I: Isa>(isa: I, x: &[Row<'_>], panel: Panel<'_>, out: &mut [[f32; PANEL]; ROWS]) {
    match (x.len(), panel.group) {
        (1, 32) => quantized::<I, 1, 32>(isa, x, panel, out),
        (2, 32) => quantized::<I, 2, 32>(isa, x, panel, out),
        (3, 32) => quantized::<I, 3, 32>(isa, x, panel, out),
        (4, 32) => quantized::<I, 4, 32>(isa, x, panel, out),
        (5, 32) => quantized::<I, 5, 32>(isa, x, panel, out),
        (6, 32) => quantized::<I, 6, 32>(isa, x, panel, out),
        // Groups of 16 are rarer; fewer instances of the code serve them.
        (2, _) => quantized::<I, 2, 16>(isa, x, panel, out),
        (4, _) => quantized::<I, 4, 16>(isa, x, panel, out),
        (6, _) => quantized::<I, 6, 16>(isa, x, panel, out),
        _ => {
            for (x, out) in x.chunks(1).zip(out.chunks_mut(1)) {
                quantized::<I, 1, 16>(isa, x, panel, out);
            }
        }
    }
}

#[inline(always)]
fn quantized<I: Isa, const M: usize, const GROUP: usize>(
    isa: I,
    x: &[Row<'_>],
    panel: Panel<'_>,
    out: &mut [[f32; PANEL]],
) {
    let groups = panel.scales.len();
    let mut x_scales: [&[f32]; M] = [&[]; M];
    let mut x_sums: [&[f32]; M] = [&[]; M];
    let mut x_quads: [&[[u8; 4]]; M] = [&[]; M];
    for r in 0..M {
        x_scales[r] = &x[r].scales[..groups * GROUP / BLOCK];
        x_sums[r] = &x[r].sums[..groups];
        x_quads[r] = &x[r].quads[..groups * GROUP / 4];
    }
    let (lines, _) = panel.lines.as_chunks::<2>();
    let lines = &lines[..groups * GROUP / 4];
    let offsets = &panel.offsets[..groups];

    let mut totals = [[isa.splat(0.0); 2]; M];
    for group in 0..groups {
        let first = group * GROUP / 4;
        let found = sums::<I, M, false>(isa, &x_quads, first, &lines[first..first + GROUP / 4]);
        for n in 0..2 {
            let scales = isa.load(&panel.scales[group].as_chunks::<LANES>().0[n]);
            let offsets = isa.load(&offsets[group].as_chunks::<LANES>().0[n]);
            for r in 0..M {
                let scales = isa.mul(scales, isa.splat(x_scales[r][group * GROUP / BLOCK]));
                totals[r][n] = isa.fma(isa.to_floats(found[r][n]), scales, totals[r][n]);
                totals[r][n] = isa.fma(offsets, isa.splat(x_sums[r][group]), totals[r][n]);
            }
        }
    }
    for r in 0..M {
        for outlier in x[r].outliers {
            let (group, quad) = (outlier.input / GROUP, &lines[outlier.input / 4]);
            for n in 0..2 {
                let scales = isa.load(&panel.scales[group].as_chunks::<LANES>().0[n]);
                let offsets = isa.load(&offsets[group].as_chunks::<LANES>().0[n]);
                let quants = isa.byte_of_lanes(isa.load_bytes(&quad[n]), outlier.input % 4);
                totals[r][n] = isa.fma(isa.splat(outlier.value), isa.fma(scales, quants, offsets), totals[r][n]);
            }
        }
        for n in 0..2 {
            isa.store(totals[r][n], &mut out[r].as_chunks_mut::<LANES>().0[n]);
        }
    }
}

/// Integer sums of up to [`ROWS`] signed rows with 32 unsigned columns, or of unsigned rows with signed columns.
#[inline(always)]
pub(super) fn integer_tile<I: Isa, const ROWS_UNSIGNED: bool>(
    isa: I,
    rows: &[&[[u8; 4]]],
    lines: &[Line],
    out: &mut [[f32; PANEL]; ROWS],
) {
    match rows.len() {
        1 => integer::<I, 1, ROWS_UNSIGNED>(isa, rows, lines, out),
        2 => integer::<I, 2, ROWS_UNSIGNED>(isa, rows, lines, out),
        3 => integer::<I, 3, ROWS_UNSIGNED>(isa, rows, lines, out),
        4 => integer::<I, 4, ROWS_UNSIGNED>(isa, rows, lines, out),
        5 => integer::<I, 5, ROWS_UNSIGNED>(isa, rows, lines, out),
        _ => integer::<I, ROWS, ROWS_UNSIGNED>(isa, rows, lines, out),
    }
}

#[inline(always)]
fn integer<I: Isa, const M: usize, const ROWS_UNSIGNED: bool>(
    isa: I,
    rows: &[&[[u8; 4]]],
    lines: &[Line],
    out: &mut [[f32; PANEL]],
) {
    let mut x: [&[[u8; 4]]; M] = [&[]; M];
    x.copy_from_slice(&rows[..M]);
    let found = sums::<I, M, ROWS_UNSIGNED>(isa, &x, 0, lines.as_chunks().0);
    for (out, found) in out.iter_mut().zip(found) {
        let (out, _) = out.as_chunks_mut::<LANES>();
        isa.store(isa.to_floats(found[0]), &mut out[0]);
        isa.store(isa.to_floats(found[1]), &mut out[1]);
    }
}
