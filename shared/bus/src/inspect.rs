//! Reads jobs and queues. Nothing here takes a message or changes a record.

pub mod changes;
pub mod latest;
pub mod live;
pub(crate) mod scan;
pub mod summary;
pub mod why;
