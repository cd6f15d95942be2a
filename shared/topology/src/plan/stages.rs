//! The stages of a pipeline: their workers, and what these compute on.

use std::time::Duration;

use baton_contract::Name;
use serde::Serialize;

use crate::Bytes;

/// What each stage has of its own.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Stages {
    /// Requests become jobs.
    pub ingest: Stage,
    /// Prompts become KV caches.
    pub prefill: Prefill,
    /// KV caches become answers.
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
    #[serde(serialize_with = "super::duration")]
    pub ack_wait: Duration,
    /// How many times a job is tried before it fails.
    pub max_deliver: usize,
}

/// A stage that runs models.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Compute {
    /// What every stage has.
    #[serde(flatten)]
    pub stage: Stage,
    /// The models that this stage's workers serve, at least one, in the order of the names.
    pub models: Vec<Name>,
    /// What the models compute on.
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
    /// Workers and models.
    #[serde(flatten)]
    pub compute: Compute,
    /// Tokens that are computed at a time, of all waiting prompts together.
    pub batch_tokens: usize,
}

/// The decode stage.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Decode {
    /// Workers and models.
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
