//! Why no load was made.

use std::{io, path::PathBuf};

/// Why a run could not begin or go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An option has a value that no load can be made from.
    #[error("{name}: expected {expected}, found {found}")]
    Option {
        /// The option's name on the command line.
        name: &'static str,
        /// The values that it may have.
        expected: &'static str,
        /// Its value.
        found: String,
    },
    /// A rate that is not one.
    #[error("request-rate: {0}")]
    Rate(String),
    /// A name that makes no job id.
    #[error("the run's name makes no job id")]
    Id(#[from] baton_contract::name::Error),
    /// A trace or dataset that cannot be read.
    #[error("cannot read {}; check its path", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A trace or dataset without requests.
    #[error("{} holds no requests; give a file with at least one", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// A line of a dataset that is no request.
    #[error("line {line} of the dataset is no request")]
    Request {
        /// Its number, from 1.
        line: usize,
        /// Why not.
        source: serde_json::Error,
    },
    /// A line of a trace that cannot be read.
    #[error(transparent)]
    Trace(#[from] baton_workload::trace::Error),
    /// No HTTP client could be made.
    #[error("cannot set up an HTTP client for {url}")]
    Client {
        /// The server's URL.
        url: String,
        /// Why not.
        source: reqwest::Error,
    },
    /// The broker refused or could not be reached.
    #[error(transparent)]
    Bus(#[from] baton_bus::Error),
}
