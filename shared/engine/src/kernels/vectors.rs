//! What the kernels do with vectors of any level.

use super::isa::{Isa, LANES};

/// `e^x` in every lane, with a relative error of about 1e-7; 0 where `e^x` is no normal number (below
/// -87.7), `e^88` above 88.
///
/// `x = n ln 2 + r` with `|r| <= ln 2 / 2` (Cody and Waite's two-part `ln 2`), then `2^n` times the Taylor polynomial of
/// `e^r` of degree 7, whose remainder is below 6e-9.
#[inline(always)]
pub(super) fn exp<I: Isa>(isa: I, x: I::V) -> I::V {
    let x = isa.max(isa.splat(-88.37), x);
    let x = isa.min(isa.splat(88.0), x);
    let rounded = isa.fma(x, isa.splat(std::f32::consts::LOG2_E), isa.splat(ROUND));
    let n = isa.sub(rounded, isa.splat(ROUND));
    let r = isa.fma(n, isa.splat(-355.0 / 512.0), x);
    let r = isa.fma(n, isa.splat(2.121_944_4e-4), r);
    let mut sum = isa.splat(1.0 / 5040.0);
    for factorial in [720.0, 120.0, 24.0, 6.0, 2.0, 1.0, 1.0] {
        sum = isa.fma(sum, r, isa.splat(1.0 / factorial));
    }
    isa.mul(sum, isa.pow2_low_bits(rounded))
}

/// Magnitudes up to this quantize to zeros: the reciprocal of smaller ones may overflow, which levels convert differently.
pub(super) const TINY: f32 = 1e-30;

/// Adding this to a float of small magnitude leaves its nearest integer in the low bits.
pub(super) const ROUND: f32 = 12_582_912.0;

/// The sum of the lanes, in the one order that all kernels use: halves onto halves.
#[inline(always)]
pub(super) fn sum_lanes<I: Isa>(isa: I, v: I::V) -> f32 {
    let v = isa.add(v, isa.swap::<8>(v));
    let v = isa.add(v, isa.swap::<4>(v));
    let v = isa.add(v, isa.swap::<2>(v));
    let v = isa.add(v, isa.swap::<1>(v));
    let mut lanes = [0.0; LANES];
    isa.store(v, &mut lanes);
    lanes[0]
}
