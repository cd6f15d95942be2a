//! What chunks, files and their stores promise, on memory, local directories and real S3 servers.

mod cache;
mod chunk;
mod collect;
mod conformance;
mod files;
mod hostile;
mod probe;
mod rclone;
mod refusals;
mod seaweed;
mod wheel;
