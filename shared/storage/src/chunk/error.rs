//! What can be wrong with a block or with the bytes of a chunk.

use baton_contract::kv::Shape;

use super::VERSION;
use crate::codec;
use crate::key::ChunkId;
use crate::seal::{self, KeyNumber};

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
    /// The chunk is not sealed, but the reader has a key: whoever wrote it may have had none, and no right.
    #[error("expected a sealed chunk, found an open one: it was written without the store's key")]
    Open,
    /// The chunk is sealed, and not with the reader's key.
    #[error(
        "the chunk is sealed with key {found}, which this worker does not have: give all workers the same key file"
    )]
    OtherKey {
        /// The key that sealed it.
        found: KeyNumber,
    },
    /// The header names a way to seal that this build lacks.
    #[error("unknown seal number {found}")]
    Seal {
        /// The number in the header.
        found: u8,
    },
    /// A sealed frame, or the header that was sealed with it, is not what was written with the key.
    #[error("layer {layer} is not what was sealed")]
    Forged {
        /// The layer, from 0.
        layer: usize,
    },
    /// A frame could not be sealed.
    #[error(transparent)]
    Sealing(#[from] seal::Failed),
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
    /// Infinite values, or values that are no numbers: whoever computed them failed.
    #[error("layer {layer} holds values that are not finite")]
    NonFinite {
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

impl Error {
    /// Whether the bytes may be a sound chunk of somebody who has another key, or none.
    pub fn is_locked(&self) -> bool {
        matches!(self, Self::Open | Self::OtherKey { .. })
    }
}
