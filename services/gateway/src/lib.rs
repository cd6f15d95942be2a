//! The gateway: Baton over HTTP, with OpenAI's interface. It is a client of the bus like any other and holds no state: any
//! number of gateways serve the same pipeline, and whichever dies takes nothing with it.
//!
//! - [`auth`] knows whose a request is; `refusal` answers what can't be done. OpenAI's shapes are `baton_openai`'s.
//! - `completions` publishes requests and waits for the answers; `models`, `health` and `document` answer by themselves.
//! - `files`, `batches` and `webhooks` are for batches; `page` is the live page.
//! - `sites` knows which hosts and browsers' pages are served; `server` and `budget` hold the line: what a connection may
//!   cost, and all of them together.
//!
//! What must never happen here: a field of a request that is ignored, a tenant that reads another's job, memory that a
//! caller can make grow.
#![forbid(unsafe_code)]

pub mod auth;
pub mod batches;
mod budget;
mod completions;
mod document;
mod files;
mod health;
mod metrics;
mod models;
mod page;
pub mod plan;
mod receive;
mod refusal;
mod routes;
mod server;
mod sites;
pub mod webhooks;

use std::{net::SocketAddr, path::PathBuf, sync::Arc};

use baton_bus::{Bus, clients::answers::Answers, connection::clock::Clock, duty::stats::Watch, stage::jobs::Jobs};
use baton_contract::{Name, subject::Stage, upstream::Engines};
use baton_storage::{Store, files::Files, seal::SealKey};
use tokio::sync::OnceCell;
use tokio_util::sync::CancellationToken;

pub use server::Gateway;

use crate::{
    auth::{Key, KeysFile},
    batches::BatchStores,
    budget::Budget,
    metrics::Metrics,
    sites::Sites,
};

/// How a gateway serves.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where it listens; port 0 takes any that is free.
    pub listen: SocketAddr,
    /// The file of API keys. Without it everybody is the tenant `default`.
    pub keys_file: Option<PathBuf>,
    /// Whether it may listen beyond this machine without keys.
    pub open: bool,
    /// Further hosts under which requests may come without keys.
    pub hosts: Vec<String>,
    /// Sites whose pages may ask from a browser; `*` is all.
    pub cors_origins: Vec<String>,
    /// Connections at a time; others wait in the system's queue.
    pub max_connections: usize,
    /// Bytes of requests and answers in memory at a time.
    pub body_memory: u64,
    /// The pipeline that it serves.
    pub facts: Facts,
    /// Where users' files lie; without it there are no files and no batches.
    pub store: Option<Store>,
    /// Seals users' files, if they are to be.
    pub seal: Option<SealKey>,
    /// How batches are driven.
    pub batches: batches::Options,
    /// How webhooks are called; without it none is.
    pub webhooks: Option<webhooks::Options>,
}

/// The pipeline as a gateway knows it from its plan.
#[derive(Clone, Debug)]
pub struct Facts {
    /// The word that all subjects stand under.
    pub root: Name,
    /// At least one.
    pub models: Vec<Name>,
    /// Which of them foreign engines serve.
    pub engines: Engines,
    /// One of them: that of a request that names none.
    pub default_model: Name,
    /// At least one; the first is the lane of a request that names none.
    pub lanes: Vec<Name>,
    /// The stages that jobs pass.
    pub stages: Vec<Stage>,
}

impl Facts {
    /// The lane of a request that names none.
    pub fn default_lane(&self) -> &Name {
        // A plan has at least one; without any, the model's name is no lane and the request is refused by ingest.
        self.lanes.first().unwrap_or(&self.default_model)
    }
}

/// What every route may use. Cheap to clone.
#[derive(Clone, Debug)]
pub struct State {
    pub bus: Bus,
    /// Records and results of jobs.
    pub jobs: Jobs,
    /// Asks for jobs and waits for their answers.
    pub client: Answers,
    /// What the pipeline has.
    pub facts: Arc<Facts>,
    /// The bytes of users' files. Without a store there are no files and no batches.
    pub files: Option<Files>,
    /// What files, batches and webhooks keep on the bus.
    pub(crate) stores: BatchStores,
    /// How webhooks are called, if they are.
    pub(crate) webhooks: Option<Arc<webhooks::Options>>,
    /// The broker's time: deadlines and ages are by no other.
    pub(crate) clock: Clock,
    /// Room for requests and answers.
    pub(crate) budget: Budget,
    /// Where requests may come from.
    pub(crate) sites: Arc<Sites>,
    pub(crate) metrics: Metrics,
    /// The pipeline's numbers, once somebody asks for them.
    pub(crate) watch: Arc<OnceCell<Watch>>,
    /// Without keys everybody is one tenant.
    pub(crate) keys: Option<Arc<KeysFile>>,
    pub(crate) everybody: Arc<Key>,
    /// When the process began, in seconds since 1970.
    pub(crate) started: u64,
    /// Cancelled when the gateway stops: streams that have no end of their own end then.
    pub(crate) closing: CancellationToken,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot listen on {address}; choose another address with gateway.listen (--listen), as in 127.0.0.1:0")]
    Listen { address: SocketAddr, source: std::io::Error },
    #[error(
        "expected API keys where others than this machine can reach {address}: set gateway.keys_file \
         (`baton gateway key NAME` makes keys), or gateway.open = true to let everybody in, or listen on 127.0.0.1"
    )]
    Unguarded { address: SocketAddr },
    #[error(transparent)]
    Keys(#[from] auth::Error),
    #[error(transparent)]
    Bus(#[from] baton_bus::Error),
}
