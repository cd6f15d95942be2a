//! The llama engine: hostile models, the same bits for any batch and split, KV memory, and another engine's answers for
//! each architecture.

mod architectures;
mod hostile;
mod invariance;
mod memory;
mod reference;
mod twins;

// The files that the tests of `baton-model` write.
#[path = "../../../model/tests/it/folders/folder.rs"]
#[allow(dead_code, reason = "shared by test crates that each use a part")]
mod folder;
#[path = "../../../model/tests/it/folders/twin.rs"]
mod twin;
#[path = "../../../model/tests/it/gguf/writer.rs"]
mod writer;

use std::io::Write;

use baton_engine::llama::{self, Llama};
use baton_model::checkpoint::{self, Checkpoint};
use baton_model::config;
use baton_model::gguf;
use baton_model::model::{self, Compute};

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
    Llama::load(
        open(bytes).map_err(config::Error::from)?,
        &model::Options { compute, kv_bytes, ..model::Options::default() },
    )
}
