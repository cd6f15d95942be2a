//! Why a batch did not go on.

use std::{io, path::PathBuf};

/// Why a batch can't begin or go on. What is wrong with one line is the answer to that line instead.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file that can't be opened.
    #[error("cannot open {}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Requests or answers that can't be read.
    #[error("cannot read {name}")]
    Read {
        /// The file, as it was named.
        name: String,
        /// Why not.
        source: io::Error,
    },
    /// A source that is no lines of requests.
    #[error("expected one JSON object a line in {name}, found {found}; `baton batch run --help` shows such lines")]
    Foreign {
        /// The file, as it was named.
        name: String,
        /// What it looks like.
        found: &'static str,
    },
    /// A file of answers that another run writes.
    #[error("another `baton batch run` writes {}; wait for it or choose another file", path.display())]
    Locked {
        /// The file.
        path: PathBuf,
    },
    /// A line of the file of answers that is no answer.
    #[error(
        "line {number} of {} is no answer of a batch; remove it, or choose another file for the answers", path.display()
    )]
    Strange {
        /// The line's number, from 1.
        number: u64,
        /// The file.
        path: PathBuf,
        /// Why it can't be read, if that is what is wrong.
        source: Option<serde_json::Error>,
    },
    /// A line of the file of answers that is too long for one.
    #[error(
        "line {number} of {} has more than {most} bytes, so it is no answer of a batch; choose another file", path.display()
    )]
    LongAnswer {
        /// The line's number, from 1.
        number: u64,
        /// The file.
        path: PathBuf,
        /// Bytes that an answer may have.
        most: u64,
    },
    /// A file of answers whose last line can't be mended.
    #[error("cannot repair {}", path.display())]
    Repair {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A file of answers that can't be written without its errors.
    #[error("cannot rewrite {}", path.display())]
    Rewrite {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A sink that takes no more.
    #[error("cannot write the answers")]
    Write(#[source] io::Error),
    /// Something that JSON can't hold.
    #[error(transparent)]
    Json(#[from] serde_json::Error),
    /// A line that was tried as often as ids can tell.
    #[error("too many attempts at a line; take another --salt")]
    Attempts,
    /// The broker refused or could not be reached.
    #[error(transparent)]
    Bus(#[from] baton_bus::Error),
    /// A thread of this process that ended before its work.
    #[error(transparent)]
    Task(#[from] tokio::task::JoinError),
}
