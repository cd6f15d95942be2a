//! The client's side of the bus: submit jobs, follow them, read how they ended.

pub mod admission;
pub mod answers;
pub mod ends;
pub mod follower;
pub mod following;
pub mod request;
pub mod waits;
