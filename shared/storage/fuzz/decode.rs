//! What the fuzz targets do with bytes. A panic is a finding. The tests of `baton-storage` run it, too (`tests/it/hostile.rs`).
//!
//! Checksums are made right before the bytes are read, as by somebody who writes to the store: otherwise nothing but the
//! comparison of checksums would be tried.

use baton_contract::kv::{Block, Shape};
use baton_storage::{
    ChunkId, Codec, SealKey,
    chunk::{self, Header},
};

pub const ID: ChunkId = ChunkId([0x5a; 32]);
pub const SHAPE: Shape = Shape { layers: 3, width: 24 };
pub const TOKENS: usize = 50;

/// Where the header's list of frames begins, and the bytes of an entry: offset, length, checksum or tag.
pub const FRAMES: usize = 88;
pub const FRAME: usize = 28;
const CHECKSUM: usize = 16;

/// The key of sealed chunks.
pub fn key() -> SealKey {
    SealKey::new([7; 32])
}

/// Values whose exponents cluster, so that codecs have something to pack.
pub fn sample(seed: u64) -> Block {
    let value = |i: usize| half::bf16::from_f32((i.wrapping_mul(7919) % 1009) as f32 / 100.0 - 5.0).to_bits();
    let start = seed as usize * 131;
    let layer = |l: usize| (0..SHAPE.layer_values(TOKENS)).map(|i| value(start + i + l * 13)).collect();
    Block { tokens: TOKENS, layers: (0..SHAPE.layers).map(layer).collect() }
}

/// Sound chunks to begin with: of every codec, open and sealed.
pub fn seeds() -> Vec<Vec<u8>> {
    let keys = [None, Some(key())];
    let pack = |codec, key: &Option<SealKey>| chunk::encode_with(&sample(1), &SHAPE, codec, &ID, key.as_ref());
    let chunks = Codec::ALL.into_iter().flat_map(|codec| keys.iter().map(move |key| pack(codec, key)));
    chunks.map(|chunk| chunk.expect("a sound block is packed").to_vec()).collect()
}

/// Takes any bytes for a chunk, open and sealed. Returns whether they are one.
///
/// # Panics
/// If what is read hasn't the shape that was asked for; that and any other panic is a defect.
pub fn chunk(bytes: &[u8]) -> bool {
    let bytes = repaired(bytes);
    let read = |key: Option<&SealKey>| chunk::decode_with(&bytes, &SHAPE, TOKENS, &ID, key);
    let found = [read(None), read(Some(&key()))];
    for block in found.iter().flatten() {
        assert!(block.fits(&SHAPE), "a block of another shape was read");
    }
    found.iter().any(Result::is_ok)
}

/// Takes any bytes for a header. Returns whether they are one.
///
/// # Panics
/// If a frame lies where none can be; that and any other panic is a defect.
pub fn header(bytes: &[u8]) -> bool {
    let bytes = repaired(bytes);
    let Ok(header) = Header::read(&bytes, &SHAPE, TOKENS, &ID, None) else { return false };
    let max = chunk::max_len(&SHAPE, TOKENS).expect("the shape is small");
    let mut end = chunk::prefix_len(&SHAPE);
    for layer in 0..SHAPE.layers {
        let frame = header.frame(layer);
        assert!(frame.start == end && frame.end <= max, "layer {layer} lies at {frame:?}");
        end = frame.end;
    }
    true
}

/// The bytes with right checksums of the header and, in an open chunk, of the frames that lie within the bytes.
pub fn repaired(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let prefix = chunk::prefix_len(&SHAPE);
    if bytes.len() < prefix {
        return bytes;
    }
    let sealed = bytes[23] != 0;
    for entry in (0..SHAPE.layers).map(|layer| FRAMES + layer * FRAME) {
        let number = |at: usize, len: usize| bytes[at..at + len].iter().rev().fold(0, |n, b| n << 8 | u64::from(*b));
        let (offset, len) = (number(entry, 8), number(entry + 8, 4));
        let range = usize::try_from(offset).ok().zip(usize::try_from(offset.saturating_add(len)).ok());
        let frame = range.and_then(|(start, end)| bytes.get(start..end));
        if let Some(sum) = frame.filter(|_| !sealed).map(blake3::hash) {
            bytes[entry + 12..entry + FRAME].copy_from_slice(&sum.as_bytes()[..CHECKSUM]);
        }
    }
    let sum = blake3::hash(&bytes[..prefix - CHECKSUM]);
    bytes[prefix - CHECKSUM..prefix].copy_from_slice(&sum.as_bytes()[..CHECKSUM]);
    bytes
}
