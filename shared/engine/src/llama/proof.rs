//! Whether a device computes: a small layer on it, with the operators that models use, against the same on the CPU.
//!
//! A device may take every operation and give zeros, as CUDA does where its kernels can't be compiled: what fails on Burn's
//! own threads reaches nobody. A model would answer from that, and its KV cache would reach the store.

use baton_model::config::Heads;
use burn::tensor::{Device, Tensor, TensorData};

use super::cache::Cache;
use super::failure::{Failure, caught};
use super::operators::{Norm, Operators, Pass};
use super::ops::Linear;
use crate::kernels::{Activation, Attention, Rotation, Segment};

const HEADS: Heads = Heads { queries: 2, kv: 1, size: 16 };
const HIDDEN: usize = 32;
const ROWS: usize = 3;
/// How far values may be apart, as a part of the largest. Devices round a few bits otherwise, some in 10 bits (TF32).
const CLOSE: f32 = 0.01;

/// Tries a device out.
pub(super) fn check(device: &Device) -> Result<(), Failure> {
    let expected = layer(&Device::flex())?;
    compare(&expected, &caught(|| layer(device))?)
}

fn compare(expected: &[f32], found: &[f32]) -> Result<(), Failure> {
    let most = expected.iter().fold(0.0, |most: f32, value| most.max(value.abs()));
    // So that what is no number is far.
    let near = |(expected, found): (&f32, &f32)| (expected - found).abs() <= CLOSE * most;
    if expected.len() == found.len() && expected.iter().zip(found).all(near) {
        return Ok(());
    }
    let told = if found.iter().all(|value| *value == 0.0) { "nothing but zeros" } else { "other numbers" };
    Err(Failure::new(format!(
        "it computes {told} where the CPU has {:.3}..., so its driver, its libraries (on cuda: nvrtc and the toolkit's headers) or \
         the device itself are of no use",
        expected.first().copied().unwrap_or_default()
    )))
}

/// The output of a layer, `[ROWS, HIDDEN]`, of numbers between -1 and 1 that look random.
fn layer(device: &Device) -> Result<Vec<f32>, Failure> {
    let mut seed = 1u32;
    let mut numbers = |count: usize| -> Vec<f32> {
        let mut next = || {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (seed >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..count).map(|_| next()).collect()
    };
    let mut matrix = |rows: usize, columns: usize| {
        Tensor::<2>::from_data(TensorData::new(numbers(rows * columns), [rows, columns]), device)
    };
    let x = matrix(ROWS, HIDDEN);
    let [qkv, output, gate_up] =
        [HEADS.row_width(), HIDDEN, 2 * HIDDEN].map(|outputs| Linear::Plain(matrix(outputs, HIDDEN)));
    let weight = Tensor::<1>::from_data(TensorData::new(vec![1.5f32; HIDDEN], [HIDDEN]), device);
    let norm = || Norm { weight: &weight, epsilon: 1e-5 };
    let pairs = HEADS.size / 2;
    let turns =
        |of: fn(f32) -> f32| (0..ROWS * pairs).map(|at| of((at / pairs) as f32 / (1 + at % pairs) as f32)).collect();
    let rotation = Rotation { pairs, cos: turns(f32::cos), sin: turns(f32::sin) };
    let segments = [Segment { row: 0, rows: ROWS, start: 0, pages: vec![0] }];
    let pass = Pass { rotation: &rotation, segments: &segments };
    let attention = Attention { heads: HEADS, scale: 0.25, window: None };

    let stock = Operators::Stock;
    let mut cache = Cache::new(stock, device, HEADS, 1);
    let qkv = stock.linear(x.clone(), Some(norm()), &qkv);
    let attended = stock.attention(attention, qkv, None, pass, &mut cache);
    let x = stock.add_linear(x, attended, &output);
    let out = stock.gated_linear(x, norm(), &gate_up, Activation::Silu).try_into_data().map_err(Failure::new)?;
    Ok(out.as_slice::<f32>().map_err(Failure::new)?.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_computes_is_told_from_one_that_does_not() {
        check(&Device::flex()).unwrap();
        let expected = layer(&Device::flex()).unwrap();
        assert_eq!(expected.len(), ROWS * HIDDEN);
        let refused = |found: &[f32]| compare(&expected, found).unwrap_err().to_string();
        assert!(refused(&vec![0.0; expected.len()]).contains("nothing but zeros"));
        assert!(refused(&expected[1..]).contains("other numbers"));
        let most = expected.iter().fold(0.0, |most: f32, value| most.max(value.abs()));
        for place in 0..expected.len() {
            for wrong in [f32::NAN, f32::INFINITY, expected[place] + most / 20.0] {
                let mut found = expected.clone();
                found[place] = wrong;
                assert!(refused(&found).contains("other numbers"), "{wrong} at {place}");
            }
        }
        let rounded: Vec<f32> = expected.iter().map(|value| half::bf16::from_f32(*value).to_f32()).collect();
        compare(&expected, &rounded).unwrap();
    }
}
