//! GGUF files: hostile ones, those that publishers write, and the fuzz corpus.

mod fuzz;
mod hostile;
mod published;
pub(crate) mod writer;

use std::io::Write;

use baton_model::checkpoint::{self, Checkpoint};
use baton_model::gguf;

fn open(bytes: &[u8]) -> Result<Checkpoint, checkpoint::Error> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    // The map outlives the name.
    gguf::open(file.path())
}
