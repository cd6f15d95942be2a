//! What can go wrong while something is brought or started.

use std::{
    io,
    path::{Path, PathBuf},
    process::ExitStatus,
};

/// Why something could not be brought, started or found.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say what the variants mean")]
pub enum Error {
    #[error("there is no home directory: set BATON_HOME to a folder for models, nats-server and embedded pipelines")]
    NoHome,
    #[error("cannot tell where BATON_HOME ({path}) is")]
    UnknownHome { path: PathBuf, source: io::Error },
    #[error("cannot {attempt} {path}")]
    File { attempt: &'static str, path: PathBuf, source: io::Error },
    #[error("cannot read {path}")]
    Unreadable { path: PathBuf, source: serde_json::Error },
    #[error("a pipeline already runs in {directory}; stop it, or give this one another root (--set root=NAME)")]
    InUse { directory: PathBuf },
    #[error("no embedded pipeline runs in {directory}; start one with `baton up`, or name a broker with --nats URL")]
    NotRunning { directory: PathBuf },

    #[error(
        "there is no packaged nats-server for {os} on {architecture}; put version {}.{} or later on the PATH",
        oldest.0,
        oldest.1
    )]
    NotPackaged { os: &'static str, architecture: &'static str, oldest: (u32, u32) },
    #[error("cannot bring {what} ({packages}); it can be put by hand at {place} (sha256 {sha256})")]
    Bring { what: &'static str, packages: String, place: PathBuf, sha256: &'static str, source: Box<Error> },
    #[error("no package client was found: install pip for Python 3, or uv")]
    NoClient,
    #[error("no package client could download it; is there a network, and pip for Python 3 or uv?\n{failures}")]
    Download { failures: String },
    #[error("{packages} is not what was pinned")]
    NotPinned { packages: String, source: Box<Error> },
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Archive(#[from] zip::result::ZipError),
    #[error("expected {pinned} bytes, found {found}")]
    Bytes { pinned: u64, found: &'static str },
    #[error("expected sha256 {pinned}, found {found}")]
    Sha256 { pinned: &'static str, found: String },
    #[error(transparent)]
    Hub(#[from] crate::hub::Error),

    #[error("cannot find the path of this program")]
    OwnPath(#[source] io::Error),
    #[error("cannot run {program}")]
    Run { program: PathBuf, source: io::Error },
    #[error("the kernel does not tell when the parent process ends")]
    Parent(#[from] nix::Error),
    #[error("the parent process {parent} has ended")]
    ParentEnded { parent: u32 },
    #[error("cannot start the worker")]
    Start(#[source] io::Error),
    #[error("cannot signal the worker")]
    Signal(#[source] nix::Error),
    #[error("cannot kill the worker")]
    Kill(#[source] io::Error),
    #[error("the worker ended ({0})")]
    Ended(ExitStatus),
    #[error(transparent)]
    Server(#[from] crate::server::Error),
}

impl Error {
    /// Makes the error of an attempt at a path.
    pub(crate) fn of(attempt: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File { attempt, path, source }
    }
}
