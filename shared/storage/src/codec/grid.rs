//! The levels of one half of a layer: one step, counted from the mean of each channel.
//!
//! Means are kept to a small part of a step: a channel that varies by less than a step would else be off by the same for all
//! tokens but the exact ones, and it is these that take most of the attention. Every operation has one order and one
//! rounding, and none may be fused, so the levels are the same on all machines.

use super::{
    reader::Reader,
    rows::{Care, Rows, float},
};

/// A symbol is the number of steps from the mean, plus this.
const ZERO: i32 = 128;
/// Added to a float below 2^22 it leaves the nearest whole number in the lowest bits: 1.5 * 2^23.
const ROUNDER: f32 = 12_582_912.0;
/// Means are multiples of a step divided by a power of 2, at most this one.
const FINEST: u8 = 8;
/// Means that fit a byte each at this power or a higher one are stored so.
const FINE_ENOUGH: u8 = 3;
/// Marks, in the byte that holds the power, means of one byte.
const NARROW: u8 = 0x80;

#[derive(Default)]
pub(super) struct Grid {
    step: f32,
    inverse: f32,
    /// The parts of a step that means are multiples of: 2 to this power.
    fineness: u8,
    is_narrow: bool,
    /// The means as such multiples, and as values.
    multiples: Vec<i16>,
    means: Vec<f32>,
}

impl Grid {
    /// Sets the step to the deviation of K (`which` 0) or V (1) from the channels' means, divided by `levels_per_rms`; only
    /// tokens count that are not exact. Returns whether there is such a grid: not if all values are the same, or too large.
    pub(super) fn measure(
        &mut self,
        half: &[u16],
        width: usize,
        rows: &Rows,
        which: usize,
        levels_per_rms: f32,
    ) -> bool {
        self.means.clear();
        self.means.resize(width, 0.0);
        let mut tokens = 0u32;
        for (row, _) in half.chunks_exact(width).zip(&rows.care).filter(|(_, care)| **care != Care::Exact) {
            tokens += 1;
            for (value, mean) in row.iter().zip(&mut self.means) {
                *mean += float(*value);
            }
        }
        let tokens_f64 = f64::from(tokens);
        let of_means: f64 = self.means.iter().map(|sum| f64::from(*sum) * f64::from(*sum) / tokens_f64).sum();
        let variance = (rows.energy(which) - of_means) / (tokens_f64 * width as f64);
        // Of no token or of one that is its own mean, of NaN or rounding: none of these is positive and normal.
        self.step = (variance.sqrt() / f64::from(levels_per_rms)) as f32;
        self.inverse = 1.0 / self.step;
        if tokens < 2 || !self.is_usable() || !self.inverse.is_normal() {
            return false;
        }
        let in_steps = f64::from(self.inverse) / tokens_f64;
        let farthest = self.means.iter().map(|sum| (f64::from(*sum) * in_steps).abs()).fold(0.0, f64::max);
        let finest = |from: u8, limit: f64| {
            (from..=FINEST).rev().find(|fineness| farthest * f64::from(1u32 << fineness) < limit)
        };
        let narrow = finest(FINE_ENOUGH, f64::from(i8::MAX));
        let Some(fineness) = narrow.or_else(|| finest(0, f64::from(i16::MAX))) else { return false };
        (self.fineness, self.is_narrow) = (fineness, narrow.is_some());
        let in_parts = in_steps * f64::from(1u32 << fineness);
        self.multiples.clear();
        self.multiples.extend(self.means.iter().map(|sum| (f64::from(*sum) * in_parts).round() as i16));
        self.set_means();
        true
    }

    fn set_means(&mut self) {
        let part = self.step / (1u32 << self.fineness) as f32;
        self.means.clear();
        self.means.extend(self.multiples.iter().map(|multiple| f32::from(*multiple) * part));
    }

    /// Steps so large that a level could be infinite are no less wrong than 0.
    fn is_usable(&self) -> bool {
        self.step.is_normal() && self.step > 0.0 && self.step < f32::MAX / f32::from(u16::MAX)
    }

    /// Appends the symbols of one token, in steps divided by `finer`, a power of 2. Returns whether all its values have one;
    /// if not, what was appended means nothing.
    pub(super) fn quantize(&self, row: &[u16], finer: f32, symbols: &mut Vec<u8>) -> bool {
        let inverse = self.inverse * finer;
        let zero = ROUNDER.to_bits() as i32 - ZERO;
        let start = symbols.len();
        symbols.resize(start + row.len(), 0);
        let mut all = 0;
        for ((value, mean), symbol) in row.iter().zip(&self.means).zip(&mut symbols[start..]) {
            // Too large a product leaves bits that are far from the rounder's, and so does one that is not a number.
            let rounded = ((float(*value) - mean) * inverse + ROUNDER).to_bits() as i32;
            let found = rounded.wrapping_sub(zero) as u32;
            all |= found;
            *symbol = found as u8;
        }
        all <= u32::from(u8::MAX)
    }

    /// Sets the bf16 bit patterns of what [`quantize`](Self::quantize) appended for one token.
    pub(super) fn restore(&self, symbols: &[u8], finer: f32, out: &mut [u16]) {
        let step = self.step / finer;
        for ((symbol, mean), out) in symbols.iter().zip(&self.means).zip(out) {
            let bits = ((i32::from(*symbol) - ZERO) as f32 * step + mean).to_bits();
            // To the nearest bf16, ties to even. No carry leaves the top bit: `read` sees to it that this is a number.
            *out = ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16;
        }
    }

    /// Appends the step, the fineness of the means and the means.
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.step.to_le_bytes());
        if self.is_narrow {
            out.push(self.fineness | NARROW);
            out.extend(self.multiples.iter().map(|multiple| *multiple as u8));
        } else {
            out.push(self.fineness);
            out.extend(self.multiples.iter().flat_map(|multiple| multiple.to_le_bytes()));
        }
    }

    /// Reads what [`write`](Self::write) wrote for `width` channels. `None` if it is not that.
    pub(super) fn read(&mut self, reader: &mut Reader<'_>, width: usize) -> Option<()> {
        self.step = reader.f32()?;
        let [power] = *reader.take(1)? else { return None };
        (self.fineness, self.is_narrow) = (power & !NARROW, power & NARROW != 0);
        if !self.is_usable() || self.fineness > FINEST {
            return None;
        }
        self.multiples.clear();
        if self.is_narrow {
            self.multiples.extend(reader.take(width)?.iter().map(|multiple| i16::from(*multiple as i8)));
        } else {
            let (multiples, _) = reader.take(width.checked_mul(size_of::<i16>())?)?.as_chunks();
            self.multiples.extend(multiples.iter().map(|multiple| i16::from_le_bytes(*multiple)));
        }
        self.set_means();
        Some(())
    }
}
