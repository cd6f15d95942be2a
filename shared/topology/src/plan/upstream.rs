//! Models that engines of others serve.

use std::time::Duration;

use baton_contract::{
    Name,
    upstream::{Engine, Engines},
};
use serde::{Serialize, Serializer};

use super::{Model, Plan};

impl Plan {
    /// Which of the models foreign engines serve.
    pub fn engines(&self) -> Engines {
        let foreign = self.models.iter().filter_map(|(name, model)| match model {
            Model::Upstream(upstream) => Some((name.clone(), upstream.engine)),
            _ => None,
        });
        Engines::new(foreign, &self.default_model)
    }
}

/// A model that a foreign engine serves over OpenAI's interface.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Upstream {
    /// What the engine is, and so what it can.
    pub engine: Engine,
    /// `http://` or `https://` URLs of its instances, up to the path before `/v1`; at least one. Where some only prefill, these decode.
    pub urls: Vec<String>,
    /// Instances that only prefill, and hand the KV cache to those that decode. None: each does both.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub prefill_urls: Vec<String>,
    /// The model's name there. Without it the same as here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Path of a file with the key that the engine asks for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub api_key_file: Option<String>,
    /// Path of a PEM file with the certificates that the engine's TLS certificate is checked against, besides the usual ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<String>,
    /// Requests that each worker may have at each instance.
    pub max_running: MaxRunning,
    /// An instance that says nothing of a request for this long is given up for it.
    #[serde(serialize_with = "super::duration")]
    pub timeout: Duration,
    /// Which of Baton's own models takes its jobs when they wait for long.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub fallback: Option<Fallback>,
}

/// A model whose workers take the jobs of another one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Fallback {
    /// Its name.
    #[serde(rename = "fallback")]
    pub model: Name,
    /// It takes jobs from a queue of which some have waited for this long.
    #[serde(rename = "fallback_after", serialize_with = "super::duration")]
    pub after: Duration,
}

/// How many requests an instance gets at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MaxRunning {
    /// As many as it answers fastest with, as far as can be seen.
    Auto,
    /// At most this many.
    Fixed(usize),
}

impl Upstream {
    /// Whether its prompts are prefilled as a stage apart, which vLLM's are. SGLang's instances are asked both at once.
    pub fn is_prefilled_apart(&self) -> bool {
        self.engine == Engine::Vllm && !self.prefill_urls.is_empty()
    }
}

impl Default for Upstream {
    /// One without any instance.
    fn default() -> Self {
        Self {
            engine: Engine::OpenAi,
            urls: Vec::new(),
            prefill_urls: Vec::new(),
            model: None,
            api_key_file: None,
            ca_file: None,
            max_running: MaxRunning::Auto,
            timeout: Duration::from_secs(300),
            fallback: None,
        }
    }
}

impl Serialize for MaxRunning {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => serializer.serialize_str("auto"),
            Self::Fixed(count) => serializer.serialize_u64(*count as u64),
        }
    }
}
