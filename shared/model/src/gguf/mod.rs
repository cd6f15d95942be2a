//! GGUF model files, versions 2 and 3, little-endian: metadata and tensors, mapped and never written.
//!
//! The format (ggml's `docs/gguf.md`): the magic `GGUF`, a version, the number of tensors and of metadata pairs, the pairs,
//! a directory of tensors (name, dimensions, type, offset), padding to the alignment, the data. Every count, length and
//! offset is checked against the bytes that are really there before anything is allocated or read. A model may lie in
//! several such files (see [`parts`]).

pub(crate) mod error;
mod parts;
mod read;

use std::path::Path;

use crate::checkpoint::{self, Checkpoint};
pub use error::Error;
pub use parts::part_names;
use read::parse;

/// Maps a file, and the other parts of its model if it has some, and reads metadata and tensor directory. The data itself is
/// read when it is used.
pub fn open(path: &Path) -> Result<Checkpoint, checkpoint::Error> {
    let map = checkpoint::map(path)?;
    let (metadata, tensors) = parse(&map, 0)?;
    if let Some(parts) = parts::of(path, &metadata)? {
        return parts.open(path);
    }
    Ok(Checkpoint::new(path, metadata, tensors, vec![map], Vec::new()))
}
