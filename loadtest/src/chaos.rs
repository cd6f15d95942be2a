//! A pipeline of real processes under random faults, and an audit of what became of its jobs.
//!
//! A run starts a broker and workers of its own, answers each distinct request once undisturbed, then submits jobs over some
//! minutes while processes are killed, stopped and restarted, connections fail, clocks are wrong, and broker and store lose and
//! damage what they hold. Requests are repeated under their ids, and some jobs cancelled. When the faults are over, every job
//! must have ended exactly once, with the tokens of the undisturbed run.
//!
//! What a loss of the broker's costs is a part of the fault (`disaster`): after a lost queue an operator runs `baton reconcile`,
//! after lost requests, records or the whole broker their senders send them again. A broker that has lost a result may be given
//! it once more; after all other faults nobody does anything.
//!
//! Every draw is made before the run, from its seed. What a fault meets depends on the machine all the same.
//!
//! What must never happen here: a fault that outlasts its end, a process that outlives the run, a deviation that is not told.

mod audit;
pub(crate) mod broker;
pub(crate) mod client;
mod clock;
mod crew;
mod disaster;
mod inflict;
pub(crate) mod kind;
mod options;
mod prepare;
pub(crate) mod processes;
mod proxy;
mod report;
mod run;
mod schedule;
mod settle;
mod store;
mod wire;
pub(crate) mod witness;
mod workload;

use std::{io, path::PathBuf, time::Duration};

pub use audit::{Audit, Kind as ViolationKind, Violation};
pub use kind::{Kind, LeftOut};
pub use options::{Engine, Options};
pub use report::{Faults, Report};

use run::Run;

/// After that long without a word a worker's jobs go to others.
const ACK_WAIT: Duration = Duration::from_secs(2);

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot prepare {path}")]
    Directory { path: PathBuf, source: io::Error },
    #[error("cannot listen for connections")]
    Proxy(#[source] io::Error),
    #[error("cannot disturb the store")]
    Store(#[source] io::Error),
    #[error("worker {name}: {problem}; its log is {log}")]
    Worker { name: String, log: PathBuf, problem: String },
    #[error("`baton {command}`: {problem}")]
    Command { command: String, problem: String },
    #[error("request {request} was not answered undisturbed: {problem}")]
    Undisturbed { request: usize, problem: String },
    #[error("the run of seed {seed} failed; logs and streams are in {place}")]
    Kept { seed: u64, place: PathBuf, source: Box<Self> },
    #[error("a task of the run ended early")]
    Task(#[from] tokio::task::JoinError),
    #[error("nats-server: {problem}; its log is {log}")]
    Node { log: PathBuf, problem: String },
    #[error("cannot act on the broker as its operator")]
    Operator(#[source] io::Error),
    #[error("cannot make an HTTP client")]
    Http(#[source] reqwest::Error),
    #[error(transparent)]
    Bus(#[from] baton_bus::Error),
    #[error(transparent)]
    Name(#[from] baton_contract::name::Error),
    #[error(transparent)]
    Option(#[from] baton_load::Error),
}

/// How far a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    pub phase: &'static str,
    /// Jobs that have ended, and all.
    pub ended: usize,
    pub total: usize,
    /// Faults that are over, and all.
    pub faults: usize,
    pub faults_planned: usize,
}

/// Does it all; `progress` hears of it now and then.
pub async fn run(options: &Options, mut progress: impl FnMut(Progress)) -> Result<Report, Error> {
    options.check()?;
    // The random end of such an id, of a length that is easily typed.
    let seed = options.seed.unwrap_or_else(|| uuid::Uuid::now_v7().as_u64_pair().1 & 0xffff_ffff);
    let place = match &options.keep {
        Some(directory) => {
            let unusable = |source| Error::Directory { path: directory.clone(), source };
            std::fs::create_dir_all(directory).map_err(unusable)?;
            tempfile::Builder::new().prefix("chaos-").tempdir_in(directory).map_err(unusable)?
        }
        None => tempfile::Builder::new().prefix("baton-chaos-").tempdir().map_err(Error::Store)?,
    };
    let ended = match Run::prepare(options, seed, place.path()).await {
        Ok(run) => run.complete(&mut progress).await,
        Err(error) => Err(error),
    };
    // What went wrong can be read there.
    match ended {
        Ok(report) if report.audit.holds() && options.keep.is_none() => Ok(report),
        Ok(report) => Ok(Report { kept: Some(place.keep()), ..report }),
        Err(error) => Err(Error::Kept { seed, place: place.keep(), source: Box::new(error) }),
    }
}
