//! Load for a running pipeline, or for any server that speaks OpenAI's protocol, and what it answers with: arrivals, token
//! counts, latencies, goodput, reports and pictures.
//!
//! An open loop decides every send time by itself: no request waits for another's answer, and latencies count from the
//! *intended* send time. A pipeline (or a client) that falls behind therefore shows it in the figures instead of slowing
//! down its own measurement. A closed loop, which keeps a number of requests under way, is for capacity.
//!
//! What must never happen here: an open loop's wait for an answer before the next request, a latency that begins when a late
//! request was at last sent, a request that is in none or in two of completed, failed and lost.
#![forbid(unsafe_code)]
#![warn(missing_docs, unreachable_pub)]

pub mod chart;
mod error;
pub mod markup;
pub mod options;
pub mod page;
pub mod recipe;
pub mod record;
pub mod report;
mod run;
pub mod slo;
pub mod statistics;
pub mod table;
pub mod target;
pub mod timeline;
mod workload;

pub use error::Error;
pub use options::Options;
pub use recipe::Recipe;
pub use report::Report;
pub use run::{Measured, Progress, run};
pub use statistics::Summary;
pub use target::Target;
