//! What the parts cost on this machine, each measured without the others.
//!
//! - [`bench`] measures the way of a job, the engine, and the codecs of the KV cache. [`mod@calibrate`] makes a profile for
//!   `baton plan` of what it measures. [`ratios`] lets splits of some workers serve three loads.
//! - [`verify`] compares the engine with a reference.
//! - [`Engine`] is a model and what computes it, [`Steps`] how far a measurement is, [`Runs`] what its times come to.
//!   `machine` and `processes` ask the kernel; `pipeline` starts a pipeline for a measurement and removes it.
//!
//! Nothing here prints, and nothing that it starts outlives a measurement.
//!
//! What must never happen here: two measurements at the same time, a figure of a run that failed.
#![forbid(unsafe_code)]
#![warn(missing_docs, unreachable_pub)]

pub mod bench;
pub mod calibrate;
mod engine;
mod error;
mod machine;
mod pipeline;
mod processes;
mod progress;
pub mod ratios;
mod runs;
pub mod verify;

pub use engine::Engine;
pub use error::Error;
pub use machine::{Cpu, Memory};
pub use processes::Process;
pub use progress::{Progress, Steps};
pub use runs::Runs;
