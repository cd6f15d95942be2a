//! Computes the forward pass of language models, and keeps their KV cache. The only user of Burn.
//!
//! What a model is without its arithmetic lies in `baton-model`. Nothing here knows of the bus, the object store or a clock
//! that matters; calls block and belong on a thread of their own, never on an async worker.
#![warn(missing_docs, unreachable_pub)]

mod allocator;
pub mod device;
mod kernels;
pub mod llama;
mod load;

pub use load::{Error, load};
