//! bf16 values in two planes: the exponents, which cluster and so pack well, and sign with mantissa, which are noise.
//!
//! A frame is the packed length of K's exponents and of V's (two little-endian `u32`), K's exponents, V's exponents, then
//! one byte of sign and mantissa a value. K and V differ in scale, so each has its own code table. Exponents that do not
//! shrink are stored as they are, which their length tells: one byte a value.

use zstd::{
    bulk::{Compressor, Decompressor},
    zstd_safe::{self, CParameter, Strategy},
};

use super::{Codec, Error};

/// The two lengths at a frame's start.
const LENGTHS: usize = 2 * size_of::<u32>();

/// The most bytes of a frame of `values` values: nothing shrank.
pub(super) fn max_frame(values: usize) -> Option<usize> {
    values.checked_mul(2)?.checked_add(LENGTHS)
}

/// K and V of a layer.
fn halves(values: usize) -> [usize; 2] {
    [values / 2, values - values / 2]
}

/// Parts each value into its 8 exponent bits and its sign over 7 mantissa bits. Plain loops over slices of one length:
/// the compiler vectorises them.
fn split(values: &[u16], exponents: &mut [u8], rest: &mut [u8]) {
    for ((value, exponent), rest) in values.iter().zip(exponents).zip(rest) {
        *exponent = (value >> 7) as u8;
        *rest = ((value >> 8) & 0x80) as u8 | (value & 0x7f) as u8;
    }
}

/// What [`split`] parted.
fn merge(exponents: &[u8], rest: &[u8]) -> Vec<u16> {
    let join = |(exponent, rest): (&u8, &u8)| {
        let (exponent, rest) = (u16::from(*exponent), u16::from(*rest));
        (rest & 0x80) << 8 | exponent << 7 | rest & 0x7f
    };
    exponents.iter().zip(rest).map(join).collect()
}

/// zstd as a mere Huffman coder: the match finder is made so weak that nearly all bytes are literals, since exponents
/// repeat in frequency and not in sequence, and the search would cost most of the time.
fn compressor() -> std::io::Result<Compressor<'static>> {
    let mut compressor = Compressor::new(1)?;
    for parameter in [
        CParameter::Strategy(Strategy::ZSTD_fast),
        CParameter::HashLog(6),
        CParameter::MinMatch(7),
        CParameter::TargetLength(0),
    ] {
        compressor.set_parameter(parameter)?;
    }
    Ok(compressor)
}

pub(crate) struct Encoder {
    compressor: Compressor<'static>,
    exponents: Vec<u8>,
    rest: Vec<u8>,
    packed: Vec<u8>,
}

impl Encoder {
    pub(super) fn new() -> Result<Self, Error> {
        let compressor = compressor().map_err(Error::Zstd)?;
        Ok(Self { compressor, exponents: Vec::new(), rest: Vec::new(), packed: Vec::new() })
    }

    pub(super) fn encode(&mut self, values: &[u16], out: &mut Vec<u8>) -> Result<(), Error> {
        let start = out.len();
        out.resize(start + LENGTHS, 0);
        self.exponents.resize(values.len(), 0);
        self.rest.resize(values.len(), 0);
        split(values, &mut self.exponents, &mut self.rest);

        let mut from = 0;
        for (index, count) in halves(values.len()).into_iter().enumerate() {
            let plane = &self.exponents[from..from + count];
            from += count;
            self.packed.clear();
            self.packed.reserve(zstd_safe::compress_bound(count));
            self.compressor.compress_to_buffer(plane, &mut self.packed).map_err(Error::Zstd)?;
            let stored = if self.packed.len() < count { &self.packed[..] } else { plane };
            let too_long = |_| Error::Length { codec: Codec::Lossless, values: values.len(), found: stored.len() };
            let len = u32::try_from(stored.len()).map_err(too_long)?;
            let at = start + index * size_of::<u32>();
            out[at..at + size_of::<u32>()].copy_from_slice(&len.to_le_bytes());
            out.extend_from_slice(stored);
        }
        out.extend_from_slice(&self.rest);
        Ok(())
    }
}

pub(super) struct Decoder {
    decompressor: Decompressor<'static>,
    exponents: Vec<u8>,
}

impl Decoder {
    pub(super) fn new() -> Result<Self, Error> {
        Ok(Self { decompressor: Decompressor::new().map_err(Error::Zstd)?, exponents: Vec::new() })
    }

    pub(super) fn decode(&mut self, frame: &[u8], values: usize) -> Result<Vec<u16>, Error> {
        let wrong = || Error::Length { codec: Codec::Lossless, values, found: frame.len() };
        let (lengths, body) = frame.split_at_checked(LENGTHS).ok_or_else(wrong)?;
        let (lengths, _) = lengths.as_chunks::<4>();
        // A byte a value is always there: so much for the bound of what follows.
        let packed = body.len().checked_sub(values).ok_or_else(wrong)?;
        let (packed, rest) = body.split_at(packed);
        let k_len = u32::from_le_bytes(lengths[0]) as usize;
        let (k, v) = packed.split_at_checked(k_len).ok_or_else(wrong)?;
        if v.len() != u32::from_le_bytes(lengths[1]) as usize {
            return Err(wrong());
        }

        self.exponents.resize(values, 0);
        let (k_out, v_out) = self.exponents.split_at_mut(halves(values)[0]);
        for (stored, out) in [(k, k_out), (v, v_out)] {
            if stored.len() == out.len() {
                out.copy_from_slice(stored);
                continue;
            }
            let found = self.decompressor.decompress_to_buffer(stored, out).map_err(Error::Zstd)?;
            if found != out.len() {
                return Err(Error::Exponents { expected: out.len(), found });
            }
        }
        Ok(merge(&self.exponents, rest))
    }
}
