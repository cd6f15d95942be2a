//! Which tokens a quantizer must treat with care.
//!
//! A few tokens take a large part of all attention: the first of the prompt, and in some layers full stops, line breaks and
//! the like. Where they do, their values are far smaller than others', and the keys of some too. Rounding those does most
//! of the damage that rounding does: without care for them the divergence is several times as large, and now and then one
//! of the next tokens becomes quite another. So care goes by this measure and not by place, and needs no knowledge of where
//! in the prompt a chunk lies.

use super::{planes, reader::Reader};

/// Tokens whose root mean square in K, or in V, is below this part of the chunk's median are exact.
const EXACT_BELOW: [f32; 2] = [0.6, 0.375];
/// Of the others, those whose root mean square in V is below this part of the median have fine keys.
const FINE_BELOW: f32 = 0.65;
/// Tokens that are so many times as loud as the median are exact: they would need more levels than there are.
const EXACT_ABOVE: f32 = 16.0;

/// How a token is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Care {
    Plain = 0,
    /// K is rounded to finer steps.
    Fine = 1,
    /// K and V are kept as they are.
    Exact = 2,
}

/// Every token's care, and buffers that are kept between layers.
#[derive(Default)]
pub(super) struct Rows {
    pub(super) care: Vec<Care>,
    /// Sums of squares of each token's K, then of its V.
    squares: [Vec<f32>; 2],
    sorted: Vec<f32>,
    /// The cares as they are stored, a byte each.
    codes: Vec<u8>,
}

impl Rows {
    /// Looks at the tokens of K and V, `[tokens, width]` each. `width` is not 0.
    pub(super) fn measure(&mut self, halves: [&[u16]; 2], width: usize) {
        self.care.clear();
        self.care.resize(halves[0].len() / width, Care::Plain);
        for ((half, exact_below), squares) in halves.into_iter().zip(EXACT_BELOW).zip(&mut self.squares) {
            squares.clear();
            squares.extend(half.chunks_exact(width).map(sum_of_squares));
            let median = median(squares, &mut self.sorted);
            let ordinary = median * exact_below * exact_below..=median * EXACT_ABOVE * EXACT_ABOVE;
            for (square, care) in squares.iter().zip(&mut self.care) {
                // What is not a number lies in no range.
                if !ordinary.contains(square) || square.is_infinite() {
                    *care = Care::Exact;
                }
            }
        }
        let fine_below = median(&self.squares[1], &mut self.sorted) * FINE_BELOW * FINE_BELOW;
        for (square, care) in self.squares[1].iter().zip(&mut self.care) {
            if *care == Care::Plain && *square < fine_below {
                *care = Care::Fine;
            }
        }
    }

    /// Sum of the squares of all tokens of K (0) or V (1) that are not exact.
    pub(super) fn energy(&self, half: usize) -> f64 {
        let rounded = self.squares[half].iter().zip(&self.care).filter(|(_, care)| **care != Care::Exact);
        rounded.map(|(square, _)| f64::from(*square)).sum()
    }

    pub(super) fn exact_count(&self) -> usize {
        self.care.iter().filter(|care| **care == Care::Exact).count()
    }

    /// Appends the cares, two bits a token.
    pub(super) fn write(&mut self, out: &mut Vec<u8>) {
        self.codes.clear();
        self.codes.extend(self.care.iter().map(|care| *care as u8));
        planes::pack::<2>(&self.codes, 0, out);
    }

    /// Reads what [`write`](Self::write) wrote for `tokens` tokens. `None` if it is not that.
    pub(super) fn read(&mut self, reader: &mut Reader<'_>, tokens: usize) -> Option<()> {
        let packed = reader.take(planes::packed_len::<2>(tokens))?;
        self.codes.clear();
        self.codes.resize(tokens, 0);
        planes::unpack::<2>(packed, 0, &mut self.codes);
        self.care.clear();
        for code in &self.codes {
            self.care.push(match code {
                0 => Care::Plain,
                1 => Care::Fine,
                2 => Care::Exact,
                _ => return None,
            });
        }
        Some(())
    }
}

/// The upper median; 0 of nothing.
fn median(values: &[f32], sorted: &mut Vec<f32>) -> f32 {
    sorted.clear();
    sorted.extend_from_slice(values);
    let middle = sorted.len() / 2;
    if sorted.is_empty() { 0.0 } else { *sorted.select_nth_unstable_by(middle, f32::total_cmp).1 }
}

/// Sixteen sums side by side, which the compiler vectorises, in an order that does not depend on the machine.
fn sum_of_squares(row: &[u16]) -> f32 {
    let mut sums = [0.0f32; 16];
    let (blocks, rest) = row.as_chunks::<16>();
    for block in blocks {
        for (sum, value) in sums.iter_mut().zip(block) {
            let value = float(*value);
            *sum += value * value;
        }
    }
    sums.iter().sum::<f32>() + rest.iter().map(|value| float(*value) * float(*value)).sum::<f32>()
}

/// The number of a bf16 bit pattern.
pub(super) fn float(value: u16) -> f32 {
    f32::from_bits(u32::from(value) << 16)
}
