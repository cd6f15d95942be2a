//! Fields of 2 or 4 bits, several to a byte. The fields of one byte lie far apart, a fraction of all fields from each other:
//! so packing and unpacking are plain loops over bytes that the compiler vectorises.

/// Bytes that `count` fields take.
pub(super) const fn packed_len<const BITS: usize>(count: usize) -> usize {
    count.div_ceil(8 / BITS)
}

/// Appends the `BITS` bits from bit `shift` on of each value.
pub(super) fn pack<const BITS: usize>(values: &[u8], shift: usize, out: &mut Vec<u8>) {
    let stride = packed_len::<BITS>(values.len());
    let start = out.len();
    out.resize(start + stride, 0);
    let packed = &mut out[start..];
    for (place, fields) in values.chunks(stride.max(1)).enumerate() {
        for (byte, value) in packed.iter_mut().zip(fields) {
            *byte |= ((value >> shift) & mask::<BITS>()) << (BITS * place);
        }
    }
}

/// Sets what [`pack`] took in values whose bits there are 0. `packed` has the length for as many values.
pub(super) fn unpack<const BITS: usize>(packed: &[u8], shift: usize, values: &mut [u8]) {
    for (place, fields) in values.chunks_mut(packed.len().max(1)).enumerate() {
        for (byte, value) in packed.iter().zip(fields) {
            *value |= ((byte >> (BITS * place)) & mask::<BITS>()) << shift;
        }
    }
}

const fn mask<const BITS: usize>() -> u8 {
    (1 << BITS) - 1
}
