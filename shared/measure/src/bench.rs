//! How fast the parts are on this machine.

pub mod bus;
pub mod engine;
pub mod kv;
mod sequence;
