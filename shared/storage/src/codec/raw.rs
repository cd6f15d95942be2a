//! bf16 values as they are, little-endian.

use super::{Codec, Error};

/// Bytes of a frame of `values` values.
pub(super) fn frame_len(values: usize) -> Option<usize> {
    values.checked_mul(2)
}

pub(super) fn encode(values: &[u16], out: &mut Vec<u8>) {
    out.extend(values.iter().flat_map(|value| value.to_le_bytes()));
}

pub(super) fn decode(frame: &[u8], values: usize) -> Result<Vec<u16>, Error> {
    if frame_len(values) != Some(frame.len()) {
        return Err(Error::Length { codec: Codec::Raw, values, found: frame.len() });
    }
    let (pairs, _) = frame.as_chunks::<2>();
    Ok(pairs.iter().map(|pair| u16::from_le_bytes(*pair)).collect())
}
