//! Brings what a pipeline needs onto this machine, and starts its processes.
//!
//! - [`setup`] brings a `nats-server` and the default model, and [`hub`] brings models of the Hugging Face hub.
//! - [`server`] runs a `nats-server` as a child process; [`processes`] keeps child processes running; [`guard`] ties a child's
//!   life to its parent's.
//! - [`home`] knows Baton's own folder; [`private`] keeps files from others than their owner.
//!
//! It runs nothing that it did not bring or was given, and takes no downloaded file whose checksum is not the pinned one. It
//! knows neither bus nor store.
#![forbid(unsafe_code)]
#![warn(missing_docs, unreachable_pub)]

mod error;
pub mod guard;
pub mod home;
pub mod hub;
pub mod private;
pub mod processes;
pub mod server;
pub mod setup;

pub use crate::error::Error;
