//! Load for a running pipeline, or for any server that speaks OpenAI's protocol, and what it answers with: arrivals, token
//! counts, latencies, goodput, pictures; in [`compare`], two targets in turn; in [`peers`], our engine beside another; in
//! [`prefixes`], a trace's prompts and what a cache of their prefixes would save; in [`chaos`], a pipeline under faults and
//! what must hold of it; in [`shift`], a load that changes its shape under a planner; in [`splits`], what `baton plan` predicts
//! and what is so.
//!
//! An open loop decides every send time by itself: no request waits for another's answer, and latencies count from the
//! *intended* send time. A pipeline (or a client) that falls behind therefore shows it in the figures instead of slowing
//! down its own measurement. A closed loop, which keeps a number of requests under way, is for capacity.
//!
//! What must never happen here: an open loop's wait for an answer before the next request, a latency that begins when a late
//! request was at last sent, a request that is in none or in two of completed, failed and lost.
#![forbid(unsafe_code)]

pub mod chaos;
pub mod chart;
pub mod compare;
mod html;
pub mod options;
pub mod peers;
pub mod pipeline;
pub mod prefixes;
pub mod record;
pub mod report;
mod run;
pub mod shift;
pub mod slo;
pub mod splits;
mod statistics;
pub mod table;
pub mod target;
mod timeline;
mod workload;

use std::{io, path::PathBuf};

pub use options::Options;
pub use report::Report;
pub use run::{Measured, Progress, run};
pub use statistics::Summary;
pub use target::Target;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{name}: expected {expected}, found {found}")]
    Option { name: &'static str, expected: &'static str, found: String },
    #[error("request-rate: {0}")]
    Rate(String),
    #[error("the run's name makes no job id")]
    Id(#[from] baton_contract::name::Error),
    #[error("cannot read {}; check its path", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{} holds no requests; give a file with at least one", path.display())]
    Empty { path: PathBuf },
    #[error("line {line} of the dataset is no request")]
    Request { line: usize, source: serde_json::Error },
    #[error(transparent)]
    Trace(#[from] baton_workload::trace::Error),
    #[error(transparent)]
    Target(#[from] target::Error),
    #[error(transparent)]
    Bus(#[from] baton_bus::Error),
}
