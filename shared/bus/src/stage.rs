//! The loop of the stages that work on admitted jobs, and what it stands on.
//!
//! [`admission`] brings a job in, [`pull`] takes its message, `worker` and `steps` bring it through the stage, [`jobs`] holds its
//! record and its result, [`checkpoints`] what a running answer has come to.

pub mod admission;
pub mod cancel;
pub mod checkpoints;
mod claiming;
pub mod delivery;
mod failing;
mod forward;
mod handler;
pub(crate) mod intake;
pub mod jobs;
pub(crate) mod large;
pub mod prefixes;
pub mod pull;
pub(crate) mod queue;
mod steps;
mod unread;
mod worker;

pub use self::{
    handler::{Ended, Handler, Next, Retry, StageError, Work, too_long},
    worker::{pause, run},
};
