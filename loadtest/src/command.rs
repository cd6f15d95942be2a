//! The commands that make load.

pub mod compare;
pub mod run;
pub mod shift;
pub mod splits;
