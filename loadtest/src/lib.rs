//! Load for a running pipeline, and what it answers with: arrivals, token counts, latencies, goodput; and, in [`peers`], our
//! engine beside another; in [`prefixes`], a trace's prompts and what a cache of their prefixes would save; in [`chaos`], a
//! pipeline under faults and what must hold of it.
//!
//! The client is open-loop: every send time is drawn before the first request goes out, no request waits for another's
//! answer, and latencies count from the *intended* send time. A pipeline (or a client) that falls behind therefore shows
//! it in the figures instead of slowing down its own measurement.
//!
//! What must never happen here: a wait for an answer before the next request, a latency that begins when a late request was
//! at last sent, a request that is in none or in two of completed, failed and lost.
#![forbid(unsafe_code)]

pub mod chaos;
pub mod lengths;
pub mod options;
pub mod peers;
pub mod prefixes;
mod record;
pub mod report;
mod run;
mod statistics;
pub mod table;
pub mod workload;

pub use lengths::Lengths;
pub use options::Options;
pub use report::Report;
pub use run::{Progress, run};
pub use statistics::Summary;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{name}: expected {expected}, found {found}")]
    Option { name: &'static str, expected: &'static str, found: String },
    #[error("the run's name makes no job id: {0}")]
    Id(#[from] baton_contract::name::Error),
    #[error(transparent)]
    Bus(#[from] baton_bus::Error),
}
