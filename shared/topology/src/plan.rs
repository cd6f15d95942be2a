//! What a pipeline is, once it holds.

use core::net::SocketAddr;
use std::{collections::BTreeMap, fmt, time::Duration};

use baton_contract::{Name, without_secrets};
use serde::{Serialize, Serializer};

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
    pub broker: Broker,
    pub store: Store,
    /// At least one.
    pub models: BTreeMap<Name, Model>,
    pub stages: Stages,
    pub gateway: Gateway,
    pub planner: Planner,
    pub limits: Limits,
    /// What is set for single tenants; the others have the defaults.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub tenants: BTreeMap<Name, Tenant>,
    pub results: Results,
    pub telemetry: Telemetry,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Broker {
    pub url: BrokerUrl,
    /// Path of a NATS credentials file (JWT and seed).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub credentials: Option<String>,
    /// Copies of each stream in a cluster: 1, 3 or 5.
    pub replicas: usize,
}

#[derive(Clone, PartialEq, Eq)]
pub enum BrokerUrl {
    /// A `nats-server` that Baton starts as its own child.
    Embedded,
    /// `nats://` or `tls://` URLs, separated by commas, with `user:password@` or `token@` before a host where one is needed.
    Servers(String),
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Store {
    pub url: StoreUrl,
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
    pub min: u32,
    pub max: u32,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Stages {
    pub ingest: Stage,
    pub prefill: Prefill,
    pub decode: Decode,
}

/// What every stage has.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Stage {
    /// Worker processes that `baton up` starts. None is a valid number: jobs then wait for workers from elsewhere.
    pub replicas: usize,
    /// Jobs that a worker holds at once.
    pub slots: usize,
    /// A job that its worker has not been heard of for this long goes to another one.
    #[serde(serialize_with = "duration")]
    pub ack_wait: Duration,
    /// How many times a job is tried before it fails.
    pub max_deliver: usize,
}

/// A stage that runs models.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Compute {
    #[serde(flatten)]
    pub stage: Stage,
    /// The models that this stage's workers serve, at least one, in the order of the names.
    pub models: Vec<Name>,
    pub device: Device,
    /// CPU threads of a worker; 0 takes all cores.
    pub threads: usize,
    /// The share of the machine's memory that a worker's KV caches may take, those of all its models together: above 0, at
    /// most 1.
    pub memory_fraction: f64,
    /// The same in bytes; wins over the share. A device other than the CPU needs it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kv_memory: Option<Bytes>,
}

/// The prefill stage.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Prefill {
    #[serde(flatten)]
    pub compute: Compute,
    /// Tokens that are computed at a time, of all waiting prompts together.
    pub batch_tokens: usize,
}

/// The decode stage.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Decode {
    #[serde(flatten)]
    pub compute: Compute,
    /// Prompt tokens of a job that decode may compute itself, the prompt counted once for each answer; 0 leaves all to
    /// prefill.
    pub prefill_tokens: usize,
    /// Milliseconds after which a running job's tokens are stored, for another worker to go on from them.
    pub checkpoint_ms: usize,
}

/// What a worker computes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Device {
    /// The CPU.
    Flex,
    /// An Nvidia GPU; needs a `baton` that was built with the feature `cuda`.
    Cuda,
    /// A GPU of any make, through Vulkan or Metal; needs a `baton` that was built with the feature `wgpu`.
    Wgpu,
}

/// The HTTP interface.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Gateway {
    /// Gateways that `baton up` starts: one or none. More are started elsewhere.
    pub replicas: usize,
    /// Address and port; port 0 takes any that is free.
    pub listen: SocketAddr,
    /// Path of the file of API keys. Without it everybody is the tenant `default`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keys_file: Option<String>,
    /// Whether others than this machine may come without keys.
    pub open: bool,
    /// Names of hosts under which requests may come without keys, besides this machine's own and `listen`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<String>,
    /// Sites whose pages a browser may show the answers to, as in `https://app.example.org`; `*` is every site.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cors_origins: Vec<String>,
    /// Connections at a time.
    pub max_connections: usize,
    /// Bytes of requests and answers that are in memory at a time.
    pub body_memory: Bytes,
    /// Batches that a gateway drives at a time; 0 leaves them to others.
    pub batches: usize,
    /// A batch or webhook whose gateway has not been heard of for this long goes to another.
    #[serde(serialize_with = "duration")]
    pub ack_wait: Duration,
    /// Bytes that a batch's output file may have, and its error file: a batch whose answers have more ends as failed, with
    /// those that fit.
    pub max_output: Bytes,
    /// Ranges of internal addresses, as in `10.0.0.0/8`, that webhooks may call all the same.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub webhook_allow: Vec<String>,
}

/// Who decides how many workers serve prefill and how many decode.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Planner {
    /// Whether `baton up` starts a planner.
    pub enabled: bool,
    /// Whether the workers that `baton up` starts for prefill and decode may change to the other.
    pub roles: Roles,
    /// Between two decisions.
    #[serde(serialize_with = "duration")]
    pub interval: Duration,
    /// About how long a worker that changes its role serves neither.
    #[serde(serialize_with = "duration")]
    pub drain: Duration,
    /// Path of a profile that `baton calibrate` wrote. Without it the planner judges jobs by how busy their workers were.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub profile: Option<String>,
    pub prefill: Bounds,
    pub decode: Bounds,
}

/// What prefill's and decode's workers may become.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Roles {
    /// Each worker serves its stage for as long as it lives.
    Fixed,
    /// Each may serve either stage, one at a time.
    Flexible,
}

/// Workers of a stage that the planner keeps to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Bounds {
    pub floor: usize,
    pub ceiling: usize,
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

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Results {
    /// How long a result can be fetched.
    #[serde(serialize_with = "duration")]
    pub keep: Duration,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Telemetry {
    /// The `http://` or `https://` URL of an OTLP receiver (gRPC). Without it no trace leaves the process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub otlp_endpoint: Option<String>,
    /// Which log lines appear, as in `info,baton_bus=debug`.
    pub log: String,
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

impl Stages {
    /// Checks that one worker can serve prefill and then decode with the same loaded models; returns what stands against it.
    pub fn interchangeable(&self) -> Result<(), String> {
        let (prefill, decode) = (&self.prefill.compute, &self.decode.compute);
        let differs = |what: &str| {
            Err(format!(
                "a worker of both roles loads its models once, so stages.prefill and stages.decode need the same {what}"
            ))
        };
        if prefill.models != decode.models {
            differs("models")
        } else if prefill.device != decode.device {
            differs("device")
        } else if prefill.threads != decode.threads {
            differs("threads")
        } else {
            Ok(())
        }
    }
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

impl Model {
    /// The model that a text names as its source: `default`, `sim` (with its default settings), `hf:owner/name` as
    /// [`Hub`] describes it, or else a path. None if it starts like a model of the hub and is none.
    pub fn from_source(source: &str) -> Option<Self> {
        Some(match source {
            "default" => Self::Default,
            "sim" => Self::Sim(Sim::default()),
            source if source.starts_with(Hub::PREFIX) => Self::Hub(Hub::parse(source)?),
            path => Self::File(path.to_owned()),
        })
    }
}

impl BrokerUrl {
    pub fn as_str(&self) -> &str {
        match self {
            Self::Embedded => "embedded",
            Self::Servers(urls) => urls,
        }
    }
}

impl StoreUrl {
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
        }
        match self {
            Self::Default => Table { source: "default", sim: None }.serialize(serializer),
            Self::File(path) => Table { source: path, sim: None }.serialize(serializer),
            Self::Hub(hub) => Table { source: &hub.to_string(), sim: None }.serialize(serializer),
            Self::Sim(sim) => Table { source: "sim", sim: Some(sim) }.serialize(serializer),
        }
    }
}

fn always<S: Serializer>(value: &bool, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(if *value { "always" } else { "never" })
}

fn duration<S: Serializer>(value: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&humantime::format_duration(*value))
}
