//! Foreign engines: vLLM, SGLang, llama.cpp's server and whatever else serves OpenAI's interface, asked over HTTP.
//!
//! An [`Upstream`] is a model with one or several instances ([`Instance`]). It says how many jobs a worker may hold for it, finds
//! each job the instance with the most room ([`Upstream::place`]), and learns from how answers come how many requests an instance
//! answers fastest with. [`Instance::ask`] puts a request, and [`Reply`] yields the answer's [`Event`]s.
//!
//! It must never follow a redirect, log a key, or let an engine's bytes make memory grow.
#![forbid(unsafe_code)]
#![warn(missing_docs, unreachable_pub)]

mod dialect;
mod ended;
mod event;
mod fault;
mod http;
mod instance;
mod key;
mod limit;
mod logprobs;
mod metrics;
mod pool;
mod probe;
mod reader;
mod refusal;
mod replicas;
mod reply;
mod sse;

use std::{path::PathBuf, time::Duration};

use baton_contract::upstream::Engine;

pub use self::{
    dialect::Resume,
    ended::Ended,
    event::{Event, Piece},
    fault::{Fault, Retry},
    instance::{Call, HANDOVER_KEPT, Instance},
    pool::{Place, Upstream},
    reply::Reply,
};

/// A model that foreign engines serve.
#[derive(Clone, Debug)]
pub struct Options {
    /// What the engine is.
    pub engine: Engine,
    /// The model's name in the pipeline.
    pub name: String,
    /// The model's name at the engine.
    pub model: String,
    /// URLs up to the path before `/v1`, at least one.
    pub urls: Vec<String>,
    /// Those of instances that only prefill.
    pub prefill_urls: Vec<String>,
    /// File with the key that the engine asks for.
    pub api_key_file: Option<PathBuf>,
    /// PEM file with certificates that are trusted besides the usual ones.
    pub ca_file: Option<PathBuf>,
    /// Requests at an instance at once; none: as many as it answers fastest with.
    pub max_running: Option<usize>,
    /// An instance that says nothing of a request for this long is given up for it.
    pub timeout: Duration,
}

/// Why an engine can't be asked at all.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say what the variants mean")]
pub enum Error {
    #[error("cannot read {path}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{path}: expected a key of printable ASCII in one line, found something else")]
    Key { path: PathBuf },
    #[error("{path}: expected certificates in PEM, found none")]
    Ca { path: PathBuf },
    #[error("{model}: expected URLs such as http://127.0.0.1:8000")]
    Url { model: String },
    #[error("cannot make an HTTP client for {model}")]
    Client { model: String, source: reqwest::Error },
}
