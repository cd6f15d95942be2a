//! Every level against each other, to the bit, and against plain formulas in f64.

mod attention;
mod heads;
mod operations;
mod products;
mod weights;

use baton_model::config::Heads;

use super::isa::{Isa, Kernel, LANES};
use super::vectors::exp;
use super::*;

/// Numbers that look random and depend on `seed` only, in -1 to 1.
fn numbers(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

/// Numbers that no computation should meet, and must not hand on to its neighbours.
fn junk(seed: u64, count: usize) -> Vec<f32> {
    const JUNK: [f32; 8] = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 3e38, -3e38, 1e-40, 0.0, -1.0];
    numbers(seed, count).into_iter().map(|x| JUNK[((x + 1.0) * 4.0) as usize]).collect()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// Root of the sum of squares.
fn length(values: impl IntoIterator<Item = f64>) -> f64 {
    values.into_iter().map(|value| value * value).sum::<f64>().sqrt()
}
