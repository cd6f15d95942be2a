//! The simple formats: blocks of 32 values, each one group. `d` and `m` are f16; value `i` of a block lies in the low nibble
//! of byte `i` of its 16 bytes of nibbles, value `i + 16` in the high one.

use super::bits::{BLOCK, half, nibbles};

/// Bytes of a block.
pub(super) const Q4_0: usize = 2 + BLOCK / 2;
pub(super) const Q4_1: usize = 4 + BLOCK / 2;
pub(super) const Q5_0: usize = 2 + BLOCK / 8 + BLOCK / 2;
pub(super) const Q5_1: usize = 4 + BLOCK / 8 + BLOCK / 2;
pub(super) const Q8_0: usize = 2 + BLOCK;

/// The quants of the value 0.
pub(super) const Q4_ZERO: u8 = 8;
pub(super) const Q5_ZERO: u8 = 16;
pub(super) const Q8_ZERO: u8 = 128;

/// `d`, nibbles; `d (q - 8)`.
pub(super) fn q4_0(block: &[u8; Q4_0], quants: &mut [u8; BLOCK], scale: &mut [f32; 1], offset: &mut [f32; 1]) {
    symmetric(half(block, 0), Q4_ZERO, scale, offset);
    nibbles(&block[2..], quants);
}

/// `d`, `m`, nibbles; `d q + m`.
pub(super) fn q4_1(block: &[u8; Q4_1], quants: &mut [u8; BLOCK], scale: &mut [f32; 1], offset: &mut [f32; 1]) {
    (*scale, *offset) = ([half(block, 0)], [half(block, 2)]);
    nibbles(&block[4..], quants);
}

/// `d`, 32 fifth bits, nibbles; `d (q - 16)`.
pub(super) fn q5_0(block: &[u8; Q5_0], quants: &mut [u8; BLOCK], scale: &mut [f32; 1], offset: &mut [f32; 1]) {
    symmetric(half(block, 0), Q5_ZERO, scale, offset);
    nibbles(&block[6..], quants);
    fifth_bits(&block[2..6], quants);
}

/// `d`, `m`, 32 fifth bits, nibbles; `d q + m`.
pub(super) fn q5_1(block: &[u8; Q5_1], quants: &mut [u8; BLOCK], scale: &mut [f32; 1], offset: &mut [f32; 1]) {
    (*scale, *offset) = ([half(block, 0)], [half(block, 2)]);
    nibbles(&block[8..], quants);
    fifth_bits(&block[4..8], quants);
}

/// `d`, 32 signed bytes, which are quants less 128; `d (q - 128)`.
pub(super) fn q8_0(block: &[u8; Q8_0], quants: &mut [u8; BLOCK], scale: &mut [f32; 1], offset: &mut [f32; 1]) {
    symmetric(half(block, 0), Q8_ZERO, scale, offset);
    quants.iter_mut().zip(&block[2..]).for_each(|(q, byte)| *q = byte ^ Q8_ZERO);
}

fn symmetric(d: f32, zero: u8, scale: &mut [f32; 1], offset: &mut [f32; 1]) {
    (*scale, *offset) = ([d], [-f32::from(zero) * d]);
}

/// Adds bit `i` of `packed` to quant `i`, with the weight 16; eight at a time in a word of bytes.
fn fifth_bits(packed: &[u8], quants: &mut [u8; BLOCK]) {
    const ONES: u64 = 0x0101_0101_0101_0101;
    for (bits, quants) in packed.iter().zip(quants.as_chunks_mut::<8>().0) {
        // Byte i keeps bit i; adding 127 carries it, whichever it is, to the top of the byte.
        let spread = (u64::from(*bits) * ONES) & 0x8040_2010_0804_0201;
        let top = (spread + 0x7f * ONES) & (0x80 * ONES);
        *quants = (u64::from_le_bytes(*quants) | top >> 3).to_le_bytes();
    }
}
