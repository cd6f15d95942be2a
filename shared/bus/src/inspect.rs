//! Reads jobs and queues. Nothing here takes a message or changes a record.

pub mod changes;
pub mod latest;
pub mod oldest;
pub mod queue_peek;
pub(crate) mod scan;
pub mod summary;
pub mod why;
