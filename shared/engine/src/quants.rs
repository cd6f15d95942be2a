//! How GGUF stores weights, and their values in f32.
//!
//! The block formats are ggml's (`ggml-common.h`): 32 consecutive values of a row share a scale `d` in f16.
//! - `Q8_0`: `d`, then 32 signed bytes `q`; the value is `d q`.
//! - `Q4_0`: `d`, then 16 bytes, the low nibble of byte `i` for value `i`, the high one for value `i + 16`; `d (q - 8)`.
//! - `Q4_1`: `d` and an offset `m` in f16, then nibbles likewise; `d q + m`.

use half::{bf16, f16};

use crate::gguf;

/// Values in a block of the quantized formats.
const BLOCK: usize = 32;

/// An element type that weights may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    F32,
    F16,
    BF16,
    Q4_0,
    Q4_1,
    Q8_0,
}

impl Type {
    pub(crate) const SUPPORTED: &str = "F32, F16, BF16, Q4_0, Q4_1 and Q8_0";

    /// The type with ggml's number `id`, if it is supported.
    pub fn from_ggml(id: u32) -> Option<Type> {
        Some(match id {
            0 => Type::F32,
            1 => Type::F16,
            2 => Type::Q4_0,
            3 => Type::Q4_1,
            8 => Type::Q8_0,
            30 => Type::BF16,
            _ => return None,
        })
    }

    /// ggml's name for a type number, for messages about types that are not supported.
    pub(crate) fn describe_ggml(id: u32) -> String {
        let name = match id {
            6 => "Q5_0",
            7 => "Q5_1",
            9 => "Q8_1",
            10 => "Q2_K",
            11 => "Q3_K",
            12 => "Q4_K",
            13 => "Q5_K",
            14 => "Q6_K",
            15 => "Q8_K",
            16..=23 | 29 => "an IQ format",
            24..=27 => "an integer",
            28 => "F64",
            34 | 35 => "a ternary format",
            39 => "MXFP4",
            _ => "unknown",
        };
        format!("{id} ({name})")
    }

    /// Values that are stored together.
    pub fn block_len(self) -> usize {
        match self {
            Type::F32 | Type::F16 | Type::BF16 => 1,
            Type::Q4_0 | Type::Q4_1 | Type::Q8_0 => BLOCK,
        }
    }

    /// Bytes that [`Self::block_len`] values take.
    pub fn block_bytes(self) -> usize {
        match self {
            Type::F32 => 4,
            Type::F16 | Type::BF16 => 2,
            Type::Q4_0 => 2 + BLOCK / 2,
            Type::Q4_1 => 4 + BLOCK / 2,
            Type::Q8_0 => 2 + BLOCK,
        }
    }

    /// Writes the values of `bytes` to `out`. Only whole blocks that both have room for are written.
    pub fn dequantize(self, bytes: &[u8], out: &mut [f32]) {
        let blocks = bytes.chunks_exact(self.block_bytes()).zip(out.chunks_exact_mut(self.block_len()));
        match self {
            Type::F32 => blocks.for_each(|(b, out)| out[0] = f32::from_le_bytes([b[0], b[1], b[2], b[3]])),
            Type::F16 => blocks.for_each(|(b, out)| out[0] = half(b)),
            Type::BF16 => blocks.for_each(|(b, out)| out[0] = bf16::from_le_bytes([b[0], b[1]]).to_f32()),
            Type::Q8_0 => blocks.for_each(|(b, out)| {
                let d = half(b);
                for (out, q) in out.iter_mut().zip(&b[2..]) {
                    *out = d * f32::from(*q as i8);
                }
            }),
            Type::Q4_0 => blocks.for_each(|(b, out)| {
                let d = half(b);
                nibbles(&b[2..], out, |q| d * (q - 8.0));
            }),
            Type::Q4_1 => blocks.for_each(|(b, out)| {
                let (d, m) = (half(b), half(&b[2..]));
                nibbles(&b[4..], out, |q| d * q + m);
            }),
        }
    }
}

impl gguf::Tensor<'_> {
    /// Values in a row: the dimension that runs fastest.
    pub fn row_len(&self) -> usize {
        self.dims[0]
    }

    /// Rows of [`Self::row_len`] values.
    pub fn rows(&self) -> usize {
        self.dims[1..].iter().product()
    }

    /// Writes row `row` to `out`, both of [`Self::row_len`] values.
    ///
    /// # Panics
    /// If the tensor has no such row.
    pub fn dequantize_row(&self, row: usize, out: &mut [f32]) {
        let len = self.row_len() / self.dtype.block_len() * self.dtype.block_bytes();
        self.dtype.dequantize(&self.bytes[row * len..(row + 1) * len], out);
    }
}

fn half(bytes: &[u8]) -> f32 {
    f16::from_le_bytes([bytes[0], bytes[1]]).to_f32()
}

fn nibbles(bytes: &[u8], out: &mut [f32], value: impl Fn(f32) -> f32) {
    let (low, high) = out.split_at_mut(BLOCK / 2);
    for ((byte, low), high) in bytes.iter().zip(low).zip(high) {
        *low = value(f32::from(byte & 15));
        *high = value(f32::from(byte >> 4));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(dtype: Type, bytes: &[u8]) -> Vec<f32> {
        let mut out = vec![f32::NAN; bytes.len() / dtype.block_bytes() * dtype.block_len()];
        dtype.dequantize(bytes, &mut out);
        out
    }

    #[test]
    fn formats_are_what_ggml_defines() {
        assert_eq!(values(Type::F32, &1.25f32.to_le_bytes()), [1.25]);
        // Sign, 5 bits of exponent less 15, 10 of fraction: -2^1 * 1.5.
        assert_eq!(values(Type::F16, &[0x00, 0xc2]), [-3.0]);
        // The upper half of an f32: 2^0 * 1.5.
        assert_eq!(values(Type::BF16, &[0xc0, 0x3f]), [1.5]);

        // d = 0.5 (f16 0x3800); value 0 is byte 0's low nibble, value 16 its high one.
        let mut block = vec![0x00, 0x38];
        block.extend([0x5a; 16]);
        block[2] = 0xf0;
        let q4_0 = values(Type::Q4_0, &block);
        assert_eq!((q4_0[0], q4_0[16], q4_0[1], q4_0[31]), (-4.0, 3.5, 1.0, -1.5));

        // The same nibbles with m = -2 (f16 0xc000).
        block.splice(2..2, [0x00, 0xc0]);
        let q4_1 = values(Type::Q4_1, &block);
        assert_eq!((q4_1[0], q4_1[16], q4_1[1], q4_1[31]), (-2.0, 5.5, 3.0, 0.5));

        let mut block = vec![0x00, 0x38];
        block.extend((0..32).map(|i| (i * 8 - 128) as u8));
        let q8_0 = values(Type::Q8_0, &block.repeat(2));
        assert_eq!((q8_0.len(), q8_0[0], q8_0[16], q8_0[31], q8_0[63]), (64, -64.0, 0.0, 60.0, 60.0));
    }
}
