//! What happens to each row alone: RMS norm.

use rayon::prelude::*;

use super::isa::{Isa, Kernel, LANES, Level};
use super::vectors::sum_lanes;

/// Values below which threads cost more than they save.
pub(super) const SMALL: usize = 1 << 14;

/// `y = x / sqrt(mean(x^2) + epsilon) * weight` for every row (Zhang and Sennrich, "Root mean square layer
/// normalization", 2019). `x` is `[rows, weight.len()]`.
pub(crate) fn rms_norm(level: Level, x: &[f32], weight: &[f32], epsilon: f32) -> Vec<f32> {
    let width = weight.len();
    let mut out = vec![0.0; x.len()];
    let rows = out.par_chunks_mut(width).zip(x.par_chunks(width)).with_min_len(SMALL.div_ceil(width));
    rows.for_each(|(out, x)| level.run(Norm { x, weight, epsilon, out }));
    out
}

pub(super) struct Norm<'a> {
    pub(super) x: &'a [f32],
    pub(super) weight: &'a [f32],
    pub(super) epsilon: f32,
    pub(super) out: &'a mut [f32],
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
