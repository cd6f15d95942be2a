//! bf16 values in two parts: what clusters and so packs well, the exponents and what goes with them, and the mantissas'
//! lower bits, which are noise.
//!
//! A frame is a word for K and one for V (little-endian `u32`), the symbols of K, those of V, the noise of K, that of V.
//! A word is the packed length of the half's symbols, and its top bit tells which of two ways the half is parted:
//!
//! * *aligned*: channels differ in scale, and many of K's lie all on one side of zero. So a symbol is the exponent's
//!   distance below the channel's own, whether the sign is the channel's usual one, and the mantissa's first bit: one table
//!   fits all channels. The channels' exponents and signs come before the symbols, half a byte each; six bits a value
//!   are noise.
//! * *plain*: symbols are exponents, signs and mantissas are noise, one byte each. For few tokens, which can't pay for the
//!   list of channels, and for values that are 0 or otherwise far from their channel's exponent.

use super::{
    Codec, Error,
    entropy::{Packer, Unpacker},
    planes,
    reader::Reader,
};

const WORDS: usize = 2 * size_of::<u32>();
/// The bit of a word that tells that its half is aligned.
const ALIGNED: u32 = 1 << 31;
/// Fewer tokens are plain. It also makes sure that an aligned half never takes more bytes than a plain one may.
const ALIGNED_TOKENS: usize = 16;
/// A symbol is 6 bits of distance, counted from this far above the channel's exponent, over two bits of sign and mantissa.
const HEADROOM: i32 = 16;
const DISTANCES: u16 = 64;
/// The channels' scales are measured on about so many tokens.
const SAMPLED_TOKENS: usize = 64;
/// Channels lie at most so many powers of 2 below the loudest, as far as the list tells.
const DEPTHS: i32 = 8;

const SIGN: u16 = 0x8000;
const EXPONENT: u16 = 0x7f80;
const MANTISSA_BITS: u32 = 7;

/// The most bytes of a frame of `values` values: nothing shrank.
pub(super) fn max_frame(values: usize) -> Option<usize> {
    values.checked_mul(2)?.checked_add(WORDS)
}

/// Bytes of an aligned half's list of channels: the loudest channel's exponent, then half a byte each.
fn list_len(width: usize) -> usize {
    1 + width.div_ceil(2)
}

/// Bytes of noise of an aligned half of `count` values.
fn aligned_noise(count: usize) -> usize {
    planes::packed_len::<4>(count) + planes::packed_len::<2>(count)
}

/// What symbols are relative to, channel by channel: the usual sign, and the exponent of distance 0, both at their places
/// in a bf16.
#[derive(Default)]
struct Channels {
    anchors: Vec<u16>,
    squares: Vec<f32>,
    negative: Vec<u16>,
}

impl Channels {
    /// Measures the channels of a half, sets the anchors, and appends the list that [`read`](Self::read) takes.
    fn measure(&mut self, half: &[u16], width: usize, out: &mut Vec<u8>) {
        let tokens = half.len() / width;
        let stride = tokens.div_ceil(SAMPLED_TOKENS);
        self.squares.clear();
        self.squares.resize(width, 0.0);
        self.negative.clear();
        self.negative.resize(width, 0);
        for row in half.chunks_exact(width).step_by(stride) {
            for ((value, square), negative) in row.iter().zip(&mut self.squares).zip(&mut self.negative) {
                let value_f32 = f32::from_bits(u32::from(*value) << 16);
                *square += value_f32 * value_f32;
                *negative += value >> 15;
            }
        }
        let sampled = tokens.div_ceil(stride);
        // The exponent of the root of the mean square; of nonsense where a sum is not finite, which costs bytes only.
        let exponent = |square: &f32| {
            let exponent = ((square / sampled as f32).to_bits() >> 23) as i32;
            ((exponent - 127) >> 1) + 127
        };
        let loudest = self.squares.iter().map(exponent).max().unwrap_or(0).clamp(0, 255);
        let nibbles = self.squares.iter().zip(&self.negative).map(|(square, negative)| {
            let depth = (loudest - exponent(square)).clamp(0, DEPTHS - 1);
            (depth as u8) << 1 | u8::from(usize::from(*negative) * 2 > sampled)
        });
        let start = out.len();
        out.resize(start + list_len(width), 0);
        out[start] = loudest as u8;
        for (index, nibble) in nibbles.enumerate() {
            out[start + 1 + index / 2] |= nibble << (4 * (index % 2));
        }
        self.read(&out[start..], width);
    }

    /// Sets the anchors from a list of [`list_len`] bytes.
    fn read(&mut self, list: &[u8], width: usize) {
        let Some((loudest, nibbles)) = list.split_first() else { return };
        let anchor = |nibble: u8| {
            let exponent = i32::from(*loudest) - i32::from(nibble >> 1) + HEADROOM;
            u16::from(nibble & 1) << 15 | (exponent as u16) << MANTISSA_BITS & EXPONENT
        };
        self.anchors.clear();
        self.anchors.extend(nibbles.iter().flat_map(|pair| [anchor(pair & 15), anchor(pair >> 4)]).take(width));
    }

    /// Parts a half into symbols and noise. Returns whether all exponents were near enough; if not, the half must be plain.
    fn split(&self, half: &[u16], symbols: &mut [u8], noise: &mut [u8]) -> bool {
        let width = self.anchors.len();
        let mut farthest = 0;
        let parts = symbols.chunks_exact_mut(width).zip(noise.chunks_exact_mut(width));
        for (row, (symbols, noise)) in half.chunks_exact(width).zip(parts) {
            for (((value, anchor), symbol), noise) in row.iter().zip(&self.anchors).zip(symbols).zip(noise) {
                let distance = ((anchor & EXPONENT).wrapping_sub(value & EXPONENT) & EXPONENT) >> MANTISSA_BITS;
                farthest |= distance;
                *symbol = (distance << 2 | ((value ^ anchor) & SIGN) >> 14 | value >> 6 & 1) as u8;
                *noise = *value as u8 & 0x3f;
            }
        }
        farthest < DISTANCES
    }

    /// Appends what [`split`](Self::split) parted.
    fn merge(&self, symbols: &[u8], noise: &[u8], out: &mut Vec<u16>) {
        let width = self.anchors.len();
        for (symbols, noise) in symbols.chunks_exact(width).zip(noise.chunks_exact(width)) {
            out.extend(symbols.iter().zip(noise).zip(&self.anchors).map(|((symbol, noise), anchor)| {
                let (symbol, noise) = (u16::from(*symbol), u16::from(*noise));
                let exponent = anchor.wrapping_sub((symbol >> 2) << MANTISSA_BITS) & EXPONENT;
                (symbol << 14 ^ anchor) & SIGN | exponent | (symbol & 1) << 6 | noise
            }));
        }
    }
}

/// Parts each value into its 8 exponent bits and its sign over 7 mantissa bits.
fn split(values: &[u16], symbols: &mut [u8], noise: &mut [u8]) {
    for ((value, symbol), noise) in values.iter().zip(symbols).zip(noise) {
        *symbol = (value >> MANTISSA_BITS) as u8;
        *noise = ((value >> 8) & 0x80) as u8 | (value & 0x7f) as u8;
    }
}

/// Appends what [`split`] parted.
fn merge(symbols: &[u8], noise: &[u8], out: &mut Vec<u16>) {
    out.extend(symbols.iter().zip(noise).map(|(symbol, noise)| {
        let (symbol, noise) = (u16::from(*symbol), u16::from(*noise));
        (noise & 0x80) << 8 | symbol << MANTISSA_BITS | noise & 0x7f
    }));
}

pub(crate) struct Encoder {
    packer: Packer,
    channels: Channels,
    symbols: Vec<u8>,
    noise: Vec<u8>,
    packed_noise: Vec<u8>,
}

impl Encoder {
    pub(super) fn new() -> Result<Self, Error> {
        let (symbols, noise, packed_noise) = (Vec::new(), Vec::new(), Vec::new());
        Ok(Self { packer: Packer::new()?, channels: Channels::default(), symbols, noise, packed_noise })
    }

    /// Appends the frame of K and V, `[tokens, width]` each.
    pub(super) fn encode(&mut self, values: &[u16], width: usize, out: &mut Vec<u8>) -> Result<(), Error> {
        let start = out.len();
        out.resize(start + WORDS, 0);
        self.packed_noise.clear();
        let (k, v) = values.split_at(values.len() / 2);
        for (index, half) in [k, v].into_iter().enumerate() {
            let word = self.half(half, width, out)?;
            let at = start + index * size_of::<u32>();
            out[at..at + size_of::<u32>()].copy_from_slice(&word.to_le_bytes());
        }
        out.extend_from_slice(&self.packed_noise);
        Ok(())
    }

    /// Appends a half's symbols to `out` and its noise to `packed_noise`. Returns its word.
    fn half(&mut self, half: &[u16], width: usize, out: &mut Vec<u8>) -> Result<u32, Error> {
        self.symbols.resize(half.len(), 0);
        self.noise.resize(half.len(), 0);
        let (symbols, noise) = (&mut self.symbols[..], &mut self.noise[..]);
        let start = out.len();
        let aligned = width > 0 && half.len() / width >= ALIGNED_TOKENS && {
            self.channels.measure(half, width, out);
            self.channels.split(half, symbols, noise)
        };
        if aligned {
            planes::pack::<4>(noise, 0, &mut self.packed_noise);
            planes::pack::<2>(noise, 4, &mut self.packed_noise);
        } else {
            out.truncate(start);
            split(half, symbols, noise);
            self.packed_noise.extend_from_slice(noise);
        }
        let packed = self.packer.pack(symbols)?;
        out.extend_from_slice(packed);
        match u32::try_from(packed.len()) {
            Ok(len) if len < ALIGNED => Ok(if aligned { len | ALIGNED } else { len }),
            _ => Err(Error::Length { codec: Codec::Lossless, values: 2 * half.len(), found: packed.len() }),
        }
    }
}

pub(super) struct Decoder {
    unpacker: Unpacker,
    channels: Channels,
    symbols: Vec<u8>,
    noise: Vec<u8>,
}

/// Where the parts of a half lie in a frame. The list of channels is there if the half is aligned.
struct Half<'a> {
    list: Option<&'a [u8]>,
    symbols: &'a [u8],
    noise: &'a [u8],
}

/// Finds the parts of K and V of `count` values each. `None` if they are not exactly the frame.
fn halves(frame: &[u8], count: usize, width: usize) -> Option<[Half<'_>; 2]> {
    let mut reader = Reader(frame);
    let words = [reader.u32()?, reader.u32()?];
    let mut symbols = |word: u32| {
        let list = if word & ALIGNED != 0 { Some(reader.take(list_len(width))?) } else { None };
        Some((list, reader.take((word & !ALIGNED) as usize)?))
    };
    let [(k_list, k_symbols), (v_list, v_symbols)] = [symbols(words[0])?, symbols(words[1])?];
    let mut noise = |list: Option<_>| reader.take(if list.is_some() { aligned_noise(count) } else { count });
    let [k_noise, v_noise] = [noise(k_list)?, noise(v_list)?];
    reader.is_empty().then_some([
        Half { list: k_list, symbols: k_symbols, noise: k_noise },
        Half { list: v_list, symbols: v_symbols, noise: v_noise },
    ])
}

impl Decoder {
    pub(super) fn new() -> Result<Self, Error> {
        let (symbols, noise) = (Vec::new(), Vec::new());
        Ok(Self { unpacker: Unpacker::new()?, channels: Channels::default(), symbols, noise })
    }

    /// The `values` values of a frame.
    pub(super) fn decode(&mut self, frame: &[u8], values: usize, width: usize) -> Result<Vec<u16>, Error> {
        let count = values / 2;
        // Noise is most of a frame and always there: so much for the bound of what is allocated.
        let wrong = Error::Length { codec: Codec::Lossless, values, found: frame.len() };
        let halves = halves(frame, count, width).ok_or(wrong)?;
        let mut out = Vec::with_capacity(values);
        for Half { list, symbols, noise } in halves {
            self.symbols.resize(count, 0);
            self.unpacker.unpack(symbols, &mut self.symbols)?;
            match list {
                None => merge(&self.symbols, noise, &mut out),
                Some(list) if width > 0 => {
                    self.channels.read(list, width);
                    self.noise.clear();
                    self.noise.resize(count, 0);
                    let (low, high) = noise.split_at(planes::packed_len::<4>(count));
                    planes::unpack::<4>(low, 0, &mut self.noise);
                    planes::unpack::<2>(high, 4, &mut self.noise);
                    self.channels.merge(&self.symbols, &self.noise, &mut out);
                }
                Some(_) => {}
            }
        }
        Ok(out)
    }
}
