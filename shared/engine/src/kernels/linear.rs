//! `[rows, in] x [in, out]` in f32, with weights packed in panels of 32 outputs.

use rayon::prelude::*;

use super::isa::{Isa, Kernel, Level};
use super::tile::{ROWS, split, tile};

/// Outputs that are packed together.
pub(crate) const PANEL: usize = 32;

/// From this many rows on, threads share the rows instead of the panels: each then keeps its rows in its cache.
const MANY_ROWS: usize = 48;

/// Packs a weight matrix as `[outputs / 32 rounded up][inputs][32]`, the last panel filled up with zeros.
///
/// `row(o, values)` writes the `inputs` weights of output `o`.
pub(crate) fn pack(inputs: usize, outputs: usize, row: impl Fn(usize, &mut [f32]) + Sync) -> Vec<f32> {
    let mut packed = vec![0.0; outputs.div_ceil(PANEL) * inputs * PANEL];
    packed.par_chunks_mut(inputs * PANEL).enumerate().for_each_init(
        || vec![0.0; inputs],
        |values, (index, panel)| {
            for column in 0..PANEL.min(outputs - index * PANEL) {
                row(index * PANEL + column, values);
                for (to, value) in panel.iter_mut().skip(column).step_by(PANEL).zip(values.iter()) {
                    *to = *value;
                }
            }
        },
    );
    packed
}

/// `x` (`[rows, inputs]`) times `weights` as [`pack`] makes them, as `[rows, outputs]`.
pub(crate) fn linear(level: Level, x: &[f32], inputs: usize, weights: &[f32], outputs: usize) -> Vec<f32> {
    let rows = x.len() / inputs;
    let (panels, _) = weights.as_chunks::<PANEL>();
    let mut out = vec![0.0; rows * outputs];
    if rows >= MANY_ROWS {
        // Two parts a thread even out what else the threads have to do.
        let part = rows.div_ceil(2 * rayon::current_num_threads()).next_multiple_of(ROWS);
        out.par_chunks_mut(part * outputs).zip(x.par_chunks(part * inputs)).for_each(|(out, x)| {
            for (index, panel) in panels.chunks_exact(inputs).enumerate() {
                level.run(Panel { x, inputs, panel, out, stride: outputs, column: index * PANEL });
            }
        });
    } else if rows == 1 {
        out.par_chunks_mut(PANEL).zip(panels.par_chunks_exact(inputs)).with_min_len(4).for_each(|(out, panel)| {
            level.run(Panel { x, inputs, panel, out, stride: outputs, column: 0 });
        });
    } else {
        let mut parts = vec![0.0; rows * panels.len() / inputs * PANEL];
        parts.par_chunks_mut(rows * PANEL).zip(panels.par_chunks_exact(inputs)).for_each(|(out, panel)| {
            level.run(Panel { x, inputs, panel, out, stride: PANEL, column: 0 });
        });
        for (index, part) in parts.chunks_exact(rows * PANEL).enumerate() {
            for (row, part) in out.chunks_exact_mut(outputs).zip(part.chunks_exact(PANEL)) {
                let to = &mut row[index * PANEL..];
                let width = to.len().min(PANEL);
                to[..width].copy_from_slice(&part[..width]);
            }
        }
    }
    out
}

/// All rows of `x` times one panel, written to `out` from `column` on as far as a row's `stride` goes.
struct Panel<'a> {
    x: &'a [f32],
    inputs: usize,
    panel: &'a [[f32; PANEL]],
    out: &'a mut [f32],
    stride: usize,
    column: usize,
}

impl Kernel for Panel<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Panel { x, inputs, panel, out, stride, column } = self;
        for rows in split(x.len() / inputs) {
            let mut tile_x: [&[f32]; ROWS] = [&[]; ROWS];
            for (to, row) in tile_x.iter_mut().zip(rows.clone()) {
                *to = &x[row * inputs..(row + 1) * inputs];
            }
            let mut sums = [[0.0; PANEL]; ROWS];
            tile(isa, &tile_x[..rows.len()], panel, &mut sums);
            for (sums, row) in sums.iter().zip(rows) {
                let end = out.len().min((row + 1) * stride);
                let to = &mut out[row * stride + column..end];
                let width = to.len().min(PANEL);
                to[..width].copy_from_slice(&sums[..width]);
            }
        }
    }
}
