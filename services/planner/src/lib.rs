//! The planner: how many prefill and how many decode workers fit a load.
//!
//! - [`profile`] says what an engine on a device, the store and the bus cost; [`fit`] finds it from measurements.
//! - [`simulate`] predicts what becomes of a workload under the pipeline's own rules: the schedulers are those of prefill and
//!   decode themselves.
//! - [`search`] compares splits of workers, and recommends one.
//! - [`decide`] is the decision of a running pipeline: how many workers of each role, and whether one should change its role.
//! - [`pipeline`] is what a pipeline's plan says to both.
//! - [`observe`] makes what it needs of what workers say; [`service`] is the planner of a running pipeline, which acts.
//!
//! What must never happen here: I/O or a clock anywhere but in [`service`], a rule of a stage written a second time where the
//! stage's own can be called.
#![forbid(unsafe_code)]

pub mod decide;
pub mod fit;
pub mod observe;
pub mod pipeline;
pub mod profile;
pub mod search;
pub mod service;
pub mod simulate;

/// A profile written by hand from published figures: Llama 3.1 8B on an H100.
pub const H100_8B: &str = include_str!("../../../pipelines/profiles/h100-llama-8b.toml");
