//! The one product that everything else is made of: up to six rows times a panel of 32 columns.

use super::isa::{Isa, LANES};
use super::packed::PANEL;

/// Rows a tile takes at most: with two vectors of columns that makes 12 accumulators, enough to hide the latency of FMA.
pub(super) const ROWS: usize = 6;

/// How many tiles `rows` rows need, and which rows are the `tile`-th one's: as equal as possible, so none is narrow.
#[inline(always)]
pub(super) fn split(rows: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
    let tiles = rows.div_ceil(ROWS);
    (0..tiles).map(move |tile| tile * rows / tiles..(tile + 1) * rows / tiles)
}

/// `out[r][c] += sum over k of x[r][k] panel[k][c]`, each output one chain of fused multiply-adds in the order of `k`.
///
/// `x` and `out` have one entry a row, at most [`ROWS`]; the rows of `x` are as long as the panel.
#[inline(always)]
pub(super) fn tile<I: Isa>(isa: I, x: &[&[f32]], panel: &[[f32; PANEL]], out: &mut [[f32; PANEL]]) {
    match x.len() {
        1 => rows::<I, 1>(isa, x, panel, out),
        2 => rows::<I, 2>(isa, x, panel, out),
        3 => rows::<I, 3>(isa, x, panel, out),
        4 => rows::<I, 4>(isa, x, panel, out),
        5 => rows::<I, 5>(isa, x, panel, out),
        _ => rows::<I, ROWS>(isa, x, panel, out),
    }
}

#[inline(always)]
fn rows<I: Isa, const M: usize>(isa: I, x: &[&[f32]], panel: &[[f32; PANEL]], out: &mut [[f32; PANEL]]) {
    let x: [&[f32]; M] = std::array::from_fn(|r| &x[r][..panel.len()]);
    let out = &mut out[..M];
    if I::WIDE || M < 3 {
        columns::<I, M, 2>(isa, x, panel, out, 0);
    } else {
        columns::<I, M, 1>(isa, x, panel, out, 0);
        columns::<I, M, 1>(isa, x, panel, out, 1);
    }
}

/// The columns of `N` vectors from the `first` one.
#[inline(always)]
fn columns<I: Isa, const M: usize, const N: usize>(
    isa: I,
    x: [&[f32]; M],
    panel: &[[f32; PANEL]],
    out: &mut [[f32; PANEL]],
    first: usize,
) {
    let mut sums: [[I::V; N]; M] = std::array::from_fn(|r| {
        let (vectors, _) = out[r].as_chunks::<LANES>();
        std::array::from_fn(|n| isa.load(&vectors[first + n]))
    });
    for (k, weights) in panel.iter().enumerate() {
        let (vectors, _) = weights.as_chunks::<LANES>();
        let weights: [I::V; N] = std::array::from_fn(|n| isa.load(&vectors[first + n]));
        for r in 0..M {
            let x = isa.splat(x[r][k]);
            for n in 0..N {
                sums[r][n] = isa.fma(x, weights[n], sums[r][n]);
            }
        }
    }
    for r in 0..M {
        let (vectors, _) = out[r].as_chunks_mut::<LANES>();
        for n in 0..N {
            isa.store(sums[r][n], &mut vectors[first + n]);
        }
    }
}
