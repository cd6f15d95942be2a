//! The formats that a model on disk may have.

use std::path::Path;

use crate::checkpoint::{Checkpoint, Error};
use crate::{gguf, hugging_face};

/// Opens a GGUF file or a Hugging Face folder, whichever `path` is.
pub fn open(path: &Path) -> Result<Checkpoint, Error> {
    if path.is_dir() { hugging_face::open(path) } else { gguf::open(path) }
}
