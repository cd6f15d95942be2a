//! Why a plan did not become what it names.

use std::{io, path::PathBuf};

use baton_contract::Name;

/// What stands between a plan and a pipeline.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say what the variants mean")]
pub enum Error {
    #[error(transparent)]
    Bus(#[from] baton_bus::Error),
    #[error(transparent)]
    Store(#[from] baton_storage::store::Error),
    #[error(transparent)]
    Plan(#[from] baton_topology::Errors),
    #[error(transparent)]
    Refused(#[from] baton_topology::Refused),
    #[error(transparent)]
    Provision(#[from] baton_provision::Error),
    #[error(transparent)]
    Telemetry(#[from] baton_telemetry::Error),
    #[error(transparent)]
    Model(#[from] baton_model::source::Error),
    #[error("a task of this process was lost")]
    Lost(#[from] tokio::task::JoinError),

    #[error("the embedded broker is not running")]
    NoBroker,
    /// Beside a broker that is not `baton up`'s own, a folder of this machine would be a place that nobody else reads.
    #[error(
        "the pipeline's broker is not `baton up`'s own, and no store is named: name the one that all workers share with \
         --store URL, such as s3://bucket/prefix (file:///directory if all run on one machine)"
    )]
    NoStore,
    #[error(
        "the store {url}, as this process sees it, has no mark of the pipeline, so other workers would not find what it puts \
         there; {}. If it is the same and was emptied, `baton provision` marks it again",
        why_unmarked(url)
    )]
    OtherStore { url: String },
    #[error("the pipeline's settings can't be read; `baton provision FILE` writes them anew")]
    Settings(#[source] serde_json::Error),
    #[error("the pipeline's settings can't be written")]
    SettingsUnwritten(#[source] serde_json::Error),
    #[error("the pipeline's settings kept changing; try again")]
    SettingsRace,
    #[error("cannot read the running plan")]
    RunningPlan(#[source] io::Error),
    #[error("cannot tell where {path} is")]
    UnknownPlace { path: PathBuf, source: io::Error },
    #[error("{path} is no UTF-8")]
    NotUtf8 { path: PathBuf },
    #[error("cannot listen for {signal}")]
    Signals { signal: &'static str, source: io::Error },
    #[error("a model of {0} is computed by that engine; this needs one of Baton's own")]
    Foreign(baton_contract::upstream::Engine),
    #[error("cannot use the engine of model {model}")]
    Upstream { model: Name, source: Box<baton_upstream::Error> },
    #[error("no worker is left")]
    NoWorker,
    #[error("{process} ended: {said}")]
    Ended { process: String, said: String },
}

impl AsRef<dyn std::error::Error> for Error {
    fn as_ref(&self) -> &(dyn std::error::Error + 'static) {
        self
    }
}

fn why_unmarked(url: &str) -> &'static str {
    match url.starts_with("file://") {
        true => {
            "a folder of that name on another machine is another store: run all workers on one machine, or give the pipeline a \
             store that all of them reach (`baton provision --store s3://bucket/prefix`, or `baton up` with --store)"
        }
        false => "it may be another bucket, or another server's",
    }
}
