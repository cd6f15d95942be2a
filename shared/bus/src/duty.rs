//! Workers beside their jobs: what they count and say of themselves, their roles, and who does what one is enough for.

pub mod chore;
pub mod counters;
pub mod lease;
pub mod roles;
pub mod stats;
