//! The bytes of a stored chunk: a preamble, a header that describes every frame, and one frame a layer.
//!
//! ```text
//! BTNKV | version u8 | header length u32 | header (bincode) | checksum of all before | frame of layer 0 | layer 1 | ...
//! ```
//!
//! Numbers are little-endian; checksums are BLAKE3 cut to 16 bytes. A frame depends on nothing but the header, so a reader
//! may fetch and decode any layer alone. Checksums guard against damage, not against who can write to the store.

use std::ops::Range;

use baton_contract::kv::{Block, Shape};
use bincode::{Decode, Encode};
use bytes::Bytes;

use crate::codec::{self, Codec, Decoder, Encoder};
use crate::key::ChunkId;

const MAGIC: [u8; 5] = *b"BTNKV";
/// Raise it together with the number in the key's root context.
const VERSION: u8 = 1;
/// Magic, version, header length.
const PREAMBLE: usize = MAGIC.len() + 1 + size_of::<u32>();
const CHECKSUM: usize = 16;
/// The header's bytes before the list of frames, and those of one entry: bincode's fixed-width integers, so that the
/// length follows from the number of layers alone.
const HEADER_FIXED: usize = 3 * size_of::<u32>() + 1 + 32 + size_of::<u64>();
const HEADER_FRAME: usize = size_of::<u64>() + size_of::<u32>() + CHECKSUM;
/// No header is longer: some 37,000 layers.
const HEADER_LIMIT: usize = 1 << 20;

const BINCODE: bincode::config::Configuration<
    bincode::config::LittleEndian,
    bincode::config::Fixint,
    bincode::config::Limit<HEADER_LIMIT>,
> = bincode::config::standard().with_fixed_int_encoding().with_limit::<HEADER_LIMIT>();

/// Why a block could not be packed, or why bytes are not the chunk that was asked for.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The block that should be packed does not have the shape.
    #[error("expected a block of {} layers of {} values a token, found {layers} layers for {tokens} tokens", shape.layers, 2 * shape.width)]
    Block {
        /// What the model demands.
        shape: Shape,
        /// The block's layers.
        layers: usize,
        /// The block's tokens.
        tokens: usize,
    },
    /// The shape and the number of tokens make a chunk too large to address.
    #[error("a chunk of {tokens} tokens of {} layers of width {} is too large: use smaller chunks", shape.layers, shape.width)]
    Oversize {
        /// What the model demands.
        shape: Shape,
        /// The tokens asked for.
        tokens: usize,
    },
    /// The bytes begin as no chunk does.
    #[error("expected a KV chunk, found bytes without its magic")]
    Magic,
    /// Another version of the format.
    #[error("expected chunk format {VERSION}, found {found}")]
    Version {
        /// The version that the bytes claim.
        found: u8,
    },
    /// Fewer or more bytes than the header demands.
    #[error("expected {expected} bytes of {what}, found {found}")]
    Length {
        /// Which part.
        what: &'static str,
        /// The bytes it must have.
        expected: usize,
        /// The bytes it has or claims.
        found: usize,
    },
    /// The header is not what was written.
    #[error("the header's checksum is wrong")]
    HeaderChecksum,
    /// The header's checksum is right but its contents are not a header.
    #[error("the header cannot be read")]
    Header(#[source] bincode::error::DecodeError),
    /// The header cannot be written.
    #[error("the header cannot be written")]
    WriteHeader(#[source] bincode::error::EncodeError),
    /// The header names a codec that this build lacks.
    #[error("unknown codec number {found}")]
    Codec {
        /// The number in the header.
        found: u8,
    },
    /// The chunk was written for another model.
    #[error("expected {} layers of width {}, found {layers} of {width}", expected.layers, expected.width)]
    Shape {
        /// What the model demands.
        expected: Shape,
        /// The chunk's layers.
        layers: u32,
        /// The chunk's width.
        width: u32,
    },
    /// The chunk holds another number of tokens.
    #[error("expected {expected} tokens, found {found}")]
    Tokens {
        /// The tokens asked for.
        expected: usize,
        /// The chunk's tokens.
        found: u32,
    },
    /// The chunk belongs under another name.
    #[error("expected chunk {expected}, found {found}")]
    Id {
        /// The name asked for.
        expected: ChunkId,
        /// The name in the header.
        found: ChunkId,
    },
    /// The header puts a frame where it cannot be.
    #[error("layer {layer}'s frame of {len} bytes at {offset} is out of place")]
    Frame {
        /// The layer, from 0.
        layer: usize,
        /// Where the header puts it, from the chunk's start.
        offset: u64,
        /// The bytes that the header gives it.
        len: u32,
    },
    /// A frame is not what was written.
    #[error("layer {layer}'s checksum is wrong")]
    FrameChecksum {
        /// The layer, from 0.
        layer: usize,
    },
    /// A layer cannot be packed or unpacked.
    #[error("layer {layer} cannot be packed or unpacked")]
    Layer {
        /// The layer, from 0.
        layer: usize,
        /// Why.
        #[source]
        source: codec::Error,
    },
}

/// One layer's place in the chunk.
#[derive(Clone, Debug, Encode, Decode)]
struct Frame {
    /// Bytes from the chunk's start.
    offset: u64,
    len: u32,
    checksum: [u8; CHECKSUM],
}

/// The header as it is stored.
#[derive(Encode, Decode)]
struct Stored {
    layers: u32,
    width: u32,
    tokens: u32,
    codec: u8,
    id: [u8; 32],
    frames: Vec<Frame>,
}

/// A chunk's header, checked against what the reader expects: nothing in it can lead outside the chunk or past the shape.
#[derive(Clone, Debug)]
pub struct Header {
    codec: Codec,
    layer_values: usize,
    frames: Vec<Frame>,
}

/// Bytes that every chunk of `shape` has before its first frame: what [`Header::read`] needs.
pub fn prefix_len(shape: &Shape) -> usize {
    PREAMBLE + header_len(shape) + CHECKSUM
}

/// The most bytes that a chunk of `tokens` tokens may have, whatever its codec.
pub fn max_len(shape: &Shape, tokens: usize) -> Result<usize, Error> {
    let oversize = || Error::Oversize { shape: *shape, tokens };
    let values = layer_values(shape, tokens)?;
    [Codec::Raw, Codec::Lossless]
        .into_iter()
        .filter_map(|codec| codec.max_frame(values))
        .max()
        .and_then(|frame| frame.checked_mul(shape.layers)?.checked_add(prefix_len(shape)))
        .ok_or_else(oversize)
}

/// Packs a block under the name `id`.
pub fn encode(block: &Block, shape: &Shape, codec: Codec, id: &ChunkId) -> Result<Bytes, Error> {
    // Sizes first: the block's own check multiplies without care.
    let oversize = || Error::Oversize { shape: *shape, tokens: block.tokens };
    let max_len = max_len(shape, block.tokens)?;
    if !block.fits(shape) {
        return Err(Error::Block { shape: *shape, layers: block.layers.len(), tokens: block.tokens });
    }
    let prefix = prefix_len(shape);
    let mut out = Vec::with_capacity(max_len);
    out.resize(prefix, 0);

    let mut encoder = Encoder::new(codec).map_err(|source| Error::Layer { layer: 0, source })?;
    let mut frames = Vec::with_capacity(shape.layers);
    for (layer, values) in block.layers.iter().enumerate() {
        let start = out.len();
        encoder.encode(values, &mut out).map_err(|source| Error::Layer { layer, source })?;
        let len = u32::try_from(out.len() - start).map_err(|_| oversize())?;
        frames.push(Frame { offset: start as u64, len, checksum: checksum(&out[start..]) });
    }

    let narrow = |value: usize| u32::try_from(value).map_err(|_| oversize());
    let header = Stored {
        layers: narrow(shape.layers)?,
        width: narrow(shape.width)?,
        tokens: narrow(block.tokens)?,
        codec: codec.number(),
        id: id.0,
        frames,
    };
    out[..MAGIC.len()].copy_from_slice(&MAGIC);
    out[MAGIC.len()] = VERSION;
    out[MAGIC.len() + 1..PREAMBLE].copy_from_slice(&narrow(header_len(shape))?.to_le_bytes());
    let end = prefix - CHECKSUM;
    bincode::encode_into_slice(&header, &mut out[PREAMBLE..end], BINCODE).map_err(Error::WriteHeader)?;
    let sum = checksum(&out[..end]);
    out[end..prefix].copy_from_slice(&sum);
    Ok(out.into())
}

/// Unpacks the chunk `id` of exactly `expected_tokens` tokens. Nothing larger than the shape demands, or than `bytes` can
/// fill, is ever allocated.
pub fn decode(bytes: &[u8], shape: &Shape, expected_tokens: usize, id: &ChunkId) -> Result<Block, Error> {
    let header = Header::read(bytes, shape, expected_tokens, id)?;
    if bytes.len() != header.len() {
        return Err(Error::Length { what: "chunk", expected: header.len(), found: bytes.len() });
    }
    let mut decoder = Decoder::default();
    let layers = (0..shape.layers)
        .map(|layer| decode_layer(&header, layer, &bytes[header.frame(layer)], &mut decoder))
        .collect::<Result<_, _>>()?;
    Ok(Block { tokens: expected_tokens, layers })
}

/// Unpacks the frame of one layer: bf16 bit patterns, K then V. `layer` must be below the shape's layers.
pub fn decode_layer(header: &Header, layer: usize, frame: &[u8], decoder: &mut Decoder) -> Result<Vec<u16>, Error> {
    if checksum(frame) != header.frames[layer].checksum {
        return Err(Error::FrameChecksum { layer });
    }
    decoder.decode(header.codec, frame, header.layer_values).map_err(|source| Error::Layer { layer, source })
}

impl Header {
    /// Reads the header from a chunk or from its first [`prefix_len`] bytes, and checks that it is the chunk `id` of
    /// `tokens` tokens of a model of this shape.
    pub fn read(bytes: &[u8], shape: &Shape, tokens: usize, id: &ChunkId) -> Result<Self, Error> {
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
        Self::check(stored, layer_values, shape, tokens, id)
    }

    fn check(stored: Stored, layer_values: usize, shape: &Shape, tokens: usize, id: &ChunkId) -> Result<Self, Error> {
        let Stored { layers, width, tokens: found_tokens, codec, id: found_id, frames } = stored;
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
        Ok(Self { codec, layer_values, frames })
    }

    /// How the frames are packed.
    pub fn codec(&self) -> Codec {
        self.codec
    }

    /// The bytes of one layer's frame, counted from the chunk's start. `layer` must be below the shape's layers.
    pub fn frame(&self, layer: usize) -> Range<usize> {
        let Frame { offset, len, .. } = self.frames[layer];
        let start = offset as usize;
        start..start + len as usize
    }

    /// The bytes of the whole chunk.
    fn len(&self) -> usize {
        match self.frames.len().checked_sub(1) {
            Some(last) => self.frame(last).end,
            None => PREAMBLE + HEADER_FIXED + CHECKSUM,
        }
    }
}

fn header_len(shape: &Shape) -> usize {
    shape.layers.saturating_mul(HEADER_FRAME).saturating_add(HEADER_FIXED)
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
