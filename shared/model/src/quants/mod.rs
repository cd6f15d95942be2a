//! How GGUF stores weights, and their values in f32.
//!
//! The quantized formats are ggml's (`ggml-common.h`). All of them are affine codes: 16 or 32 consecutive values of a row
//! share a scale and an offset in f32, and the value of the quant `q`, an unsigned byte, is `scale * q + offset`.
//!
//! # Why this is exact
//!
//! ggml defines the values as `d * sc * (q - zero)` (symmetric types) or `d * sc * q - dmin * m` (the others), in f32, where
//! `d` and `dmin` are f16 (11 significant bits) and `sc` and `m` are small integers. All products fit the 24 bits of an f32:
//!
//! | type | bits of `d` | of `sc` | scale | of `q` | `scale * q` |
//! | --- | --- | --- | --- | --- | --- |
//! | `Q4_0`, `Q4_1` | 11 | | 11 | 4 | 15 |
//! | `Q5_0`, `Q5_1` | 11 | | 11 | 5 | 16 |
//! | `Q8_0` | 11 | | 11 | 8 | 19 |
//! | `Q2_K` | 11 | 4 | 15 | 2 | 17 |
//! | `Q3_K` | 11 | 5 (-32 to 31) | 16 | 3 | 19 |
//! | `Q4_K` | 11 | 6 | 17 | 4 | 21 |
//! | `Q5_K` | 11 | 6 | 17 | 5 | 22 |
//! | `Q6_K` | 11 | 7 (-128 to 127) | 18 | 6 | 24 |
//!
//! Every finite f16 is a multiple of 2^-24 below 2^16, so that no product comes near the ends of f32's exponents either.
//! Scale, offset (`-zero * scale`, with `zero` a power of two, or `-(dmin * m)`) and `scale * q` are therefore exact, and only
//! the last sum is rounded: `fma(scale, q, offset)`, a product and a sum one after the other, and ggml's formula give the
//! same bits. For symmetric types the sum is exact, too. The one difference is the sign of a zero, which no sum of products
//! can tell: a symmetric type's zeros are all positive here. Scales that are infinite or NaN give NaN, never a panic.

mod bits;
mod blocks;
mod super_blocks;
#[cfg(test)]
mod tests;

use half::{bf16, f16, slice::HalfFloatSliceExt};

use bits::{BLOCK, SUPER_BLOCK};

/// An element type that weights may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(non_camel_case_types, reason = "ggml's own names, which users know")]
pub enum Type {
    /// 32-bit floats.
    F32,
    /// 16-bit floats with 5 bits of exponent.
    F16,
    /// The upper halves of 32-bit floats.
    BF16,
    /// 4 bits, with a scale for each 32.
    Q4_0,
    /// 4 bits, with a scale and an offset for each 32.
    Q4_1,
    /// 5 bits, with a scale for each 32.
    Q5_0,
    /// 5 bits, with a scale and an offset for each 32.
    Q5_1,
    /// 8 bits, with a scale for each 32.
    Q8_0,
    /// 2 bits, with a scale and an offset for each 16, in blocks of 256.
    Q2_K,
    /// 3 bits, with a scale for each 16, in blocks of 256.
    Q3_K,
    /// 4 bits, with a scale and an offset for each 32, in blocks of 256.
    Q4_K,
    /// 5 bits, with a scale and an offset for each 32, in blocks of 256.
    Q5_K,
    /// 6 bits, with a scale for each 16, in blocks of 256.
    Q6_K,
}

/// How a quantized type decomposes: a value is `fma(scale, f32::from(q), offset)`, rounded once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grouping {
    /// Consecutive values that share a scale and an offset: 16 or 32.
    pub len: usize,
    /// The largest `q`: up to 15 it fits 4 bits.
    pub max: u8,
    /// Symmetric types: the `q` of the value 0, so that an offset is `-zero * scale` and need not be kept.
    pub zero: Option<u8>,
    /// Whether every scale, and every offset that must be kept, is exactly representable in f16.
    pub half: bool,
}

impl Type {
    pub(crate) const SUPPORTED: &str = "F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K and Q6_K";

    /// The type with ggml's number `id`, if it is supported.
    pub fn from_ggml(id: u32) -> Option<Type> {
        Some(match id {
            0 => Type::F32,
            1 => Type::F16,
            2 => Type::Q4_0,
            3 => Type::Q4_1,
            6 => Type::Q5_0,
            7 => Type::Q5_1,
            8 => Type::Q8_0,
            10 => Type::Q2_K,
            11 => Type::Q3_K,
            12 => Type::Q4_K,
            13 => Type::Q5_K,
            14 => Type::Q6_K,
            30 => Type::BF16,
            _ => return None,
        })
    }

    /// ggml's name for a type number, for messages about types that are not supported.
    pub(crate) fn describe_ggml(id: u32) -> String {
        let name = match id {
            4 | 5 | 31..=33 | 36..=38 => "a format that ggml has dropped",
            9 => "Q8_1",
            15 => "Q8_K",
            16 => "IQ2_XXS",
            17 => "IQ2_XS",
            18 => "IQ3_XXS",
            19 => "IQ1_S",
            20 => "IQ4_NL",
            21 => "IQ3_S",
            22 => "IQ2_S",
            23 => "IQ4_XS",
            24 => "I8",
            25 => "I16",
            26 => "I32",
            27 => "I64",
            28 => "F64",
            29 => "IQ1_M",
            34 => "TQ1_0",
            35 => "TQ2_0",
            39 => "MXFP4",
            40 => "NVFP4",
            41 => "Q1_0",
            _ => "unknown",
        };
        format!("{id} ({name})")
    }

    /// Values that are stored together.
    pub fn block_len(self) -> usize {
        match self {
            Type::F32 | Type::F16 | Type::BF16 => 1,
            Type::Q4_0 | Type::Q4_1 | Type::Q5_0 | Type::Q5_1 | Type::Q8_0 => BLOCK,
            Type::Q2_K | Type::Q3_K | Type::Q4_K | Type::Q5_K | Type::Q6_K => SUPER_BLOCK,
        }
    }

    /// Bytes that [`Self::block_len`] values take.
    pub fn block_bytes(self) -> usize {
        match self {
            Type::F32 => 4,
            Type::F16 | Type::BF16 => 2,
            Type::Q4_0 => blocks::Q4_0,
            Type::Q4_1 => blocks::Q4_1,
            Type::Q5_0 => blocks::Q5_0,
            Type::Q5_1 => blocks::Q5_1,
            Type::Q8_0 => blocks::Q8_0,
            Type::Q2_K => super_blocks::Q2_K,
            Type::Q3_K => super_blocks::Q3_K,
            Type::Q4_K => super_blocks::Q4_K,
            Type::Q5_K => super_blocks::Q5_K,
            Type::Q6_K => super_blocks::Q6_K,
        }
    }

    /// How [`Self::unpack`] decomposes the type; `None` for F32, F16 and BF16, which are no codes.
    pub fn grouping(self) -> Option<Grouping> {
        let (len, max, zero, half) = match self {
            Type::F32 | Type::F16 | Type::BF16 => return None,
            Type::Q4_0 => (32, 15, Some(blocks::Q4_ZERO), true),
            Type::Q4_1 => (32, 15, None, true),
            Type::Q5_0 => (32, 31, Some(blocks::Q5_ZERO), true),
            Type::Q5_1 => (32, 31, None, true),
            Type::Q8_0 => (32, 255, Some(blocks::Q8_ZERO), true),
            Type::Q2_K => (16, 3, None, false),
            Type::Q3_K => (16, 7, Some(super_blocks::Q3_ZERO), false),
            Type::Q4_K => (32, 15, None, false),
            Type::Q5_K => (32, 31, None, false),
            Type::Q6_K => (16, 63, Some(super_blocks::Q6_ZERO), false),
        };
        Some(Grouping { len, max, zero, half })
    }

    /// Splits whole blocks into quants (one byte a value), scales and offsets (one each a group of [`Self::grouping`]).
    ///
    /// Writes as many blocks as all four slices have room for, and nothing if the type is no code.
    pub fn unpack(self, bytes: &[u8], quants: &mut [u8], scales: &mut [f32], offsets: &mut [f32]) {
        match self {
            Type::F32 | Type::F16 | Type::BF16 => {}
            Type::Q4_0 => each(bytes, quants, scales, offsets, blocks::q4_0),
            Type::Q4_1 => each(bytes, quants, scales, offsets, blocks::q4_1),
            Type::Q5_0 => each(bytes, quants, scales, offsets, blocks::q5_0),
            Type::Q5_1 => each(bytes, quants, scales, offsets, blocks::q5_1),
            Type::Q8_0 => each(bytes, quants, scales, offsets, blocks::q8_0),
            Type::Q2_K => each(bytes, quants, scales, offsets, super_blocks::q2_k),
            Type::Q3_K => each(bytes, quants, scales, offsets, super_blocks::q3_k),
            Type::Q4_K => each(bytes, quants, scales, offsets, super_blocks::q4_k),
            Type::Q5_K => each(bytes, quants, scales, offsets, super_blocks::q5_k),
            Type::Q6_K => each(bytes, quants, scales, offsets, super_blocks::q6_k),
        }
    }

    /// Writes the values of `bytes` to `out`. Only whole blocks that both have room for are written.
    pub fn dequantize(self, bytes: &[u8], out: &mut [f32]) {
        match (self, self.grouping()) {
            (_, Some(Grouping { len: 16, .. })) => self.decode::<16>(bytes, out),
            (_, Some(_)) => self.decode::<32>(bytes, out),
            (Type::F16, None) => halves(bytes, out, f16::from_le_bytes),
            (Type::BF16, None) => halves(bytes, out, bf16::from_le_bytes),
            (_, None) => {
                let values = bytes.as_chunks().0;
                out.iter_mut().zip(values).for_each(|(out, bytes)| *out = f32::from_le_bytes(*bytes));
            }
        }
    }

    /// What [`Self::unpack`] says, as values, for groups of `LEN`.
    fn decode<const LEN: usize>(self, bytes: &[u8], out: &mut [f32]) {
        let at_once = SUPER_BLOCK / self.block_len();
        let mut quants = [0; SUPER_BLOCK];
        let (mut scales, mut offsets) = ([0.0; SUPER_BLOCK / 16], [0.0; SUPER_BLOCK / 16]);
        for (bytes, out) in bytes.chunks(at_once * self.block_bytes()).zip(out.chunks_mut(SUPER_BLOCK)) {
            let blocks = (bytes.len() / self.block_bytes()).min(out.len() / self.block_len());
            self.unpack(bytes, &mut quants, &mut scales, &mut offsets);
            let out = out[..blocks * self.block_len()].as_chunks_mut::<LEN>().0;
            let groups = quants.as_chunks::<LEN>().0.iter().zip(scales.iter().zip(&offsets));
            for (out, (quants, (scale, offset))) in out.iter_mut().zip(groups) {
                for (out, q) in out.iter_mut().zip(quants) {
                    // No fused operation is needed for the one rounding: the product is exact.
                    *out = scale * f32::from(*q) + offset;
                }
            }
        }
    }
}

/// Calls `block` for every block of `B` bytes, which has `V` values in `G` groups.
fn each<const B: usize, const V: usize, const G: usize>(
    bytes: &[u8],
    quants: &mut [u8],
    scales: &mut [f32],
    offsets: &mut [f32],
    block: impl Fn(&[u8; B], &mut [u8; V], &mut [f32; G], &mut [f32; G]),
) {
    let groups = scales.as_chunks_mut().0.iter_mut().zip(offsets.as_chunks_mut().0);
    let quants = quants.as_chunks_mut().0;
    for ((bytes, quants), (scales, offsets)) in bytes.as_chunks().0.iter().zip(quants).zip(groups) {
        block(bytes, quants, scales, offsets);
    }
}

/// Converts 16-bit floats, several at a time because that has an instruction on some processors.
fn halves<T: Copy + Default>(bytes: &[u8], out: &mut [f32], read: impl Fn([u8; 2]) -> T)
where
    [T]: HalfFloatSliceExt,
{
    for (bytes, out) in bytes.chunks(2 * SUPER_BLOCK).zip(out.chunks_mut(SUPER_BLOCK)) {
        let mut values = [T::default(); SUPER_BLOCK];
        let len = out.len().min(bytes.len() / 2);
        values.iter_mut().zip(bytes.as_chunks().0).for_each(|(value, bytes)| *value = read(*bytes));
        values[..len].convert_to_f32_slice(&mut out[..len]);
    }
}
