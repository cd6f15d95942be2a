//! The llama engine: hostile files, the same bits for any batch and split, KV memory, and another engine's answers.

mod fuzz;
mod hostile;
mod invariance;
mod memory;
mod published;
mod reference;
mod writer;

use std::io::Write;

use baton_engine::checkpoint::{self, Checkpoint};
use baton_engine::gguf;
use baton_engine::llama::{self, Llama};
use baton_engine::model::{self, Compute};

fn open(bytes: &[u8]) -> Result<Checkpoint, checkpoint::Error> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    // The map outlives the name.
    gguf::open(file.path())
}

fn load(bytes: &[u8]) -> Result<Llama, llama::Error> {
    load_as(bytes, Compute::Exact, 1 << 24)
}

fn load_as(bytes: &[u8], compute: Compute, kv_bytes: u64) -> Result<Llama, llama::Error> {
    Llama::load(open(bytes)?, &model::Options { compute, kv_bytes, ..model::Options::default() })
}
