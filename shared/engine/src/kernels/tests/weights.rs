//! Weights in every format, and what packing must leave of them.

use half::{bf16, f16};
use proptest::prelude::*;

use super::super::packed::Unpacked;
use super::*;

/// A matrix of random weights that a format holds to the bit.
#[derive(Clone, Debug)]
pub(super) struct Source {
    pub(super) format: Format,
    pub(super) inputs: usize,
    pub(super) outputs: usize,
    /// `[outputs, inputs]`, and `[outputs, groups]`; empty if the format is not quantized.
    quants: Vec<u8>,
    scales: Vec<f32>,
    offsets: Vec<f32>,
    /// `[outputs, inputs]`.
    values: Vec<f32>,
}

impl Source {
    pub(super) fn new(format: Format, inputs: usize, outputs: usize, seed: u64) -> Source {
        let mut source = Source {
            format,
            inputs,
            outputs,
            quants: Vec::new(),
            scales: Vec::new(),
            offsets: Vec::new(),
            values: numbers(seed, outputs * inputs),
        };
        match format {
            Format::F32 => {}
            Format::F16 => source.values.iter_mut().for_each(|x| *x = f16::from_f32(*x).to_f32()),
            Format::BF16 => source.values.iter_mut().for_each(|x| *x = bf16::from_f32(*x).to_f32()),
            Format::Quantized(quantized) => source.quantize(quantized, seed),
        }
        source
    }

    fn quantize(&mut self, format: Quantized, seed: u64) {
        let half = |x: f32| if format.half { f16::from_f32(x).to_f32() } else { x };
        let steps = f32::from(1u16 << (format.bits - 1));
        self.quants = self.values.iter().map(|x| ((x + 1.0) * steps) as u8).collect();
        let groups = self.values.len() / format.group;
        // Negative ones too, as K types have them, and some that are subnormal in f16.
        self.scales = numbers(seed ^ 1, groups).into_iter().map(|x| half(x * x * x * 0.01)).collect();
        self.offsets = match format.zero {
            Some(zero) => self.scales.iter().map(|scale| -f32::from(zero) * scale).collect(),
            None => numbers(seed ^ 2, groups).into_iter().map(|x| half(x * 0.5)).collect(),
        };
        for (index, value) in self.values.iter_mut().enumerate() {
            let group = index / format.group;
            *value = self.scales[group].mul_add(f32::from(self.quants[index]), self.offsets[group]);
        }
    }

    pub(super) fn row(&self, output: usize) -> &[f32] {
        &self.values[output * self.inputs..(output + 1) * self.inputs]
    }

    pub(super) fn pack(&self) -> Vec<u8> {
        packed(self.format, self.inputs, self.outputs, self)
    }

    pub(super) fn matrix<'a>(&self, bytes: &'a [u8]) -> Matrix<'a> {
        Matrix { format: self.format, inputs: self.inputs, outputs: self.outputs, bytes }
    }
}

impl Rows for Source {
    fn unpack(&self, output: usize, quants: &mut [u8], scales: &mut [f32], offsets: &mut [f32]) -> usize {
        let Format::Quantized(Quantized { group, .. }) = self.format else { panic!("{:?} has no quants", self.format) };
        let groups = self.inputs / group;
        quants.copy_from_slice(&self.quants[output * self.inputs..(output + 1) * self.inputs]);
        scales[..groups].copy_from_slice(&self.scales[output * groups..(output + 1) * groups]);
        offsets[..groups].copy_from_slice(&self.offsets[output * groups..(output + 1) * groups]);
        group
    }

    fn dequantize(&self, output: usize, values: &mut [f32]) {
        values.copy_from_slice(self.row(output));
    }
}

fn packed(format: Format, inputs: usize, outputs: usize, rows: &impl Rows) -> Vec<u8> {
    let mut bytes = vec![0; format.matrix_bytes(inputs, outputs)];
    pack(format, inputs, outputs, rows, &mut bytes);
    bytes
}

pub(super) fn quantized() -> impl Strategy<Value = Format> {
    let zero = prop_oneof![Just(None), Just(Some(8)), Just(Some(128)), Just(Some(3))];
    (any::<bool>(), any::<bool>(), zero, any::<bool>()).prop_map(|(wide, long, zero, half)| {
        let (bits, group) = (if wide { 8 } else { 4 }, if long { 32 } else { 16 });
        Format::Quantized(Quantized { bits, group, zero, half })
    })
}

pub(super) fn formats() -> impl Strategy<Value = Format> {
    prop_oneof![1 => Just(Format::F32), 1 => Just(Format::F16), 1 => Just(Format::BF16), 5 => quantized()]
}

/// Inputs that a format can have.
pub(super) fn inputs(format: Format, blocks: usize, less: usize) -> usize {
    match format {
        Format::Quantized(_) => blocks * BLOCK,
        _ => blocks * BLOCK - less,
    }
}

/// Rows of two matrices by turns.
struct Both<'a>([&'a Source; 2]);

impl Rows for Both<'_> {
    fn unpack(&self, output: usize, quants: &mut [u8], scales: &mut [f32], offsets: &mut [f32]) -> usize {
        self.0[output % 2].unpack(output / 2, quants, scales, offsets)
    }

    fn dequantize(&self, output: usize, values: &mut [f32]) {
        self.0[output % 2].dequantize(output / 2, values);
    }
}

/// The packed matrix holds `expected`, `[outputs, inputs]`, however it is read.
fn holds<'a>(matrix: Matrix<'_>, expected: impl Fn(usize) -> &'a [f32]) -> Result<(), TestCaseError> {
    let mut row = vec![0.0; matrix.inputs];
    for output in 0..matrix.outputs {
        matrix.row(output, &mut row);
        prop_assert_eq!(bits(&row), bits(expected(output)), "row {}", output);
    }
    for level in Level::all() {
        let (mut unpacked, mut panel) = (Unpacked::default(), vec![[f32::NAN; PANEL]; matrix.inputs]);
        for index in 0..matrix.panels() {
            matrix.dequantize(level, index, &mut unpacked, &mut panel);
            for column in 0..PANEL {
                let found: Vec<f32> = panel.iter().map(|values| values[column]).collect();
                let output = index * PANEL + column;
                if output < matrix.outputs {
                    prop_assert_eq!(bits(&found), bits(expected(output)), "{:?}, output {}", level, output);
                } else {
                    prop_assert!(found.iter().all(|value| *value == 0.0), "{:?}, beyond the last output", level);
                }
            }
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn packing_changes_no_weight(format in formats(), seed: u64, blocks in 1usize..5, less in 0usize..BLOCK,
        outputs in 1usize..100) {
        let source = Source::new(format, inputs(format, blocks, less), outputs, seed);
        holds(source.matrix(&source.pack()), |output| source.row(output))?;
    }

    /// Rows of two matrices in the format that holds both.
    #[test]
    fn joining_changes_no_weight(a in formats(), b in formats(), seed: u64, blocks in 1usize..4, outputs in 1usize..40) {
        let format = a.join(b);
        prop_assert_eq!(format, b.join(a));
        prop_assert_eq!((a.join(a), format.join(a), format.join(b)), (a, format, format));
        let inputs = blocks * BLOCK;
        let both = [Source::new(a, inputs, outputs, seed), Source::new(b, inputs, outputs, !seed)];
        let bytes = packed(format, inputs, 2 * outputs, &Both([&both[0], &both[1]]));
        holds(Matrix { format, inputs, outputs: 2 * outputs, bytes: &bytes }, |output| both[output % 2].row(output / 2))?;
    }
}
