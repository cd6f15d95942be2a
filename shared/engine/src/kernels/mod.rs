//! Hand-written CPU kernels behind the engine's operations on `flex`.
//!
//! Every output is one fixed sequence of IEEE operations: the order of a reduction depends on nothing but the reduction
//! itself, never on the number of rows, the tiling, the threads or the instruction set. So AVX-512, AVX2 and portable code
//! agree to the bit, and so does a row whatever its neighbours.
//!
//! The bodies are generic over [`Isa`] and safe; [`isa`] alone touches intrinsics.

mod activations;
mod attention;
mod bytes_tile;
mod exact_attention;
mod fast_attention;
mod heads;
mod isa;
mod linear;
mod packed;
mod pages;
mod rectangle;
mod rows;
mod tile;

pub(crate) use attention::{Attention, attention, copy_imported};
pub(crate) use heads::{HeadNorms, Heads, Rotation};
pub(crate) use isa::Level;
use isa::{Isa, LANES};
pub(crate) use linear::{Activation, Mode, Normed, Then, linear};
pub(crate) use packed::{BLOCK, Format, Matrix, PANEL, Quantized, Rows, pack};
pub(crate) use pages::{PAGE, Pages, Quantized as QuantizedPages, Segment, page_bytes};
pub(crate) use rows::rms_norm;

/// `e^x` in every lane, with a relative error of about 1e-7; 0 where `e^x` is no normal number (below
/// -87.7), `e^88` above 88.
///
/// `x = n ln 2 + r` with `|r| <= ln 2 / 2` (Cody and Waite's two-part `ln 2`), then `2^n` times the Taylor polynomial of
/// `e^r` of degree 7, whose remainder is below 6e-9.
#[inline(always)]
fn exp<I: Isa>(isa: I, x: I::V) -> I::V {
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
const TINY: f32 = 1e-30;

/// Adding this to a float of small magnitude leaves its nearest integer in the low bits.
const ROUND: f32 = 12_582_912.0;

/// The sum of the lanes, in the one order that all kernels use: halves onto halves.
#[inline(always)]
fn sum_lanes<I: Isa>(isa: I, v: I::V) -> f32 {
    let v = isa.add(v, isa.swap::<8>(v));
    let v = isa.add(v, isa.swap::<4>(v));
    let v = isa.add(v, isa.swap::<2>(v));
    let v = isa.add(v, isa.swap::<1>(v));
    let mut lanes = [0.0; LANES];
    isa.store(v, &mut lanes);
    lanes[0]
}

#[cfg(test)]
mod tests;
