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

/// Makes the calling thread one of as many compute threads of its own, for as long as it keeps what is returned; it should end
/// then. For a thread that computes alone in its process: others are not woken, and it does not sleep, whenever a pass begins
/// and ends. Without it a pass runs on threads that the whole process shares, and that is what remains if these can't start.
#[must_use]
pub fn compute_here() -> Option<ComputeThreads> {
    let threads = rayon::ThreadPoolBuilder::new().num_threads(rayon::current_num_threads()).use_current_thread();
    let built = threads.build();
    built.inspect_err(|error| tracing::warn!(%error, "cannot start compute threads of its own")).ok().map(ComputeThreads)
}

/// The compute threads of one thread: see [`compute_here`].
#[derive(Debug)]
pub struct ComputeThreads(#[expect(dead_code, reason = "ends them when it is dropped")] rayon::ThreadPool);

#[derive(Debug, thiserror::Error)]
#[error("cannot start the compute threads: {0}")]
pub struct ThreadsError(rayon::ThreadPoolBuildError);
