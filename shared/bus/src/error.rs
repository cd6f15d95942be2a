//! What can go wrong on the bus.

use std::{fmt, path::PathBuf};

use baton_contract::Name;

/// What went wrong on the bus. The text of each variant says what it is, and what to do.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say what the variants mean")]
pub enum Error {
    #[error("cannot connect to the broker at {url}; is nats-server running there, and is the URL right?")]
    Connect { url: String, source: async_nats::ConnectError },
    #[error("cannot read the credentials file {path}")]
    Credentials { path: PathBuf, source: std::io::Error },
    #[error(
        "expected one user or token for all of the broker's URLs, as user:password@ or token@ before the host, special \
         characters written like %40; found several, or one that is not UTF-8"
    )]
    Logins,
    #[error("the connection to the broker died (its client's own message is above); start the process again")]
    Died,
    #[error("JetStream is not usable: {0}; start nats-server with JetStream on (-js)")]
    JetStream(String),
    #[error("cannot create {what}: {message}")]
    Provision { what: String, message: String },
    #[error("the pipeline's streams do not exist under root {root}: {message}; start a worker or `baton up` first")]
    NotProvisioned { root: Name, message: String },
    #[error("cannot publish to {subject}: {message}")]
    Publish { subject: String, message: String },
    #[error("the broker takes nothing for {subject} now ({message}): {because}; try again later")]
    TryLater { subject: String, message: String, because: Because },
    #[error(
        "the pipeline has no lane {lane}; it has {lanes}: take one of them, or add it to `lanes` in the pipeline file"
    )]
    UnknownLane { lane: Name, lanes: String },
    #[error("the broker takes no message of this size for {subject}: {message}")]
    TooLarge { subject: String, message: String },
    #[error("nobody answers {subject}: no ingest worker runs on this broker under this root; start one")]
    NotServed { subject: String },
    #[error(
        "no worker named {worker:?} can change its role: none runs, or it was started for one stage only; start it with \
         --roles prefill,decode"
    )]
    NoFlexibleWorker { worker: String },
    #[error("cannot read {what}: {message}")]
    Read { what: String, message: String },
    #[error("cannot store the record of job {job}: {message}")]
    Record { job: String, message: String },
    #[error("the engine's thread ended (its own message is above); start the worker again")]
    Broken,
    #[error(
        "ingest has not seen job {job} yet, and more requests of tenant {tenant} wait before it than are looked through; try \
         again when `baton top` shows fewer"
    )]
    Unseen { job: String, tenant: Name },
    #[error("the record of job {job} kept changing; another worker holds it")]
    Contended { job: String },
}

impl Error {
    /// The record of a job, or what is kept under such a key, kept changing.
    pub(crate) fn contended(job: &impl ToString) -> Self {
        Self::Contended { job: job.to_string() }
    }
}

/// Why a broker takes nothing for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Because {
    /// It says that there is no room.
    Full,
    /// It says nothing, which a full disk makes it do, too.
    NoAnswer,
    /// No stream takes the subject: a cluster that chooses a leader for it has none, and neither does a broker that lost it.
    NobodyTakesIt,
    /// The same message, or another one for its place, is on its way already and not stored yet.
    OnItsWay,
}

impl fmt::Display for Because {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Full => "its queue or its disk is full",
            Self::NoAnswer => "its disk is full, or it cannot be reached",
            Self::NobodyTakesIt => "its cluster is choosing a leader, or the stream is gone",
            Self::OnItsWay => "it is storing another message in its place",
        })
    }
}
