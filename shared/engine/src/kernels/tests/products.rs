//! Linear layers in both modes.

use proptest::prelude::*;

use super::weights::{Source, formats, inputs, quantized};
use super::*;

const MODES: [Mode; 2] = [Mode::Exact, Mode::Fast];

/// A layer and rows for it.
struct Case {
    layer: Source,
    bytes: Vec<u8>,
    /// `[rows, inputs]`.
    x: Vec<f32>,
}

impl Case {
    fn new(format: Format, seed: u64, rows: usize, inputs: usize, outputs: usize) -> Case {
        let layer = Source::new(format, inputs, outputs, seed);
        Case { bytes: layer.pack(), x: numbers(seed ^ 0xff, rows * inputs), layer }
    }

    fn product(&self, level: Level, mode: Mode, x: &[f32]) -> Vec<f32> {
        let mut out = vec![f32::NAN; x.len() / self.layer.inputs * self.layer.outputs];
        linear(level, mode, x, None, self.layer.matrix(&self.bytes), Then::Store, &mut out);
        out
    }

    /// The products in f64, and what rounding errors of f32 are measured by: the sums of the magnitudes.
    fn plain(&self, x: &[f32]) -> Vec<(f64, f64)> {
        let outputs = self.layer.outputs;
        let rows = x.chunks(self.layer.inputs).flat_map(|x| (0..outputs).map(move |output| (x, output)));
        rows.map(|(x, output)| {
            let products = x.iter().zip(self.layer.row(output)).map(|(x, w)| f64::from(*x) * f64::from(*w));
            products.fold((0.0, 0.0), |(sum, size), product| (sum + product, size + product.abs()))
        })
        .collect()
    }

    /// Whether `found` is what the formula says, for rows without outliers (`calm`, `[rows, inputs]`) as far as the
    /// quantization counts.
    fn check(&self, mode: Mode, x: &[f32], calm: &[f32], found: &[f32]) -> Result<(), TestCaseError> {
        let (inputs, outputs) = (self.layer.inputs, self.layer.outputs);
        let quantizes = mode == Mode::Fast && matches!(self.layer.format, Format::Quantized(_));
        let weights: Vec<f64> = (0..outputs).map(|o| length(self.layer.row(o).iter().map(|w| f64::from(*w)))).collect();
        let mut errors = Vec::new();
        for (index, (found, (expected, size))) in found.iter().zip(self.plain(x)).enumerate() {
            let error = (f64::from(*found) - expected).abs();
            let calm = &calm[index / outputs * inputs..][..inputs];
            // How large such a product typically is.
            let typical =
                length(calm.iter().map(|x| f64::from(*x))) * weights[index % outputs] / (inputs as f64).sqrt();
            let rounding = 2e-6 * size;
            prop_assert!(
                error <= rounding + if quantizes { 0.04 * typical } else { 0.0 },
                "{:?}: {} is not {}, typical are {}",
                mode,
                found,
                expected,
                typical
            );
            if typical > 0.0 {
                errors.push((error - rounding).max(0.0) / typical);
            }
        }
        // The errors of a row's outputs depend on each other: few rows may have bad luck.
        let rows = (x.len() / inputs) as f64;
        let mean = length(errors.iter().copied()) / (errors.len().max(1) as f64).sqrt();
        prop_assert!(mean < 0.01 * (1.0 + 2.0 / rows.sqrt()), "relative error {} of {} rows", mean, rows);
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn linear_is_its_formula_and_the_same_everywhere(format in formats(), seed: u64, rows in 1usize..=70,
        blocks in 1usize..5, less in 0usize..BLOCK, outputs in 1usize..100) {
        let case = Case::new(format, seed, rows, inputs(format, blocks, less), outputs);
        let exact = case.product(Level::best(), Mode::Exact, &case.x);
        for mode in MODES {
            let found = case.product(Level::best(), mode, &case.x);
            case.check(mode, &case.x, &case.x, &found)?;
            if mode == Mode::Fast && !matches!(format, Format::Quantized(_)) {
                prop_assert_eq!(bits(&found), bits(&exact));
            }
            for level in Level::all() {
                prop_assert_eq!(bits(&case.product(level, mode, &case.x)), bits(&found), "{:?}", level);
            }
        }
    }

    /// A row alone, or among any others, is the same row.
    #[test]
    fn neighbours_change_no_bit(format in formats(), seed: u64, rows in 1usize..=150, blocks in 1usize..4,
        outputs in 1usize..100, at in any::<prop::sample::Index>(), count in 1usize..8) {
        let case = Case::new(format, seed, rows, inputs(format, blocks, 0), outputs);
        let inputs = case.layer.inputs;
        let row = at.index(rows);
        let part = row..rows.min(row + count);
        let backwards: Vec<f32> = case.x.chunks(inputs).rev().flatten().copied().collect();
        for mode in MODES {
            let all = case.product(Level::best(), mode, &case.x);
            let some = case.product(Level::best(), mode, &case.x[part.start * inputs..part.end * inputs]);
            prop_assert_eq!(bits(&some), bits(&all[part.start * outputs..part.end * outputs]), "{:?}", mode);
            let mut reversed = case.product(Level::best(), mode, &backwards);
            reversed.reverse();
            all.chunks(outputs).zip(reversed.chunks(outputs)).try_for_each(|(row, reversed)| {
                prop_assert!(row.iter().rev().map(|x| x.to_bits()).eq(reversed.iter().map(|x| x.to_bits())));
                Ok(())
            })?;
        }
    }

    /// Norm, sum and gate around a product do what they would do apart.
    #[test]
    fn what_stands_around_a_product(format in formats(), seed: u64, rows in 1usize..=70, blocks in 1usize..4,
        panels in 1usize..4, less in 0usize..PANEL, normed: bool) {
        for mode in MODES {
            for then in [Then::Store, Then::Add, Then::Gate(Activation::Silu), Then::Gate(Activation::Gelu)] {
                let outputs = panels * PANEL - if matches!(then, Then::Gate(_)) { 0 } else { less };
                let case = Case::new(format, seed, rows, inputs(format, blocks, 0), outputs);
                let weight = numbers(seed ^ 3, case.layer.inputs);
                let before = numbers(seed ^ 4, rows * then.width(outputs));
                let x = if normed { rms_norm(Level::best(), &case.x, &weight, 1e-5) } else { case.x.clone() };
                let product = case.product(Level::best(), mode, &x);
                let norm = normed.then_some(Normed { weight: &weight, epsilon: 1e-5 });
                let around = |level| {
                    let mut out = before.clone();
                    linear(level, mode, &case.x, norm, case.layer.matrix(&case.bytes), then, &mut out);
                    out
                };
                let found = around(Level::best());
                for level in Level::all() {
                    prop_assert_eq!(bits(&around(level)), bits(&found), "{:?}", level);
                }
                match then {
                    Then::Store => prop_assert_eq!(bits(&found), bits(&product)),
                    Then::Add => {
                        let sums: Vec<f32> = before.iter().zip(&product).map(|(a, b)| a + b).collect();
                        prop_assert_eq!(bits(&found), bits(&sums));
                    }
                    Then::Gate(activation) => {
                        let (blocks, _) = product.as_chunks::<PANEL>();
                        let pairs = blocks.iter().flat_map(|block| block[..16].iter().zip(&block[16..]));
                        for (found, (gate, value)) in found.iter().zip(pairs) {
                            let (factor, exponent) = gated(activation, f64::from(*gate));
                            let expected = factor * f64::from(*value);
                            let error = (f64::from(*found) - expected).abs() / expected.abs().max(1e-30);
                            // What f32 takes from an exponent is a share of the whole power.
                            let limit = 1e-6 + 3.0 * f64::from(f32::EPSILON) * exponent.abs();
                            prop_assert!(error <= limit, "{} is not {}, exponent {}", found, expected, exponent);
                        }
                    }
                }
            }
        }
    }

    /// A row's two largest values cost no precision, rows of zeros stay zeros, and junk stays in its own rows, and shows there.
    #[test]
    fn rows_that_are_not_like_others(format in quantized(), seed: u64, rows in 3usize..=40, blocks in 1usize..4,
        outputs in 1usize..70, places in prop::collection::vec((any::<prop::sample::Index>(), 100.0f32..1e4), 2)) {
        let mut case = Case::new(format, seed, rows, blocks * BLOCK, outputs);
        let inputs = case.layer.inputs;
        let mut calm = case.x.clone();
        for row in 0..rows {
            for (place, size) in &places {
                let at = row * inputs + (place.index(inputs) + row) % inputs;
                case.x[at] = size.copysign(case.x[at]);
                calm[at] = 0.0;
            }
        }
        let (zero, broken) = (seed as usize % rows, (seed as usize + 1) % rows);
        for x in [&mut case.x, &mut calm] {
            x[zero * inputs..][..inputs].fill(0.0);
        }
        let mut spoilt = case.x.clone();
        spoilt[broken * inputs..][..inputs].copy_from_slice(&junk(seed, inputs));
        let whole = spoilt.iter().all(|value| value.is_finite());
        for mode in MODES {
            let found = case.product(Level::best(), mode, &case.x);
            case.check(mode, &case.x, &calm, &found)?;
            prop_assert!(found[zero * outputs..][..outputs].iter().all(|value| *value == 0.0));
            for level in Level::all() {
                prop_assert_eq!(bits(&case.product(level, mode, &case.x)), bits(&found), "{:?}", level);
                let beside = case.product(level, mode, &spoilt);
                for (row, (beside, found)) in beside.chunks(outputs).zip(found.chunks(outputs)).enumerate() {
                    prop_assert!(row == broken || bits(beside) == bits(found), "{:?}: junk in row {}", level, row);
                    let hidden = row == broken && !whole && beside.iter().any(|value| value.is_finite());
                    prop_assert!(!hidden, "{:?}, {:?}: numbers made of what is none", level, mode);
                }
            }
        }
    }

    /// Magnitudes whose reciprocal overflows are as good as zero, and no reason for levels to differ.
    #[test]
    fn the_smallest_numbers_are_the_same_everywhere(format in quantized(), seed: u64, exponent in -45i32..-30) {
        let mut case = Case::new(format, seed, 3, 2 * BLOCK, 40);
        case.x.iter_mut().for_each(|x| *x = (f64::from(*x) * 10f64.powi(exponent)) as f32);
        let found = case.product(Level::best(), Mode::Fast, &case.x);
        for level in Level::all() {
            prop_assert_eq!(bits(&case.product(level, Mode::Fast, &case.x)), bits(&found), "{:?}", level);
        }
        prop_assert!(found.iter().all(|value| f64::from(value.abs()) < 100.0 * 10f64.powi(exponent.max(-37))));
    }
}

/// The activation of `x`, and the exponent in it.
fn gated(activation: Activation, x: f64) -> (f64, f64) {
    match activation {
        Activation::Silu => (x / (1.0 + (-x).exp()), x),
        Activation::Gelu => {
            let y = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
            // `x / 2 (1 + tanh(y))`, without the cancellation.
            (x / (1.0 + (-2.0 * y).exp()), 2.0 * y)
        }
    }
}
