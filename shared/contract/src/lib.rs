//! What Baton's processes say to each other and to their users: the public request and result, the envelopes between
//! stages, the states of jobs and batches, subjects, headers, message ids and error codes.
//!
//! Everything here is pure: no I/O, no clock, no randomness. Whoever needs the time or an id passes it in.
#![forbid(unsafe_code)]
#![warn(missing_docs, unreachable_pub)]

mod address;
pub mod backoff;
pub mod batch;
mod causes;
pub mod checkpoint;
mod controls;
pub mod envelope;
mod form;
pub mod header;
pub mod job;
pub mod kv;
pub mod message_id;
pub mod name;
pub mod objects;
pub mod outcome;
pub mod record;
pub mod request;
mod role;
pub mod sampling;
pub mod schema;
pub mod size;
pub mod stats;
pub mod subject;
pub mod upstream;

pub use address::without_secrets;
pub use causes::causes;
pub use name::{JobId, JobKey, Name};
pub use role::{Role, RoleError};
