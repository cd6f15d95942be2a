//! What an engine on a device, the store and the bus cost: a few coefficients, in a TOML file that `baton calibrate` measures
//! or that is written by hand from published figures. Units are in the names.

mod costs;

use serde::{Deserialize, Serialize};

/// Tokens in a page of KV memory where a profile says nothing, as in the engine.
const PAGE_TOKENS: usize = 64;

/// The costs of one model on one device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// The model and the device, for people.
    pub name: String,
    /// The KV cache.
    pub kv: Kv,
    /// Computing prompts.
    pub prefill: Prefill,
    /// Generating.
    pub decode: Decode,
    /// KV caches on their way between the engine's pages and memory.
    pub transfer: Transfer,
    /// The object store, packing and unpacking included.
    pub store: Store,
    /// The message bus.
    pub bus: Bus,
    /// Processor time beside the engines'; matters where workers share a machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<Host>,
    /// How well the coefficients explain what was measured; none in a profile that was written by hand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fit: Option<Fit>,
}

/// The size of the KV cache.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kv {
    /// Bytes of a token's keys and values in bf16, all layers.
    pub raw_bytes_per_token: f64,
    /// The same as it is stored, packed by the pipeline's codec.
    pub stored_bytes_per_token: f64,
    /// Bytes of a token in the engine's KV memory, quantized copies included; without it those of bf16.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes_per_token: Option<f64>,
    /// Tokens in a page of the engine's KV memory.
    #[serde(default = "page_tokens")]
    pub page_tokens: usize,
}

/// A prefill pass takes `s_per_pass + s_per_prompt * prompts + s_per_token * tokens + s_per_token_context * c` seconds, where c
/// sums, over the tokens of the pass, the tokens before each in its own prompt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prefill {
    /// Seconds that every pass takes.
    pub s_per_pass: f64,
    /// Seconds for each prompt that takes part.
    pub s_per_prompt: f64,
    /// Seconds for each token.
    pub s_per_token: f64,
    /// Seconds for each pair of a token and one before it.
    pub s_per_token_context: f64,
    /// Prompts that a worker holds; wins over the pipeline's `stages.prefill.slots`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slots: Option<usize>,
    /// Tokens of a pass; wins over the pipeline's `stages.prefill.batch_tokens`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch_tokens: Option<usize>,
    /// Tokens that the worker's KV memory holds; wins over the pipeline's `kv_memory`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kv_tokens: Option<usize>,
}

/// A decode step takes `s_per_step + s_per_sequence * sequences + s_per_context_token * tokens` seconds, where the tokens are
/// those of all sequences' prompts and answers so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Decode {
    /// Seconds that every step takes.
    pub s_per_step: f64,
    /// Seconds for each sequence in the batch.
    pub s_per_sequence: f64,
    /// Seconds for each token that a sequence attends to.
    pub s_per_context_token: f64,
    /// Answers that a worker holds; wins over the pipeline's `stages.decode.slots`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slots: Option<usize>,
    /// Tokens that the worker's KV memory holds; wins over the pipeline's `kv_memory`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kv_tokens: Option<usize>,
}

/// What the engine's thread does not compute while it does this.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Transfer {
    /// Seconds to copy a token's KV out of the engine's pages.
    pub export_s_per_token: f64,
    /// Seconds to copy it in.
    pub import_s_per_token: f64,
}

/// A chunk takes the fixed part, and its bytes one after another with those of the worker's other chunks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Store {
    /// Seconds to put a chunk, however small.
    pub put_s: f64,
    /// Seconds for each stored byte.
    pub put_s_per_byte: f64,
    /// Seconds to get a chunk, however small.
    pub get_s: f64,
    /// Seconds for each stored byte.
    pub get_s_per_byte: f64,
}

/// What a job's messages cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bus {
    /// Seconds from publishing a message until a free worker handles it.
    pub hop_s: f64,
    /// Seconds in which an ingest worker does nothing but this request.
    pub ingest_s: f64,
}

/// Processor time that is spent beside the engines: in the workers' other threads, the broker and the client together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Host {
    /// Seconds for a job's messages, from its request to its result.
    pub cpu_s_per_job: f64,
    /// Seconds after each step of decode, however many tokens it made.
    pub cpu_s_per_step: f64,
    /// Seconds for each token on its way from decode to the client.
    pub cpu_s_per_token: f64,
    /// Seconds to pack and put a stored byte.
    pub put_cpu_s_per_byte: f64,
    /// Seconds to get and unpack a stored byte.
    pub get_cpu_s_per_byte: f64,
}

/// How far the model's times are from the measured ones, as shares of these, over all sizes that were measured.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fit {
    /// Prefill passes: the mean, and the largest.
    pub prefill_mean_error: f64,
    /// The largest error of a prefill pass.
    pub prefill_max_error: f64,
    /// Decode steps: the mean.
    pub decode_mean_error: f64,
    /// The largest error of a decode step.
    pub decode_max_error: f64,
    /// Putting and getting chunks: the mean.
    pub store_mean_error: f64,
    /// The largest error of a put or get.
    pub store_max_error: f64,
}

fn page_tokens() -> usize {
    PAGE_TOKENS
}

/// Why a text is no profile.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is no TOML, lacks a key or has one too many.
    #[error("the profile cannot be read")]
    Toml(#[from] toml::de::Error),
    /// A number that can't be.
    #[error("the profile's {key}: expected {expected}, found {found}")]
    Value {
        /// The key's path.
        key: &'static str,
        /// What it may be.
        expected: &'static str,
        /// What it is.
        found: f64,
    },
}

impl Profile {
    /// Reads and checks a profile.
    pub fn read(text: &str) -> Result<Self, Error> {
        let profile: Self = toml::from_str(text)?;
        profile.check()?;
        Ok(profile)
    }

    fn check(&self) -> Result<(), Error> {
        let Self { kv, prefill, decode, transfer, store, bus, host, .. } = self;
        let host = host.unwrap_or_default();
        let seconds = [
            ("prefill.s_per_pass", prefill.s_per_pass),
            ("prefill.s_per_prompt", prefill.s_per_prompt),
            ("prefill.s_per_token", prefill.s_per_token),
            ("prefill.s_per_token_context", prefill.s_per_token_context),
            ("decode.s_per_step", decode.s_per_step),
            ("decode.s_per_sequence", decode.s_per_sequence),
            ("decode.s_per_context_token", decode.s_per_context_token),
            ("transfer.export_s_per_token", transfer.export_s_per_token),
            ("transfer.import_s_per_token", transfer.import_s_per_token),
            ("store.put_s", store.put_s),
            ("store.put_s_per_byte", store.put_s_per_byte),
            ("store.get_s", store.get_s),
            ("store.get_s_per_byte", store.get_s_per_byte),
            ("bus.hop_s", bus.hop_s),
            ("bus.ingest_s", bus.ingest_s),
            ("host.cpu_s_per_job", host.cpu_s_per_job),
            ("host.cpu_s_per_step", host.cpu_s_per_step),
            ("host.cpu_s_per_token", host.cpu_s_per_token),
            ("host.put_cpu_s_per_byte", host.put_cpu_s_per_byte),
            ("host.get_cpu_s_per_byte", host.get_cpu_s_per_byte),
        ];
        let positive = |key, value: Option<usize>| (key, value.map_or(1.0, |value| value as f64));
        let counts = [
            ("kv.raw_bytes_per_token", kv.raw_bytes_per_token),
            ("kv.stored_bytes_per_token", kv.stored_bytes_per_token),
            ("kv.memory_bytes_per_token", kv.memory_bytes_per_token.unwrap_or(1.0)),
            positive("kv.page_tokens", Some(kv.page_tokens)),
            positive("prefill.slots", prefill.slots),
            positive("prefill.batch_tokens", prefill.batch_tokens),
            positive("prefill.kv_tokens", prefill.kv_tokens),
            positive("decode.slots", decode.slots),
            positive("decode.kv_tokens", decode.kv_tokens),
        ];
        let bad = seconds.into_iter().find(|(_, value)| !(0.0..=3600.0).contains(value));
        if let Some((key, found)) = bad {
            return Err(Error::Value { key, expected: "0 to 3600 seconds", found });
        }
        let bad = counts.into_iter().find(|(_, value)| !(1.0..=1e12).contains(value));
        match bad {
            Some((key, found)) => Err(Error::Value { key, expected: "at least 1", found }),
            None => Ok(()),
        }
    }

    /// Of the sim engine, whose times are known, with what small chunks and messages take on one machine; `kv_bytes` is a token's
    /// KV in bf16.
    pub fn sim(prefill_s_per_token: f64, decode_s_per_step: f64, kv_bytes: f64) -> Self {
        let (s_per_token, s_per_step) = (prefill_s_per_token, decode_s_per_step);
        Self {
            name: "sim".to_owned(),
            kv: Kv {
                raw_bytes_per_token: kv_bytes,
                stored_bytes_per_token: kv_bytes,
                memory_bytes_per_token: None,
                page_tokens: PAGE_TOKENS,
            },
            prefill: Prefill { s_per_token, ..Prefill::default() },
            decode: Decode { s_per_step, ..Decode::default() },
            transfer: Transfer::default(),
            store: Store { put_s: 0.000_2, get_s: 0.000_1, ..Store::default() },
            bus: Bus { hop_s: 0.000_4, ..Bus::default() },
            host: None,
            fit: None,
        }
    }

    /// Tokens that KV memory of `bytes` bytes holds.
    pub fn tokens_in(&self, bytes: u64) -> usize {
        (bytes as f64 / self.kv.memory_bytes_per_token.unwrap_or(self.kv.raw_bytes_per_token)) as usize
    }

    /// Bytes that `tokens` tokens take in the store.
    pub fn stored_bytes(&self, tokens: usize) -> f64 {
        tokens as f64 * self.kv.stored_bytes_per_token
    }
}

impl Prefill {
    /// Seconds of a pass that computes parts of prompts: of each the tokens that it has already, and those that are computed.
    pub fn pass_s(&self, parts: impl IntoIterator<Item = (usize, usize)>) -> f64 {
        let add = |seconds: f64, (context, tokens): (usize, usize)| {
            let tokens = tokens as f64;
            seconds
                + self.s_per_prompt
                + self.s_per_token * tokens
                + self.s_per_token_context * pairs(context as f64, tokens)
        };
        parts.into_iter().fold(self.s_per_pass, add)
    }
}

/// Pairs of one of `tokens` tokens and a token before it, where `context` tokens stand before them all.
pub fn pairs(context: f64, tokens: f64) -> f64 {
    tokens * (context + (tokens - 1.0) / 2.0)
}

impl Decode {
    /// Seconds of a step of `sequences` sequences with `context` tokens together.
    pub fn step_s(&self, sequences: usize, context: usize) -> f64 {
        self.s_per_step + self.s_per_sequence * sequences as f64 + self.s_per_context_token * context as f64
    }
}

#[cfg(test)]
mod tests;
