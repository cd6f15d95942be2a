//! A plan becomes what it names: a connected bus, an open store, a model's source, telemetry, running processes.
//!
//! - [`join`] finds a pipeline and takes over what its broker keeps of it; [`change`] makes a pipeline or changes it.
//! - [`bus`], [`store`], [`models`], [`upstreams`] and [`telemetry`] turn one part of a plan each into the thing itself.
//! - [`serving`] is the life of a process that serves a pipeline; [`signals`] tells when it ends.
//! - [`checks`] tells whether everything works that a pipeline needs.
//! - [`pipeline`] runs a whole pipeline on this machine; [`room`] watches its disks.
//! - [`contexts`] are a user's names for pipelines.
//!
//! It never reads a command line or the pipeline's environment variables, prints nothing, and takes no decision that the plan
//! or the broker has taken.
#![forbid(unsafe_code)]
#![warn(missing_docs, unreachable_pub)]

pub mod bus;
pub mod change;
pub mod checks;
pub mod contexts;
mod error;
pub mod join;
pub mod models;
pub mod pipeline;
pub mod room;
pub mod serving;
pub mod signals;
pub mod store;
pub mod telemetry;
pub mod upstreams;

pub use crate::{error::Error, join::Found};
