//! The "K" formats: super-blocks of 256 values in groups of 16 or 32, whose scales (and offsets) are small integers times
//! one `d` (and `dmin`) in f16.

use super::bits::{SUPER_BLOCK, half, nibbles};

/// Bytes of a super-block.
pub(super) const Q2_K: usize = 16 + SUPER_BLOCK / 4 + 4;
pub(super) const Q3_K: usize = SUPER_BLOCK / 8 + SUPER_BLOCK / 4 + 12 + 2;
pub(super) const Q4_K: usize = 4 + 12 + SUPER_BLOCK / 2;
pub(super) const Q5_K: usize = 4 + 12 + SUPER_BLOCK / 8 + SUPER_BLOCK / 2;
pub(super) const Q6_K: usize = SUPER_BLOCK / 2 + SUPER_BLOCK / 4 + 16 + 2;

/// The quants of the value 0.
pub(super) const Q3_ZERO: u8 = 4;
pub(super) const Q6_ZERO: u8 = 32;

type Quants = [u8; SUPER_BLOCK];
/// A number for each group of 16.
type Of16 = [f32; SUPER_BLOCK / 16];
/// A number for each group of 32.
type Of32 = [f32; SUPER_BLOCK / 32];

/// 16 bytes with `sc` in the low nibble and `m` in the high one, 2-bit quants, `d`, `dmin`; `d sc q - dmin m`.
pub(super) fn q2_k(block: &[u8; Q2_K], quants: &mut Quants, scales: &mut Of16, offsets: &mut Of16) {
    let (d, dmin) = (half(block, 80), half(block, 82));
    for ((scale, offset), byte) in scales.iter_mut().zip(offsets).zip(&block[..16]) {
        *scale = d * f32::from(byte & 15);
        *offset = -(dmin * f32::from(byte >> 4));
    }
    quants.fill(0);
    pairs_of_bits(&block[16..80], 0, quants);
}

/// 256 third bits, 2-bit quants, 16 `sc` of 6 bits, `d`; `d (sc - 32) (q - 4)`.
pub(super) fn q3_k(block: &[u8; Q3_K], quants: &mut Quants, scales: &mut Of16, offsets: &mut Of16) {
    let (d, packed) = (half(block, 108), &block[96..108]);
    for i in 0..16 {
        // Four bits of scale i lie in byte i mod 8, the two upper ones in byte 8 + i mod 4.
        let low = packed[i % 8] >> (i / 8 * 4) & 15;
        let high = packed[8 + i % 4] >> (i / 4 * 2) & 3;
        scales[i] = d * (f32::from(high << 4 | low) - 32.0);
        offsets[i] = -f32::from(Q3_ZERO) * scales[i];
    }
    quants.fill(0);
    pairs_of_bits(&block[32..96], 0, quants);
    bits(&block[..32], 2, quants);
}

/// `d`, `dmin`, 8 `sc` and 8 `m` of 6 bits, nibbles; `d sc q - dmin m`.
pub(super) fn q4_k(block: &[u8; Q4_K], quants: &mut Quants, scales: &mut Of32, offsets: &mut Of32) {
    six_bits(block, scales, offsets);
    nibbles_of_64(&block[16..], quants);
}

/// `d`, `dmin`, 8 `sc` and 8 `m` of 6 bits, 256 fifth bits, nibbles; `d sc q - dmin m`.
pub(super) fn q5_k(block: &[u8; Q5_K], quants: &mut Quants, scales: &mut Of32, offsets: &mut Of32) {
    six_bits(block, scales, offsets);
    nibbles_of_64(&block[48..], quants);
    bits(&block[16..48], 4, quants);
}

/// Nibbles, upper 2 bits of the quants, 16 signed `sc`, `d`; `d sc (q - 32)`.
pub(super) fn q6_k(block: &[u8; Q6_K], quants: &mut Quants, scales: &mut Of16, offsets: &mut Of16) {
    let d = half(block, 208);
    for ((scale, offset), sc) in scales.iter_mut().zip(offsets).zip(&block[192..208]) {
        *scale = d * f32::from(*sc as i8);
        *offset = -f32::from(Q6_ZERO) * *scale;
    }
    for (bytes, quants) in block[..128].as_chunks::<64>().0.iter().zip(quants.as_chunks_mut::<128>().0) {
        nibbles(bytes, quants);
    }
    pairs_of_bits(&block[128..192], 4, quants);
}

/// Of `d`, `dmin` and 12 bytes: six bits of `sc` 0 to 3 and of `m` 0 to 3 in bytes 0 to 7, whose two upper bits are those
/// of `sc` and `m` 4 to 7; their four lower bits are the low and the high nibbles of bytes 8 to 11.
fn six_bits(block: &[u8], scales: &mut Of32, offsets: &mut Of32) {
    let (d, dmin, packed) = (half(block, 0), half(block, 2), &block[4..16]);
    for i in 0..4 {
        let (sc, m, low) = (packed[i], packed[4 + i], packed[8 + i]);
        scales[i] = d * f32::from(sc & 63);
        scales[4 + i] = d * f32::from(sc >> 6 << 4 | low & 15);
        offsets[i] = -(dmin * f32::from(m & 63));
        offsets[4 + i] = -(dmin * f32::from(m >> 6 << 4 | low >> 4));
    }
}

/// 32 bytes hold 64 values: first the low nibbles, then the high ones.
fn nibbles_of_64(packed: &[u8], quants: &mut Quants) {
    for (bytes, quants) in packed.as_chunks::<32>().0.iter().zip(quants.as_chunks_mut::<64>().0) {
        nibbles(bytes, quants);
    }
}

/// Adds two bits to each quant, at bit `place`: 32 bytes hold 128 values, the lowest pairs of bits first.
fn pairs_of_bits(packed: &[u8], place: u32, quants: &mut Quants) {
    for (bytes, quants) in packed.as_chunks::<32>().0.iter().zip(quants.as_chunks_mut::<128>().0) {
        for (pair, quants) in quants.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            quants.iter_mut().zip(bytes).for_each(|(q, byte)| *q |= (byte >> (2 * pair) & 3) << place);
        }
    }
}

/// Adds a bit to each quant, at bit `place`: bit `g` of byte `i` belongs to value `32 g + i`.
fn bits(packed: &[u8], place: u32, quants: &mut Quants) {
    for (group, quants) in quants.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        quants.iter_mut().zip(packed).for_each(|(q, byte)| *q |= (byte >> group & 1) << place);
    }
}
