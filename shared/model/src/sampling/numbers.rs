//! Numbers that come out the same on every processor.

/// Whether all are numbers, and none infinite. Without a way out of the loop, which compiles to vectors: a small part of
/// what a draw costs.
pub fn all_finite(logits: &[f32]) -> bool {
    const EXPONENT: u32 = 0x7f80_0000;
    !logits.iter().fold(false, |found, logit| found | (logit.to_bits() & EXPONENT == EXPONENT))
}

/// A logit whatever it is: a NaN as the smallest number, infinities as the smallest and largest.
#[inline]
pub(super) fn finite(logit: f32) -> f64 {
    f64::from(if logit.is_nan() { f32::MIN } else { logit.clamp(f32::MIN, f32::MAX) })
}

/// e to the power of a number that is not positive. Only additions and multiplications, which every processor rounds
/// alike: x = n ln 2 + r with |r| <= ln 2 / 2, then the Taylor series of r to the 13th power (below 1 ulp of error).
#[inline]
pub(crate) fn exp(x: f64) -> f64 {
    const LN2_HIGH: f64 = 6.931_471_803_691_238e-1;
    const LN2_LOW: f64 = 1.908_214_929_270_587_7e-10;
    // Adding this leaves the nearest integer in the low bits of the mantissa.
    const ROUNDER: f64 = 6_755_399_441_055_744.0;
    // 1 / 13!, 1 / 12!, ... 1 / 0!
    const SERIES: [f64; 14] = [
        1.0 / 6_227_020_800.0,
        1.0 / 479_001_600.0,
        1.0 / 39_916_800.0,
        1.0 / 3_628_800.0,
        1.0 / 362_880.0,
        1.0 / 40_320.0,
        1.0 / 5_040.0,
        1.0 / 720.0,
        1.0 / 120.0,
        1.0 / 24.0,
        1.0 / 6.0,
        0.5,
        1.0,
        1.0,
    ];
    let bounded = x.max(-708.0);
    let rounded = bounded * std::f64::consts::LOG2_E + ROUNDER;
    let n = rounded - ROUNDER;
    let r = bounded - n * LN2_HIGH - n * LN2_LOW;
    let power = SERIES.iter().fold(0.0, |sum, coefficient| sum * r + coefficient);
    let scale = f64::from_bits(rounded.to_bits().wrapping_add(1023) << 52);
    if x < -708.0 { 0.0 } else { power * scale }
}
