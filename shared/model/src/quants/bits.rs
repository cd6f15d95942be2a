//! What all formats are read with.

use half::f16;

/// Values in a block of the simple formats.
pub(super) const BLOCK: usize = 32;
/// Values in a super-block of the "K" formats.
pub(super) const SUPER_BLOCK: usize = 256;

/// The f16 at `at`.
#[inline]
pub(super) fn half(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

/// The low nibbles of all bytes, then the high ones.
#[inline]
pub(super) fn nibbles(bytes: &[u8], quants: &mut [u8]) {
    let (low, high) = quants.split_at_mut(bytes.len());
    for ((byte, low), high) in bytes.iter().zip(low).zip(high) {
        *low = byte & 15;
        *high = byte >> 4;
    }
}
