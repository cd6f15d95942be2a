//! The way in: a block becomes the bytes of a chunk.

use baton_contract::kv::{Block, Shape};
use bytes::Bytes;

use super::{
    AES_256_GCM, BINCODE, CHECKSUM, Error, Fixed, Frame, HEADER_FIXED, MAGIC, OPEN, PREAMBLE, VERSION, checksum,
    header_len, max_len, prefix_len,
};
use crate::codec::{Codec, Encoder};
use crate::key::ChunkId;
use crate::seal::{self, Frames, SealKey};

/// Packs a block under the name `id` into an open chunk.
pub fn encode(block: &Block, shape: &Shape, codec: Codec, id: &ChunkId) -> Result<Bytes, Error> {
    encode_with(block, shape, codec, id, None)
}

/// Packs a block under the name `id`; sealed, if there is a key.
pub fn encode_with(
    block: &Block,
    shape: &Shape,
    codec: Codec,
    id: &ChunkId,
    key: Option<&SealKey>,
) -> Result<Bytes, Error> {
    let packer = Packer::new(block, shape, codec, id, key)?;
    let packed = packer.pack(0, &block.layers)?;
    packer.join(&[packed])
}

/// Packs one block, whose layers may be packed on several threads.
#[derive(Debug)]
pub struct Packer {
    shape: Shape,
    tokens: usize,
    codec: Codec,
    /// The chunk's first bytes, to the end of the header's fixed part.
    start: Vec<u8>,
    seal: Option<Frames>,
}

/// Packed layers that follow each other.
#[derive(Debug)]
pub struct Packed {
    bytes: Vec<u8>,
    /// Length and checksum, or tag, of each frame.
    frames: Vec<(u32, [u8; CHECKSUM])>,
}

impl Packer {
    /// Checks that `block` has the shape, and makes what all its frames depend on.
    pub fn new(block: &Block, shape: &Shape, codec: Codec, id: &ChunkId, key: Option<&SealKey>) -> Result<Self, Error> {
        // Sizes first: the block's own check multiplies without care.
        max_len(shape, block.tokens)?;
        if !block.fits(shape) {
            return Err(Error::Block { shape: *shape, layers: block.layers.len(), tokens: block.tokens });
        }
        let narrow = |value| narrow(value, shape, block.tokens);
        let salt = key.map_or(Ok([0; seal::SALT]), |_| seal::salt())?;
        let fixed = Fixed {
            layers: narrow(shape.layers)?,
            width: narrow(shape.width)?,
            tokens: narrow(block.tokens)?,
            codec: codec.number(),
            seal: if key.is_some() { AES_256_GCM } else { OPEN },
            key: key.map_or([0; seal::NUMBER], |key| key.number().0),
            salt,
            id: id.0,
        };
        let mut start = Vec::with_capacity(PREAMBLE + HEADER_FIXED);
        start.extend_from_slice(&MAGIC);
        start.push(VERSION);
        start.extend_from_slice(&narrow(header_len(shape))?.to_le_bytes());
        start.resize(PREAMBLE + HEADER_FIXED, 0);
        bincode::encode_into_slice(&fixed, &mut start[PREAMBLE..], BINCODE).map_err(Error::WriteHeader)?;
        let seal = key.map(|key| key.frames(id, &salt)).transpose()?;
        Ok(Self { shape: *shape, tokens: block.tokens, codec, start, seal })
    }

    /// Packs `layers`, of which the first is the block's layer `first`.
    pub fn pack(&self, first: usize, layers: &[Vec<u16>]) -> Result<Packed, Error> {
        let mut encoder =
            Encoder::new(self.codec, self.shape.width).map_err(|source| Error::Layer { layer: first, source })?;
        // What every codec stays below for values that can be packed at all.
        let mut bytes = Vec::with_capacity(layers.iter().map(|values| size_of_val(&values[..])).sum());
        let mut frames = Vec::with_capacity(layers.len());
        for (layer, values) in (first..).zip(layers) {
            let start = bytes.len();
            encoder.encode(values, &mut bytes).map_err(|source| Error::Layer { layer, source })?;
            let frame = &mut bytes[start..];
            let len = narrow(frame.len(), &self.shape, self.tokens)?;
            let sum = match &self.seal {
                Some(seal) => seal.seal(layer, &self.start, frame)?,
                None => checksum(frame),
            };
            frames.push((len, sum));
        }
        Ok(Packed { bytes, frames })
    }

    /// The chunk of all layers, in order.
    pub fn join(&self, parts: &[Packed]) -> Result<Bytes, Error> {
        let prefix = prefix_len(&self.shape);
        let mut offset = prefix as u64;
        let placed = parts.iter().flat_map(|part| &part.frames).map(|&(len, checksum)| {
            let frame = Frame { offset, len, checksum };
            offset += u64::from(len);
            frame
        });
        let frames: Vec<Frame> = placed.collect();
        if frames.len() != self.shape.layers {
            return Err(Error::Block { shape: self.shape, layers: frames.len(), tokens: self.tokens });
        }
        let mut out = Vec::with_capacity(offset as usize);
        out.extend_from_slice(&self.start);
        out.resize(prefix, 0);
        let end = prefix - CHECKSUM;
        bincode::encode_into_slice(&frames, &mut out[PREAMBLE + HEADER_FIXED..end], BINCODE)
            .map_err(Error::WriteHeader)?;
        let sum = checksum(&out[..end]);
        out[end..].copy_from_slice(&sum);
        parts.iter().for_each(|part| out.extend_from_slice(&part.bytes));
        Ok(out.into())
    }
}

fn narrow(value: usize, shape: &Shape, tokens: usize) -> Result<u32, Error> {
    u32::try_from(value).map_err(|_| Error::Oversize { shape: *shape, tokens })
}
