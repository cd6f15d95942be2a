//! Why a worker does not serve.

use std::{io, time::Duration};

use baton_assembly as assembly;
use baton_contract::Name;
use baton_storage::{cache, seal, store};

use crate::memory;

/// Why a worker could not start, or ended.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say what the variants mean")]
pub enum Error {
    #[error(transparent)]
    Assembly(#[from] assembly::Error),
    #[error(transparent)]
    Bus(#[from] baton_bus::Error),
    #[error(transparent)]
    Prefill(#[from] baton_prefill::Error),
    #[error(transparent)]
    Decode(#[from] baton_decode::Error),
    #[error(transparent)]
    Threads(#[from] baton_model::threads::ThreadsError),
    #[error("say how much KV caches may take: kv_memory = \"2GiB\"")]
    Memory(#[from] memory::Error),
    #[error(transparent)]
    Model(#[from] baton_model::model::Error),
    #[error(transparent)]
    Generation(#[from] baton_model::generation::Error),
    #[error(transparent)]
    Name(#[from] baton_contract::name::Error),
    #[error(transparent)]
    Cache(#[from] cache::Error),
    #[error(transparent)]
    Seal(#[from] seal::Error),
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error("a task of this process was lost")]
    Lost(#[from] tokio::task::JoinError),
    #[error("{0}")]
    NotInterchangeable(String),
    #[error("model {model}")]
    Vocabulary { model: Name, source: assembly::Error },
    #[error("cannot load model {model}")]
    Load { model: Name, source: Box<NotLoaded> },
    #[error(transparent)]
    NotLoaded(#[from] NotLoaded),
    #[error("the stage before did not let go of its models within {within:?}; start the worker again")]
    NotLetGo { within: Duration },
    #[error("cannot write to standard output")]
    Ready(#[from] io::Error),
    #[error("cannot tell which chunks the waiting jobs need, so none may be removed")]
    UnknownChunks(#[source] baton_bus::Error),
    #[error("{failed} objects could not be removed")]
    NotRemoved { failed: u64, source: store::Error },
}

/// Why a model could not be loaded.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say what the variants mean")]
pub enum NotLoaded {
    #[error(transparent)]
    Source(#[from] assembly::Error),
    #[error(transparent)]
    Engine(#[from] baton_engine::Error),
}
