//! What a pipeline is, once it holds.

mod services;
mod stages;
mod upstream;

use std::{collections::BTreeMap, fmt, time::Duration};

use baton_contract::{Name, without_secrets};
use serde::{Serialize, Serializer};

pub use self::{
    services::{Bounds, Gateway, Planner, Roles},
    stages::{Compute, Decode, Device, Prefill, Stage, Stages},
    upstream::{Fallback, MaxRunning, Upstream},
};
use crate::{Bytes, Hub};

/// A validated pipeline. Every field has a value; what a pipeline leaves out comes from the defaults.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Plan {
    /// Where all subjects of this pipeline stand, so that several share one broker.
    pub root: Name,
    /// The model of a request that names none; one of `models`.
    pub default_model: Name,
    /// One to eight queues that do not wait for each other; the first is the lane of a request that names none.
    pub lanes: Vec<Name>,
    /// How prefill and decode compute; one for both, for the KV cache of one mode is of no use in the other.
    pub compute: Mode,
    /// Where jobs and results are.
    pub broker: Broker,
    /// Where KV chunks and users' files are.
    pub store: Store,
    /// At least one.
    pub models: BTreeMap<Name, Model>,
    /// The workers of each stage.
    pub stages: Stages,
    /// How it is served over HTTP.
    pub gateway: Gateway,
    /// Whether and how workers change their roles.
    pub planner: Planner,
    /// How much may wait.
    pub limits: Limits,
    /// What is set for single tenants; the others have the defaults.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub tenants: BTreeMap<Name, Tenant>,
    /// How long results are kept.
    pub results: Results,
    /// Log lines and traces.
    pub telemetry: Telemetry,
}

/// What a process must know before it can ask the broker for the rest.
#[derive(Clone, Debug, PartialEq)]
pub struct Reach {
    /// The pipeline's name on its broker.
    pub root: Name,
    /// How the broker is reached.
    pub broker: Broker,
    /// Log lines and traces.
    pub telemetry: Telemetry,
}

/// The NATS server or cluster, with JetStream.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Broker {
    /// Its servers.
    pub url: BrokerUrl,
    /// Path of a NATS credentials file (JWT and seed).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub credentials: Option<String>,
    /// Copies of each stream in a cluster: 1, 3 or 5.
    pub replicas: usize,
}

/// Where the broker is. Text for people leaves passwords out; [`BrokerUrl::as_str`] has them.
#[derive(Clone, PartialEq, Eq)]
pub enum BrokerUrl {
    /// A `nats-server` that Baton starts as its own child.
    Embedded,
    /// `nats://` or `tls://` URLs, separated by commas, with `user:password@` or `token@` before a host where one is needed.
    Servers(String),
}

/// The object store, and what is kept in it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Store {
    /// Where it is; the same for all workers.
    pub url: StoreUrl,
    /// How chunks are packed.
    pub codec: Codec,
    /// Tokens in a KV chunk: a multiple of 16 from 16 to 4096.
    pub chunk_tokens: usize,
    /// Whether a local store flushes a chunk to the disk before its job goes on: `always` or `never`.
    #[serde(serialize_with = "always")]
    pub sync: bool,
    /// Path of a file with the key that seals chunks; the same on every worker.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_file: Option<String>,
    /// Bytes of chunks that each worker keeps in memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache_memory: Option<Bytes>,
    /// Directory in which each worker of a machine keeps up to `cache_disk` bytes of chunks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache_path: Option<String>,
    /// There if `cache_path` is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache_disk: Option<Bytes>,
    /// Chunks that no job has used for this long are removed.
    #[serde(serialize_with = "duration")]
    pub max_age: Duration,
    /// Beyond this, those that were not used for longest are removed. Without it a local store may take most of what is free
    /// there, and elsewhere age alone decides.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_bytes: Option<Bytes>,
    /// How often that is done.
    #[serde(serialize_with = "duration")]
    pub gc_interval: Duration,
}

/// Where the store is. Text for people leaves passwords out; [`StoreUrl::as_str`] has them.
#[derive(Clone, PartialEq, Eq)]
pub enum StoreUrl {
    /// A directory in Baton's own folder.
    Embedded,
    /// A `file:///`, `s3://`, `gs://` or `az://` URL.
    Url(String),
}

/// How KV chunks are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Codec {
    /// Every bit comes back.
    Lossless,
    /// Rounded, by a little.
    Near,
    /// Rounded, by a little more.
    Balanced,
    /// As they are.
    Raw,
}

/// How a model computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// On quantized weights and activations, where the device has kernels for that.
    Fast,
    /// In f32 on de-quantized weights: the reference.
    Exact,
}

/// Where a model comes from.
#[derive(Clone, Debug, PartialEq)]
pub enum Model {
    /// The model that `baton setup` brings.
    Default,
    /// Path of a GGUF file or of a Hugging Face folder, as the pipeline says it.
    File(String),
    /// A model of the Hugging Face hub.
    Hub(Hub),
    /// The sim engine: no weights, a calibrated clock, a deterministic text.
    Sim(Sim),
    /// A foreign engine that serves OpenAI's interface.
    Upstream(Upstream),
}

/// How the sim engine behaves.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Sim {
    /// Layers of the KV cache.
    pub layers: usize,
    /// Values per token in K, and as many in V, of one layer.
    pub kv_width: usize,
    /// Tokens of prompt and answer together.
    pub context: usize,
    /// Seconds that prefill takes for a token.
    pub prefill_s_per_token: f64,
    /// Seconds that decode takes for a step of the whole batch.
    pub decode_s_per_step: f64,
    /// Length of the answers. Without it only a request's `max_tokens` ends one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub answer_tokens: Option<AnswerTokens>,
}

/// The bounds of an answer's length, both included: at least 1, and `min` at most `max`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct AnswerTokens {
    /// Tokens of the shortest answer.
    pub min: u32,
    /// Tokens of the longest answer.
    pub max: u32,
}

/// How much may wait. Beyond it the broker takes nothing more, and whoever submits is told to try later.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Limits {
    /// Jobs in the queue of each stage.
    pub backlog_messages: usize,
    /// Bytes in the queue of each stage. The broker sets them aside; without it its disk is the limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backlog_bytes: Option<Bytes>,
    /// Jobs of each tenant that may wait, of each lane (and, once admitted, model). Without it the queues' own limits count.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tenant_backlog: Option<usize>,
}

/// How a tenant shares the pipeline with others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Tenant {
    /// Jobs that it has in a turn, of each model and lane: 1 to 100.
    pub weight: usize,
    /// Jobs that may be past the waiting queue at once, at least 1. Without it all may.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_running: Option<usize>,
}

/// What becomes of results.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Results {
    /// How long a result can be fetched.
    #[serde(serialize_with = "duration")]
    pub keep: Duration,
}

/// What processes tell of themselves.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Telemetry {
    /// The `http://` or `https://` URL of an OTLP receiver (gRPC). Without it no trace leaves the process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub otlp_endpoint: Option<String>,
    /// Which log lines appear, as in `info,baton_bus=debug`.
    pub log: String,
    /// How a line is written.
    pub log_format: LogFormat,
}

/// What a log line looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

impl Default for Sim {
    /// The KV cache of SmolLM2-135M, computed in no time.
    fn default() -> Self {
        Self {
            layers: 30,
            kv_width: 192,
            context: 8192,
            prefill_s_per_token: 0.0,
            decode_s_per_step: 0.0,
            answer_tokens: None,
        }
    }
}

impl Plan {
    /// Whether jobs of any model pass through prefill.
    pub fn has_prefill(&self) -> bool {
        self.models.values().any(Model::is_prefilled)
    }
}

impl Model {
    /// Whether its jobs pass through the prefill stage, as those of Baton's own models do.
    pub fn is_prefilled(&self) -> bool {
        match self {
            Self::Upstream(upstream) => upstream.is_prefilled_apart(),
            Self::Default | Self::File(_) | Self::Hub(_) | Self::Sim(_) => true,
        }
    }

    /// Whether Baton computes it itself.
    pub fn is_own(&self) -> bool {
        !matches!(self, Self::Upstream(_))
    }

    /// The model that a text names as its source: `default`, `sim` (with its default settings), `openai` (without its URLs),
    /// `hf:owner/name` as [`Hub`] describes it, or else a path. None if it starts like a model of the hub and is none.
    pub fn from_source(source: &str) -> Option<Self> {
        Some(match source {
            "default" => Self::Default,
            "sim" => Self::Sim(Sim::default()),
            "openai" => Self::Upstream(Upstream::default()),
            source if source.starts_with(Hub::PREFIX) => Self::Hub(Hub::parse(source)?),
            path => Self::File(path.to_owned()),
        })
    }
}

impl BrokerUrl {
    /// As in the pipeline's file, passwords included.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Embedded => "embedded",
            Self::Servers(urls) => urls,
        }
    }
}

impl StoreUrl {
    /// As in the pipeline's file.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Embedded => "embedded",
            Self::Url(url) => url,
        }
    }
}

/// For people: without passwords.
impl fmt::Display for BrokerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&without_secrets(self.as_str()))
    }
}

impl fmt::Debug for BrokerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.to_string())
    }
}

/// For people: without passwords.
impl fmt::Display for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&without_secrets(self.as_str()))
    }
}

impl fmt::Debug for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.to_string())
    }
}

impl Serialize for BrokerUrl {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl Serialize for StoreUrl {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl Serialize for Model {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Table<'a> {
            source: &'a str,
            #[serde(skip_serializing_if = "Option::is_none")]
            sim: Option<&'a Sim>,
            #[serde(flatten, skip_serializing_if = "Option::is_none")]
            upstream: Option<&'a Upstream>,
        }
        let table = |source, sim, upstream| Table { source, sim, upstream };
        match self {
            Self::Default => table("default", None, None).serialize(serializer),
            Self::File(path) => table(path, None, None).serialize(serializer),
            Self::Hub(hub) => table(&hub.to_string(), None, None).serialize(serializer),
            Self::Sim(sim) => table("sim", Some(sim), None).serialize(serializer),
            Self::Upstream(upstream) => table("openai", None, Some(upstream)).serialize(serializer),
        }
    }
}

fn always<S: Serializer>(value: &bool, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(if *value { "always" } else { "never" })
}

fn duration<S: Serializer>(value: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&humantime::format_duration(*value))
}
