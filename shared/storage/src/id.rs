//! What a stored chunk is called.

use std::{fmt, str::FromStr};

/// The name of a stored piece of KV cache: 32 bytes that say nothing to whoever lacks the root. Printed as 64 lowercase
/// hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChunkId(pub [u8; 32]);

impl fmt::Display for ChunkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&blake3::Hash::from_bytes(self.0).to_hex())
    }
}

impl fmt::Debug for ChunkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ChunkId({self})")
    }
}

/// A text that is no chunk id.
#[derive(Debug, thiserror::Error)]
#[error("expected a chunk id of 64 hex digits, found {found:?}")]
pub struct ParseIdError {
    found: String,
}

impl FromStr for ChunkId {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        let hash = blake3::Hash::from_hex(text).map_err(|_| ParseIdError { found: text.chars().take(80).collect() })?;
        Ok(Self(*hash.as_bytes()))
    }
}
