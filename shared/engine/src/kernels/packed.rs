//! Weight matrices as the kernels read them: panels of 32 outputs, in the bits of the model file.
//!
//! A panel of quantized weights is its quants, then its scales, then its offsets:
//! - quants by quads of 4 inputs; a quad in 8 bits is two [`Line`]s, of outputs 0 to 15 and 16 to 31, in 4 bits one line with
//!   the first in its low nibbles and the second in its high ones. Lane `o` of a line holds the 4 inputs of output `o`.
//! - scales `[groups][32]` in f16 or f32, offsets likewise unless they are `-zero * scale`.
//!
//! A panel of other weights is `[inputs][32]` in their own type.

use half::{bf16, f16};
use rayon::prelude::*;

use super::isa::{Isa, Kernel, LANES, Level, Line};

/// Outputs that are packed together.
pub(crate) const PANEL: usize = 32;

/// Inputs that every number of quantized inputs must be a multiple of: the longest group.
pub(crate) const BLOCK: usize = 32;

/// How weights are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    F32,
    F16,
    BF16,
    Quantized(Quantized),
}

/// A weight is `scale * q + offset`, rounded once, with an unsigned `q`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Quantized {
    /// Bits of `q`: 4 or 8.
    pub(crate) bits: u8,
    /// Consecutive inputs of an output that share scale and offset: 16 or 32.
    pub(crate) group: usize,
    /// The `q` that means 0 in every group, if there is one: offsets are `-zero * scale`.
    pub(crate) zero: Option<u8>,
    /// Whether scales and offsets are f16, else f32.
    pub(crate) half: bool,
}

/// Where the weights come from, output by output.
pub(crate) trait Rows: Sync {
    /// Splits the row of `output` into quants, one a value, and scales and offsets, one a group; returns the group's length.
    fn unpack(&self, output: usize, quants: &mut [u8], scales: &mut [f32], offsets: &mut [f32]) -> usize;

    fn dequantize(&self, output: usize, values: &mut [f32]);
}

/// A packed matrix.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Matrix<'a> {
    pub(crate) format: Format,
    pub(crate) inputs: usize,
    pub(crate) outputs: usize,
    /// What [`pack`] made.
    pub(crate) bytes: &'a [u8],
}

impl Format {
    /// The smallest format that holds the weights of both to the bit.
    pub(crate) fn join(self, other: Format) -> Format {
        match (self, other) {
            _ if self == other => self,
            (Format::Quantized(a), Format::Quantized(b)) => Format::Quantized(Quantized {
                bits: a.bits.max(b.bits),
                group: a.group.min(b.group),
                zero: a.zero.filter(|_| a.zero == b.zero),
                half: a.half && b.half && a.zero == b.zero,
            }),
            _ => Format::F32,
        }
    }

    /// Bytes of a packed matrix.
    pub(crate) fn matrix_bytes(self, inputs: usize, outputs: usize) -> usize {
        outputs.div_ceil(PANEL) * self.panel_bytes(inputs)
    }

    fn panel_bytes(self, inputs: usize) -> usize {
        match self {
            Format::F32 => inputs * PANEL * 4,
            Format::F16 | Format::BF16 => inputs * PANEL * 2,
            Format::Quantized(quantized) => quantized.quant_bytes(inputs) + quantized.number_bytes(inputs),
        }
    }
}

impl Quantized {
    fn quant_bytes(self, inputs: usize) -> usize {
        inputs * PANEL * usize::from(self.bits) / 8
    }

    /// Bytes of 32 scales or offsets.
    fn row_bytes(self) -> usize {
        PANEL * if self.half { 2 } else { 4 }
    }

    fn number_bytes(self, inputs: usize) -> usize {
        inputs / self.group * self.row_bytes() * if self.zero.is_some() { 1 } else { 2 }
    }
}

/// Packs a matrix into `to`, which is zeroed and as long as [`Format::matrix_bytes`] says. The last panel is filled up with
/// zeros.
///
/// # Panics
/// If a quantized matrix has inputs that are no multiple of [`BLOCK`].
pub(crate) fn pack(format: Format, inputs: usize, outputs: usize, rows: &impl Rows, to: &mut [u8]) {
    to.par_chunks_mut(format.panel_bytes(inputs)).enumerate().for_each(|(index, panel)| {
        let outputs = index * PANEL..outputs.min((index + 1) * PANEL);
        match format {
            Format::Quantized(quantized) => {
                assert!(inputs.is_multiple_of(BLOCK), "{inputs} inputs are no whole blocks");
                pack_quantized(quantized, inputs, outputs, rows, panel);
            }
            Format::F32 => pack_floats(inputs, outputs, rows, panel, f32::to_le_bytes),
            Format::F16 => pack_floats(inputs, outputs, rows, panel, |value| f16::from_f32(value).to_le_bytes()),
            Format::BF16 => pack_floats(inputs, outputs, rows, panel, |value| bf16::from_f32(value).to_le_bytes()),
        }
    });
}

fn pack_floats<const N: usize>(
    inputs: usize,
    outputs: std::ops::Range<usize>,
    rows: &impl Rows,
    panel: &mut [u8],
    bytes: impl Fn(f32) -> [u8; N],
) {
    let (panel, _) = panel.as_chunks_mut::<N>();
    let mut values = vec![0.0; inputs];
    for (column, output) in outputs.enumerate() {
        rows.dequantize(output, &mut values);
        for (to, value) in panel.iter_mut().skip(column).step_by(PANEL).zip(&values) {
            *to = bytes(*value);
        }
    }
}

fn pack_quantized(
    format: Quantized,
    inputs: usize,
    outputs: std::ops::Range<usize>,
    rows: &impl Rows,
    panel: &mut [u8],
) {
    let (lines, numbers) = panel.split_at_mut(format.quant_bytes(inputs));
    let groups = inputs / format.group;
    let (scales_to, offsets_to) = numbers.split_at_mut(groups * format.row_bytes());
    let mut quants = vec![0; inputs];
    // As long as the shortest groups need.
    let (mut scales, mut offsets) = (vec![0.0; inputs / 16], vec![0.0; inputs / 16]);
    for (column, output) in outputs.enumerate() {
        let group = rows.unpack(output, &mut quants, &mut scales, &mut offsets);
        let (half, lane) = (column / LANES, column % LANES);
        for (quad, quants) in quants.as_chunks::<4>().0.iter().enumerate() {
            for (i, quant) in quants.iter().enumerate() {
                match format.bits {
                    4 => lines[quad * 64 + 4 * lane + i] |= quant << (4 * half),
                    _ => lines[(2 * quad + half) * 64 + 4 * lane + i] = *quant,
                }
            }
        }
        for index in 0..groups {
            // A longer group of the source is several equal ones here.
            let from = index * format.group / group;
            for (to, value) in [(&mut *scales_to, scales[from]), (&mut *offsets_to, offsets[from])] {
                let at = index * PANEL + column;
                if to.is_empty() {
                    continue;
                }
                if format.half {
                    to[2 * at..2 * at + 2].copy_from_slice(&f16::from_f32(value).to_le_bytes());
                } else {
                    to[4 * at..4 * at + 4].copy_from_slice(&value.to_le_bytes());
                }
            }
        }
    }
}

/// A panel of quantized weights, ready to multiply: 8 bits, f32 scales and offsets.
#[derive(Default)]
pub(super) struct Unpacked {
    /// Two lines a quad.
    lines: Vec<Line>,
    pub(super) scales: Vec<[f32; PANEL]>,
    pub(super) offsets: Vec<[f32; PANEL]>,
}

impl Matrix<'_> {
    pub(super) fn panels(&self) -> usize {
        self.outputs.div_ceil(PANEL)
    }

    fn panel(&self, index: usize) -> &[u8] {
        let size = self.format.panel_bytes(self.inputs);
        &self.bytes[index * size..(index + 1) * size]
    }

    /// Makes a quantized panel ready, in `to` as far as it isn't as it lies; returns its lines.
    ///
    /// # Panics
    /// If the weights are not quantized.
    pub(super) fn unpack<'b>(&'b self, level: Level, index: usize, to: &'b mut Unpacked) -> Panel<'b> {
        let Format::Quantized(format) = self.format else { panic!("{:?} is not quantized", self.format) };
        let (quants, numbers) = self.panel(index).split_at(format.quant_bytes(self.inputs));
        let (lines, _) = quants.as_chunks();
        if format.bits == 4 {
            to.lines.resize(2 * lines.len(), [0; 64]);
        }
        let groups = self.inputs / format.group;
        to.scales.resize(groups, [0.0; PANEL]);
        to.offsets.resize(groups, [0.0; PANEL]);
        level.run(Unpack { format, lines, numbers, to });
        let lines = if format.bits == 4 { &to.lines } else { lines };
        Panel { group: format.group, zero: format.zero, lines, scales: &to.scales, offsets: &to.offsets }
    }

    /// Writes a panel's weights to `to`, `[inputs][32]`, in f32.
    pub(super) fn dequantize(&self, level: Level, index: usize, unpacked: &mut Unpacked, to: &mut [[f32; PANEL]]) {
        match self.format {
            Format::F32 => {
                widen(self.panel(index), to, f32::from_le_bytes);
            }
            Format::F16 => widen(self.panel(index), to, |bytes| f16::from_le_bytes(bytes).to_f32()),
            Format::BF16 => {
                widen(self.panel(index), to, |bytes: [u8; 2]| {
                    f32::from_bits(u32::from(u16::from_le_bytes(bytes)) << 16)
                });
            }
            Format::Quantized(_) => level.run(Dequantize { panel: self.unpack(level, index, unpacked), to }),
        }
    }

    /// Writes the weights of one output to `to`, `[inputs]`, in f32.
    pub(crate) fn row(&self, output: usize, to: &mut [f32]) {
        let (panel, column) = (self.panel(output / PANEL), output % PANEL);
        match self.format {
            Format::F32 => pick(panel, column, to, f32::from_le_bytes),
            Format::F16 => pick(panel, column, to, |bytes| f16::from_le_bytes(bytes).to_f32()),
            Format::BF16 => pick(panel, column, to, |bytes| bf16::from_le_bytes(bytes).to_f32()),
            Format::Quantized(format) => {
                let (lines, numbers) = panel.split_at(format.quant_bytes(self.inputs));
                let (half, lane) = (column / LANES, column % LANES);
                let rows = numbers.chunks_exact(format.row_bytes());
                let number = |row: &[u8]| match format.half {
                    true => f16::from_le_bytes([row[2 * column], row[2 * column + 1]]).to_f32(),
                    false => f32::from_le_bytes(std::array::from_fn(|i| row[4 * column + i])),
                };
                let groups = self.inputs / format.group;
                for (index, (scale, values)) in rows.clone().zip(to.chunks_exact_mut(format.group)).enumerate() {
                    let scale = number(scale);
                    let offset = match format.zero {
                        Some(zero) => -f32::from(zero) * scale,
                        None => rows.clone().nth(groups + index).map_or(0.0, number),
                    };
                    for (i, value) in values.iter_mut().enumerate() {
                        let input = index * format.group + i;
                        let at = 4 * lane + input % 4;
                        let quant = match format.bits {
                            4 => lines[input / 4 * 64 + at] >> (4 * half) & 15,
                            _ => lines[(input / 4 * 2 + half) * 64 + at],
                        };
                        *value = scale.mul_add(f32::from(quant), offset);
                    }
                }
            }
        }
    }
}

fn widen<const N: usize>(panel: &[u8], to: &mut [[f32; PANEL]], value: impl Fn([u8; N]) -> f32) {
    for (to, from) in to.as_flattened_mut().iter_mut().zip(panel.as_chunks::<N>().0) {
        *to = value(*from);
    }
}

fn pick<const N: usize>(panel: &[u8], column: usize, to: &mut [f32], value: impl Fn([u8; N]) -> f32) {
    for (to, from) in to.iter_mut().zip(panel.as_chunks::<N>().0.iter().skip(column).step_by(PANEL)) {
        *to = value(*from);
    }
}

/// What [`Matrix::unpack`] made ready.
#[derive(Clone, Copy)]
pub(super) struct Panel<'a> {
    pub(super) group: usize,
    /// See [`Quantized::zero`].
    pub(super) zero: Option<u8>,
    /// Two lines a quad of inputs.
    pub(super) lines: &'a [Line],
    /// `[groups]`.
    pub(super) scales: &'a [[f32; PANEL]],
    pub(super) offsets: &'a [[f32; PANEL]],
}

struct Unpack<'a> {
    format: Quantized,
    lines: &'a [Line],
    numbers: &'a [u8],
    to: &'a mut Unpacked,
}

impl Kernel for Unpack<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Unpack { format, lines, numbers, to } = self;
        if format.bits == 4 {
            for (to, line) in to.lines.as_chunks_mut::<2>().0.iter_mut().zip(lines) {
                let line = isa.load_bytes(line);
                isa.store_bytes(isa.low_nibbles(line), &mut to[0]);
                isa.store_bytes(isa.high_nibbles(line), &mut to[1]);
            }
        }
        let (scales, offsets) = numbers.split_at(to.scales.len() * format.row_bytes());
        floats(isa, format.half, scales, &mut to.scales);
        match format.zero {
            None => floats(isa, format.half, offsets, &mut to.offsets),
            Some(zero) => {
                let zero = -f32::from(zero);
                for (offset, scale) in to.offsets.as_flattened_mut().iter_mut().zip(to.scales.as_flattened()) {
                    *offset = zero * scale;
                }
            }
        }
    }
}

/// Converts rows of 32 numbers.
#[inline(always)]
fn floats<I: Isa>(isa: I, half: bool, from: &[u8], to: &mut [[f32; PANEL]]) {
    let (to, _) = to.as_flattened_mut().as_chunks_mut::<LANES>();
    if half {
        for (to, from) in to.iter_mut().zip(from.as_chunks().0) {
            isa.store(isa.load_halves(from), to);
        }
    } else {
        for (to, from) in to.iter_mut().zip(from.as_chunks().0) {
            isa.store(isa.load_floats(from), to);
        }
    }
}

struct Dequantize<'a> {
    panel: Panel<'a>,
    to: &'a mut [[f32; PANEL]],
}

impl Kernel for Dequantize<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Panel { group, lines, scales, offsets, .. } = self.panel;
        let groups = self.to.chunks_exact_mut(group).zip(lines.chunks_exact(group / 2));
        for ((to, lines), (scale, offset)) in groups.zip(scales.iter().zip(offsets)) {
            let (scale, _) = scale.as_chunks::<LANES>();
            let (offset, _) = offset.as_chunks::<LANES>();
            for (to, quad) in to.chunks_exact_mut(4).zip(lines.chunks_exact(2)) {
                for n in 0..2 {
                    let line = isa.load_bytes(&quad[n]);
                    let (scale, offset) = (isa.load(&scale[n]), isa.load(&offset[n]));
                    for (i, to) in to.iter_mut().enumerate() {
                        let value = isa.fma(scale, isa.byte_of_lanes(line, i), offset);
                        isa.store(value, &mut to.as_chunks_mut::<LANES>().0[n]);
                    }
                }
            }
        }
    }
}
