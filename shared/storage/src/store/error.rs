//! What can be wrong with a store.

use std::{io, path::PathBuf, sync::Arc};

/// Why a store could not be opened or used. Network faults and overloaded servers were retried before one is reported.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The URL names no store.
    #[error("store url {url:?}: {problem}")]
    Url {
        /// As given.
        url: String,
        /// What was expected, and what to do.
        problem: String,
    },
    /// The local directory cannot be used.
    #[error("cannot use {} as a store: create the directory or make it writable", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The store's client could not be set up.
    #[error("cannot set up the store {url:?}: check its url and the credentials in the environment")]
    Setup {
        /// As given.
        url: String,
        /// What the client said.
        #[source]
        source: Box<object_store::Error>,
    },
    /// An operation failed.
    #[error("cannot {operation} {path} in {url}")]
    Operation {
        /// What was tried.
        operation: &'static str,
        /// The object.
        path: String,
        /// The store.
        url: Arc<str>,
        /// What the store said.
        #[source]
        source: Box<object_store::Error>,
    },
    /// There is no room for what was to be put.
    #[error(
        "the disk of the store {url} is full{}: make room there, or have chunks removed with `baton kv gc --max-bytes`",
        free.map_or(String::new(), |free| format!(" ({free} bytes are free)"))
    )]
    Full {
        /// The store.
        url: Arc<str>,
        /// Bytes that are free there.
        free: Option<u64>,
        /// What the system said.
        #[source]
        source: Box<object_store::Error>,
    },
    /// An object is larger than the reader allows; its body was not read.
    #[error("object {path} in {url} has {found} bytes, more than the {max} that it may have")]
    Oversize {
        /// The object.
        path: String,
        /// The store.
        url: Arc<str>,
        /// The reader's limit in bytes.
        max: u64,
        /// The object's bytes.
        found: u64,
    },
    /// A second create-only put of one object went through.
    #[error(
        "the store {url} ignores create-only puts (If-None-Match: *), so a job that runs twice could replace what its \
         first run stored; use a store that honours them, such as a local directory, AWS S3 or a current MinIO or SeaweedFS"
    )]
    Overwrites {
        /// The store.
        url: Arc<str>,
    },
}
