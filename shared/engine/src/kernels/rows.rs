//! What happens to each row alone: RMS norm and the gate of the feed-forward layer.

use rayon::prelude::*;

use super::isa::{Isa, Kernel, LANES, Level};
use super::{exp, sum_lanes};

/// Values below which threads cost more than they save.
const SMALL: usize = 1 << 14;

/// `y = x / sqrt(mean(x^2) + epsilon) * weight` for every row (Zhang and Sennrich, "Root mean square layer
/// normalization", 2019). `x` is `[rows, weight.len()]`.
pub(crate) fn rms_norm(level: Level, x: &[f32], weight: &[f32], epsilon: f32) -> Vec<f32> {
    let width = weight.len();
    let mut out = vec![0.0; x.len()];
    let rows = out.par_chunks_mut(width).zip(x.par_chunks(width)).with_min_len(SMALL.div_ceil(width));
    rows.for_each(|(out, x)| level.run(Norm { x, weight, epsilon, out }));
    out
}

struct Norm<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    epsilon: f32,
    out: &'a mut [f32],
}

impl Kernel for Norm<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let (vectors, rest) = self.x.as_chunks::<LANES>();
        let mut last = [0.0; LANES];
        last[..rest.len()].copy_from_slice(rest);
        let mut squares = isa.splat(0.0);
        for vector in vectors.iter().chain([&last]) {
            let v = isa.load(vector);
            squares = isa.fma(v, v, squares);
        }
        let mean = sum_lanes(isa, squares) / self.x.len() as f32;
        let scale = 1.0 / (mean + self.epsilon).sqrt();
        for ((out, x), weight) in self.out.iter_mut().zip(self.x).zip(self.weight) {
            *out = x * scale * weight;
        }
    }
}

/// `silu(gate) * up` with `silu(x) = x / (1 + e^-x)` (Shazeer, "GLU variants improve transformer", 2020).
/// `x` is `[rows, 2 width]`, a row's gates before its ups; the result is `[rows, width]`.
pub(crate) fn gate(level: Level, x: &[f32], width: usize) -> Vec<f32> {
    let mut out = vec![0.0; x.len() / 2];
    let rows = out.par_chunks_mut(width).zip(x.par_chunks(2 * width)).with_min_len(SMALL.div_ceil(width));
    rows.for_each(|(out, x)| {
        let (gate, up) = x.split_at(width);
        level.run(Gate { gate, up, out });
    });
    out
}

struct Gate<'a> {
    gate: &'a [f32],
    up: &'a [f32],
    out: &'a mut [f32],
}

impl Kernel for Gate<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let (gates, gates_rest) = self.gate.as_chunks::<LANES>();
        let (ups, ups_rest) = self.up.as_chunks::<LANES>();
        let (outs, outs_rest) = self.out.as_chunks_mut::<LANES>();
        for ((gate, up), out) in gates.iter().zip(ups).zip(outs) {
            gated(isa, gate, up, out);
        }
        let mut last = [[0.0; LANES]; 3];
        let rest = gates_rest.len();
        last[0][..rest].copy_from_slice(gates_rest);
        last[1][..rest].copy_from_slice(ups_rest);
        let [gate, up, out] = &mut last;
        gated(isa, gate, up, out);
        outs_rest.copy_from_slice(&out[..rest]);
    }
}

#[inline(always)]
fn gated<I: Isa>(isa: I, gate: &[f32; LANES], up: &[f32; LANES], out: &mut [f32; LANES]) {
    let x = isa.load(gate);
    let divisor = isa.add(isa.splat(1.0), exp(isa, isa.sub(isa.splat(0.0), x)));
    isa.store(isa.mul(isa.div(x, divisor), isa.load(up)), out);
}
