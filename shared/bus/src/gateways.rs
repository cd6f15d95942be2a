//! What gateways keep in the broker for their users: files, batches of requests, and the tasks that these leave.

pub mod batches;
pub mod errands;
pub mod files;
pub mod shelf;
