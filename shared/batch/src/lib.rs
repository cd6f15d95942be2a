//! A batch of requests, driven straight over the bus: a window of open jobs moves over the lines of a source, and each answer
//! goes to a sink. What a run leaves behind, killed or not, the next run continues.
//!
//! - `input` reads lines and knows which job each is; `source` reads them beside what is done with them; `foreign` refuses
//!   what is no lines of requests.
//! - `output` keeps the file of answers; `figures` counts; `run` is the window.
//!
//! What must never happen here: a line that is answered twice, a job that is sent again after it ended, memory that grows
//! with the source beyond a few bytes a line.
#![forbid(unsafe_code)]
#![warn(missing_docs, unreachable_pub)]

mod error;
mod figures;
mod foreign;
mod input;
mod output;
mod run;
mod source;

pub use error::Error;
pub use figures::Figures;
pub use input::{Line, Settings};
pub use output::{Answered, Sink, open};
pub use run::{Batch, Options, Shortage, Watch};
pub use source::{Source, count, read};
