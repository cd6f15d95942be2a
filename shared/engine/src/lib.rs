//! Language models: files, tokenizer, chat template, forward pass, KV cache and sampling. The only user of Burn.
//!
//! Nothing here knows of the bus, the object store or a clock that matters; calls block and belong on a thread of their
//! own, never on an async worker.

mod allocator;
pub mod chat;
pub mod checkpoint;
pub mod device;
pub mod generation;
pub mod gguf;
pub mod hugging_face;
mod kernels;
pub mod llama;
pub mod loan;
pub mod model;
pub mod quants;
pub mod sampling;
pub mod sim;
pub mod source;
mod story;
pub mod text;
pub mod tokenizer;
pub mod verify;

/// Sets how many CPU threads this process computes with; 0 means one a core. To be called once, before any model loads.
pub fn use_threads(threads: usize) -> Result<(), ThreadsError> {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build_global().map_err(ThreadsError)
}

#[derive(Debug, thiserror::Error)]
#[error("cannot start the compute threads: {0}")]
pub struct ThreadsError(rayon::ThreadPoolBuildError);
