//! The bytes of a stored chunk: a preamble, a header that describes every frame, and one frame a layer.
//!
//! ```text
//! BTNKV | version u8 | header length u32 | header (bincode) | checksum of all before | frame of layer 0 | layer 1 | ...
//! ```
//!
//! Numbers are little-endian; checksums are BLAKE3 cut to 16 bytes. A frame depends on nothing but the header, so a reader
//! may fetch and decode any layer alone. Checksums guard against damage, not against who can write to the store: that takes
//! a [`SealKey`], with which frames are encrypted and have their tags in the place of checksums.

mod error;
mod pack;

use std::ops::Range;

use baton_contract::kv::{Block, Shape};
use bincode::{Decode, Encode};

pub use error::Error;
pub use pack::{Packed, Packer, encode, encode_with};

use crate::codec::{Codec, Decoder};
use crate::key::ChunkId;
use crate::seal::{self, Frames, KeyNumber, SealKey};

const MAGIC: [u8; 5] = *b"BTNKV";
/// Raise it together with the number in the key's root context.
const VERSION: u8 = 2;
/// Magic, version, header length.
const PREAMBLE: usize = MAGIC.len() + 1 + size_of::<u32>();
const CHECKSUM: usize = 16;
/// The header's bytes before the list of frames, those of the list's length, and those of one entry: bincode's fixed-width
/// integers, so that the length follows from the number of layers alone.
const HEADER_FIXED: usize = 3 * size_of::<u32>() + 2 + seal::NUMBER + seal::SALT + 32;
const HEADER_COUNT: usize = size_of::<u64>();
const HEADER_FRAME: usize = size_of::<u64>() + size_of::<u32>() + CHECKSUM;
/// No header is longer: some 37,000 layers.
const HEADER_LIMIT: usize = 1 << 20;

const BINCODE: bincode::config::Configuration<
    bincode::config::LittleEndian,
    bincode::config::Fixint,
    bincode::config::Limit<HEADER_LIMIT>,
> = bincode::config::standard().with_fixed_int_encoding().with_limit::<HEADER_LIMIT>();

/// One layer's place in the chunk.
#[derive(Clone, Debug, Encode, Decode)]
struct Frame {
    /// Bytes from the chunk's start.
    offset: u64,
    len: u32,
    /// The seal's tag, if the chunk is sealed.
    checksum: [u8; CHECKSUM],
}

/// The header as it is stored.
#[derive(Encode, Decode)]
struct Stored {
    fixed: Fixed,
    frames: Vec<Frame>,
}

/// What is known before a frame is packed. It is authenticated with every sealed frame.
#[derive(Encode, Decode)]
struct Fixed {
    layers: u32,
    width: u32,
    tokens: u32,
    codec: u8,
    /// How frames are sealed: one of the numbers below.
    seal: u8,
    /// The number of the key; zeros in an open chunk.
    key: [u8; seal::NUMBER],
    /// Makes the chunk's own key; zeros in an open chunk.
    salt: [u8; seal::SALT],
    id: [u8; 32],
}

const OPEN: u8 = 0;
const AES_256_GCM: u8 = 1;

/// A chunk's header, checked against what the reader expects: nothing in it can lead outside the chunk or past the shape.
#[derive(Debug)]
pub struct Header {
    codec: Codec,
    tokens: usize,
    width: usize,
    layer_values: usize,
    frames: Vec<Frame>,
    seal: Option<Seal>,
}

/// What opens sealed frames.
#[derive(Debug)]
struct Seal {
    frames: Frames,
    /// The chunk's first bytes, to the end of the header's fixed part.
    start: Vec<u8>,
}

/// Bytes that every chunk of `shape` has before its first frame: what [`Header::read`] needs.
pub fn prefix_len(shape: &Shape) -> usize {
    PREAMBLE + header_len(shape) + CHECKSUM
}

/// The most bytes that a chunk of `tokens` tokens may have, whatever its codec.
pub fn max_len(shape: &Shape, tokens: usize) -> Result<usize, Error> {
    let oversize = || Error::Oversize { shape: *shape, tokens };
    let values = layer_values(shape, tokens)?;
    Codec::ALL
        .into_iter()
        .filter_map(|codec| codec.max_frame(values))
        .max()
        .and_then(|frame| frame.checked_mul(shape.layers)?.checked_add(prefix_len(shape)))
        .ok_or_else(oversize)
}

/// Unpacks the open chunk `id` of exactly `expected_tokens` tokens. Nothing larger than the shape demands, or than `bytes`
/// can fill, is ever allocated.
pub fn decode(bytes: &[u8], shape: &Shape, expected_tokens: usize, id: &ChunkId) -> Result<Block, Error> {
    decode_with(bytes, shape, expected_tokens, id, None)
}

/// Unpacks a chunk that is sealed with `key`, or open if there is none. See [`decode`].
pub fn decode_with(
    bytes: &[u8],
    shape: &Shape,
    expected_tokens: usize,
    id: &ChunkId,
    key: Option<&SealKey>,
) -> Result<Block, Error> {
    let header = Header::read(bytes, shape, expected_tokens, id, key)?;
    header.check_len(bytes.len() as u64)?;
    Ok(Block { tokens: expected_tokens, layers: decode_layers(&header, 0..shape.layers, bytes, 0)? })
}

/// Unpacks some layers from a part of the chunk that begins `from` bytes after the chunk's start.
pub fn decode_layers(header: &Header, layers: Range<usize>, bytes: &[u8], from: usize) -> Result<Vec<Vec<u16>>, Error> {
    let mut decoder = Decoder::default();
    let decode = |layer| {
        let Range { start, end } = header.frame(layer);
        let frame = start.checked_sub(from).zip(end.checked_sub(from)).and_then(|(start, end)| bytes.get(start..end));
        let short = Error::Length { what: "chunk", expected: end, found: from.saturating_add(bytes.len()) };
        decode_layer(header, layer, frame.ok_or(short)?, &mut decoder)
    };
    layers.map(decode).collect()
}

/// Unpacks the frame of one layer: bf16 bit patterns, K then V. `layer` must be below the shape's layers.
pub fn decode_layer(header: &Header, layer: usize, frame: &[u8], decoder: &mut Decoder) -> Result<Vec<u16>, Error> {
    let Frame { checksum: sum, .. } = header.frames[layer];
    let mut decode = |frame: &[u8]| {
        decoder
            .decode(header.codec, frame, header.layer_values, header.width)
            .map_err(|source| Error::Layer { layer, source })
    };
    match &header.seal {
        None if checksum(frame) == sum => decode(frame),
        None => Err(Error::FrameChecksum { layer }),
        Some(seal) => {
            let mut opened = frame.to_vec();
            if !seal.frames.open(layer, &seal.start, sum, &mut opened) {
                return Err(Error::Forged { layer });
            }
            decode(&opened)
        }
    }
}

impl Header {
    /// Reads the header from a chunk or from its first [`prefix_len`] bytes, and checks that it is the chunk `id` of
    /// `tokens` tokens of a model of this shape, sealed with `key` if there is one and open if not.
    pub fn read(
        bytes: &[u8],
        shape: &Shape,
        tokens: usize,
        id: &ChunkId,
        key: Option<&SealKey>,
    ) -> Result<Self, Error> {
        let layer_values = layer_values(shape, tokens)?;
        let prefix = prefix_len(shape);
        let short = |expected| Error::Length { what: "chunk's start", expected, found: bytes.len() };
        let Some((preamble, _)) = bytes.split_first_chunk::<PREAMBLE>() else {
            return Err(if bytes.starts_with(&MAGIC) { short(prefix) } else { Error::Magic });
        };
        let [m0, m1, m2, m3, m4, version, len @ ..] = *preamble;
        if [m0, m1, m2, m3, m4] != MAGIC {
            return Err(Error::Magic);
        }
        if version != VERSION {
            return Err(Error::Version { found: version });
        }
        let (expected, found) = (header_len(shape), u32::from_le_bytes(len) as usize);
        if found != expected || expected > HEADER_LIMIT {
            return Err(Error::Length { what: "header", expected, found });
        }
        let bytes = bytes.get(..prefix).ok_or_else(|| short(prefix))?;
        let (checked, sum) = bytes.split_at(prefix - CHECKSUM);
        if checksum(checked) != *sum {
            return Err(Error::HeaderChecksum);
        }
        #[expect(clippy::disallowed_methods, reason = "this is the capped decoder: BINCODE has a limit")]
        let (stored, _): (Stored, usize) =
            bincode::decode_from_slice(&checked[PREAMBLE..], BINCODE).map_err(Error::Header)?;
        let seal = stored.fixed.unseal(&checked[..PREAMBLE + HEADER_FIXED], key)?;
        Ok(Self { seal, ..Self::check(stored, layer_values, shape, tokens, id)? })
    }

    fn check(stored: Stored, layer_values: usize, shape: &Shape, tokens: usize, id: &ChunkId) -> Result<Self, Error> {
        let Stored { fixed, frames } = stored;
        let Fixed { layers, width, tokens: found_tokens, codec, id: found_id, .. } = fixed;
        if layers as usize != shape.layers || width as usize != shape.width || frames.len() != shape.layers {
            return Err(Error::Shape { expected: *shape, layers, width });
        }
        if found_tokens as usize != tokens {
            return Err(Error::Tokens { expected: tokens, found: found_tokens });
        }
        if found_id != id.0 {
            return Err(Error::Id { expected: *id, found: ChunkId(found_id) });
        }
        let codec = Codec::from_number(codec).ok_or(Error::Codec { found: codec })?;
        let max_frame = codec.max_frame(layer_values).ok_or(Error::Oversize { shape: *shape, tokens })?;
        let mut end = prefix_len(shape) as u64;
        for (layer, frame) in frames.iter().enumerate() {
            if frame.offset != end || frame.len as usize > max_frame {
                return Err(Error::Frame { layer, offset: frame.offset, len: frame.len });
            }
            end += u64::from(frame.len);
        }
        Ok(Self { codec, tokens, width: shape.width, layer_values, frames, seal: None })
    }

    /// How the frames are packed.
    pub fn codec(&self) -> Codec {
        self.codec
    }

    /// The chunk's tokens.
    pub(crate) fn tokens(&self) -> usize {
        self.tokens
    }

    /// The bytes of some layers' frames, counted from the chunk's start.
    pub(crate) fn span(&self, layers: Range<usize>) -> Range<usize> {
        let start = self
            .frames
            .get(layers.start)
            .map_or(PREAMBLE + HEADER_FIXED + HEADER_COUNT + CHECKSUM, |frame| frame.offset as usize);
        let end = layers.clone().next_back().map_or(start, |last| self.frame(last).end);
        start..end
    }

    /// The bytes of one layer's frame, counted from the chunk's start. `layer` must be below the shape's layers.
    pub fn frame(&self, layer: usize) -> Range<usize> {
        let Frame { offset, len, .. } = self.frames[layer];
        let start = offset as usize;
        start..start + len as usize
    }

    /// Refuses a chunk of another length than its frames have.
    pub(crate) fn check_len(&self, found: u64) -> Result<(), Error> {
        let expected = match self.frames.len().checked_sub(1) {
            Some(last) => self.frame(last).end,
            None => PREAMBLE + HEADER_FIXED + HEADER_COUNT + CHECKSUM,
        };
        match found == expected as u64 {
            true => Ok(()),
            false => Err(Error::Length { what: "chunk", expected, found: found as usize }),
        }
    }
}

impl Fixed {
    /// What opens the frames, once it is clear that the chunk is sealed as the reader expects.
    fn unseal(&self, start: &[u8], key: Option<&SealKey>) -> Result<Option<Seal>, Error> {
        let found = KeyNumber(self.key);
        match (self.seal, key) {
            (OPEN, None) => Ok(None),
            (OPEN, Some(_)) => Err(Error::Open),
            (AES_256_GCM, Some(key)) if key.number() == found => {
                let frames = key.frames(&ChunkId(self.id), &self.salt)?;
                Ok(Some(Seal { frames, start: start.to_vec() }))
            }
            (AES_256_GCM, _) => Err(Error::OtherKey { found }),
            (found, _) => Err(Error::Seal { found }),
        }
    }
}

fn header_len(shape: &Shape) -> usize {
    shape.layers.saturating_mul(HEADER_FRAME).saturating_add(HEADER_FIXED + HEADER_COUNT)
}

/// bf16 values that one layer holds, if all layers' bytes can be counted at all.
fn layer_values(shape: &Shape, tokens: usize) -> Result<usize, Error> {
    let oversize = Error::Oversize { shape: *shape, tokens };
    let values = tokens.checked_mul(shape.width).and_then(|values| values.checked_mul(2));
    let fits = |values: &usize| values.checked_mul(2).and_then(|bytes| bytes.checked_mul(shape.layers)).is_some();
    match values.filter(fits) {
        Some(values) if header_len(shape) <= HEADER_LIMIT => Ok(values),
        _ => Err(oversize),
    }
}

fn checksum(bytes: &[u8]) -> [u8; CHECKSUM] {
    let mut sum = [0; CHECKSUM];
    sum.copy_from_slice(&blake3::hash(bytes).as_bytes()[..CHECKSUM]);
    sum
}
