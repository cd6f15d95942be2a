//! The bus: everything Baton says to NATS JetStream, and the loop that every stage runs. The only user of async-nats.
//!
//! In the order in which a process meets them:
//!
//! - [`Bus`] is a connection with one pipeline's subjects and streams.
//! - [`connection`]: which connections a process has and how it logs in; the broker's clock; trace context in headers;
//!   what the broker's refusals mean.
//! - [`provision`]: creates and changes the pipeline's streams, keeps what all processes must agree on, makes again what is
//!   lost, and waits for a cluster that elects.
//! - [`stage`]: the loop of prefill and decode with what it stands on: messages taken by permits, job records and results,
//!   checkpoints, cancellation, claims on prefixes.
//! - [`tenants`]: where admitted jobs of all tenants wait for their turns.
//! - [`clients`]: submits jobs, follows them, and asks for single answers, many at a time.
//! - [`gateways`]: users' files and batches, and what gateways have to do for them.
//! - [`duty`]: what workers count and say of themselves, their roles, and who does what one is enough for.
//! - [`inspect`]: reads jobs and queues without changing them.
//! - [`repair`]: what no worker could finish, messages that no client can take, jobs that have lost their message.
//!
//! What must never happen here: an acknowledgement before the successor is durable, a second result for a job, a message
//! taken without a free slot.
#![forbid(unsafe_code)]
#![warn(missing_docs, unreachable_pub)]

mod bus;
pub mod clients;
pub mod connection;
pub mod duty;
mod error;
pub mod gateways;
pub mod inspect;
mod options;
pub mod provision;
pub mod repair;
pub mod stage;
pub mod tenants;

pub use async_nats::HeaderMap;

pub use self::{
    bus::Bus,
    connection::clock::unix_ms,
    error::{Because, Error},
    options::{Options, Retention},
};
