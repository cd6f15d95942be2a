//! The commands that make load.

pub mod compare;
pub mod engines;
pub mod run;
pub mod shift;
pub mod splits;

use std::io::{self, Write};

use anyhow::Context;

/// Prints a report. Whoever reads it may have seen enough, as `head` does.
pub fn print(text: &str) -> anyhow::Result<()> {
    match io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        printed => printed.context("cannot print the report"),
    }
}
