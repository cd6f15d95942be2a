//! What is tried with a load: in [`compare`], two targets in turn; in [`peers`], our engine beside another; in
//! [`prefixes`], a trace's prompts and what a cache of their prefixes would save; in [`chaos`], a pipeline under faults and
//! what must hold of it; in [`engines`], foreign engines behind Baton and without it; in [`shift`], a load that changes
//! its shape under a planner; in [`splits`], what `baton plan` predicts and what is so. The load itself, and what it measures, is `baton_load`.
//!
//! What must never happen here: two measurements at the same time on one machine, a process that outlives its run.
#![forbid(unsafe_code)]

pub mod chaos;
pub mod compare;
pub mod engines;
pub mod peers;
pub mod pipeline;
pub mod prefixes;
pub mod shift;
pub mod splits;
