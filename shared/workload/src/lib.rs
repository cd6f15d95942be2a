//! Workloads: when requests come and how long they are, the same to whoever makes the load and to whoever predicts it.
//!
//! - [`Named`] are the three shapes that pipelines are compared on; [`Shape`] is any other; [`Lengths`] a distribution of
//!   token counts.
//! - [`Arrivals`] says when requests come; [`Draw`] draws both, request by request, without an end and in constant memory.
//! - [`trace`] reads the lines of a recorded load; [`prompt`] makes token ids that share prefixes as the trace's prompts did.
//!
//! Everything here is pure: it opens no file and knows no clock, and equal seeds draw equal loads.
//!
//! What must never happen here: that one option changes what another one draws. Everything random has its own stream.
#![forbid(unsafe_code)]
#![warn(missing_docs, unreachable_pub)]

pub mod arrivals;
pub mod draw;
pub mod lengths;
pub mod named;
pub mod prompt;
pub mod trace;

pub use arrivals::Arrivals;
pub use draw::{Draw, Drawn};
pub use lengths::Lengths;
pub use named::{Named, Shape};

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

/// Streams of a seed. Those from [`FIRST_PROMPT`] on belong to the prompts, one each.
pub(crate) const ARRIVALS: u64 = 0;
pub(crate) const PROMPT_LENGTHS: u64 = 1;
pub(crate) const OUTPUT_LENGTHS: u64 = 2;
pub(crate) const FIRST_PROMPT: u64 = 3;

/// The `number`-th sequence of random numbers of a seed.
pub fn stream(seed: u64, number: u64) -> ChaCha8Rng {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    random.set_stream(number);
    random
}
