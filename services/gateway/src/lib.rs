//! The gateway: Baton over HTTP, with OpenAI's interface. It is a client of the bus like any other and holds no state: any
//! number of gateways serve the same pipeline, and whichever dies takes nothing with it.
//!
//! - [`openai`] is OpenAI's requests and answers as Baton's, pure; [`auth`] knows whose a request is.
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
pub mod openai;
mod page;
mod receive;
mod routes;
mod server;
mod sites;
mod state;
pub mod webhooks;

use std::{net::SocketAddr, path::PathBuf};

use baton_storage::{Store, seal::SealKey};

pub use server::Gateway;
pub use state::{Facts, State};

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
