//! What becomes of a pipeline's file, and what its processes must agree on.

mod plan;
mod settings;
