//! `config.json`, translated to GGUF's keys.

use std::collections::BTreeMap;
use std::f64::consts::TAU;

use super::document::{Settings, shown};
use super::error::Error;
use crate::checkpoint::Value;

/// The families that are supported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Architecture {
    Llama,
    Mistral,
    Qwen2,
    Qwen3,
    Gemma3,
}

/// What `config.json` says.
pub(super) struct Config {
    pub(super) architecture: Architecture,
    pub(super) metadata: BTreeMap<String, Value>,
    /// What the frequencies of rotary positions are divided by, one value a pair, if the model scales them one by one.
    pub(super) rope_divisors: Option<Vec<f32>>,
    /// Whether the output head is the embedding table, if the file says so.
    pub(super) tied: Option<bool>,
}

impl Architecture {
    fn of(settings: &Settings) -> Result<Architecture, Error> {
        let class = (settings.get("architectures")).and_then(|names| names.get(0)).and_then(|name| name.as_str());
        let kind = settings.text("model_type")?;
        Ok(match (class, kind) {
            (Some("LlamaForCausalLM"), _) | (None, Some("llama")) => Architecture::Llama,
            (Some("MistralForCausalLM"), _) | (None, Some("mistral")) => Architecture::Mistral,
            (Some("Qwen2ForCausalLM"), _) | (None, Some("qwen2")) => Architecture::Qwen2,
            (Some("Qwen3ForCausalLM"), _) | (None, Some("qwen3")) => Architecture::Qwen3,
            (Some("Gemma3ForCausalLM"), _) | (None, Some("gemma3_text")) => Architecture::Gemma3,
            (class, kind) => {
                let found = class.or(kind).unwrap_or("model of unknown architecture").chars().take(80).collect();
                return Err(Error::Architecture { found });
            }
        })
    }

    /// The name in GGUF files.
    fn gguf(self) -> &'static str {
        match self {
            Architecture::Llama | Architecture::Mistral => "llama",
            Architecture::Qwen2 => "qwen2",
            Architecture::Qwen3 => "qwen3",
            Architecture::Gemma3 => "gemma3",
        }
    }
}

impl Config {
    pub(super) fn read(settings: &Settings) -> Result<Config, Error> {
        let architecture = Architecture::of(settings)?;
        let gemma = architecture == Architecture::Gemma3;
        refuse_variants(settings, gemma)?;

        let size = |key: &str| settings.required(key, "an unsigned integer", settings.unsigned(key)?);
        let (layers, hidden, heads) = (size("num_hidden_layers")?, size("hidden_size")?, size("num_attention_heads")?);
        let head_size = match (settings.unsigned("head_dim")?, architecture) {
            (Some(size), _) => size,
            (None, Architecture::Gemma3) => 256,
            (None, Architecture::Qwen3) => 128,
            (None, _) => hidden.checked_div(heads).unwrap_or(0),
        };
        let mut keys = Keys { architecture, metadata: BTreeMap::new() };
        keys.metadata.insert("general.architecture".to_owned(), Value::String(architecture.gguf().to_owned()));
        keys.metadata.insert("baton.rope.pairs".to_owned(), Value::String("halves".to_owned()));
        keys.unsigned("block_count", layers);
        keys.unsigned("context_length", size("max_position_embeddings")?);
        keys.unsigned("embedding_length", hidden);
        keys.unsigned("feed_forward_length", size("intermediate_size")?);
        keys.unsigned("attention.head_count", heads);
        keys.unsigned("attention.head_count_kv", settings.unsigned("num_key_value_heads")?.unwrap_or(heads));
        for name in ["attention.key_length", "attention.value_length", "rope.dimension_count"] {
            keys.unsigned(name, head_size);
        }
        let epsilon = settings.required("rms_norm_eps", "a number", settings.number("rms_norm_eps")?)?;
        keys.float("attention.layer_norm_rms_epsilon", epsilon);
        if gemma {
            keys.metadata.insert("baton.norm.shift".to_owned(), Value::Float(1.0));
            let scalar = settings.number("query_pre_attn_scalar")?.unwrap_or(256.0);
            keys.float("attention.scale", 1.0 / scalar.sqrt());
        }
        keys.windows(settings, layers)?;
        let rope_divisors = keys.rope(settings, head_size)?;
        let tied = settings.flag("tie_word_embeddings")?;
        Ok(Config { architecture, metadata: keys.metadata, rope_divisors, tied })
    }
}

/// Refuses what would compute, but not the model that was meant.
fn refuse_variants(settings: &Settings, gemma: bool) -> Result<(), Error> {
    if let Some(quantization) = settings.get("quantization_config") {
        let method = quantization.get("quant_method").unwrap_or(quantization);
        return Err(settings.unsupported("quantization_config", "none (F32, F16 or BF16 weights)", shown(method)));
    }
    for key in ["num_local_experts", "num_experts", "attn_logit_softcapping", "final_logit_softcapping"] {
        if let Some(value) = settings.number(key)?.filter(|value| *value != 0.0) {
            return Err(settings.unsupported(key, "null", value));
        }
    }
    if let Some(share) = settings.number("partial_rotary_factor")?.filter(|share| *share != 1.0) {
        return Err(settings.unsupported("partial_rotary_factor", "1", share));
    }
    if settings.flag("use_bidirectional_attention")? == Some(true) {
        return Err(settings.unsupported("use_bidirectional_attention", "false", true));
    }
    let supported = if gemma { "gelu_pytorch_tanh" } else { "silu" };
    for key in ["hidden_act", "hidden_activation"] {
        if let Some(found) = settings.text(key)?.filter(|found| *found != supported) {
            return Err(settings.unsupported(key, supported, found));
        }
    }
    Ok(())
}

/// The keys in the making that begin with the architecture's name.
struct Keys {
    architecture: Architecture,
    metadata: BTreeMap<String, Value>,
}

impl Keys {
    fn insert(&mut self, name: &str, value: Value) {
        self.metadata.insert(format!("{}.{name}", self.architecture.gguf()), value);
    }

    fn unsigned(&mut self, name: &str, value: u64) {
        self.insert(name, Value::Unsigned(value));
    }

    fn float(&mut self, name: &str, value: f64) {
        self.insert(name, Value::Float(value));
    }

    /// What each layer's attention sees.
    fn windows(&mut self, settings: &Settings, layers: u64) -> Result<(), Error> {
        const PATTERN: &str = "attention.sliding_window_pattern";
        match self.architecture {
            Architecture::Llama => return Ok(()),
            Architecture::Qwen2 | Architecture::Qwen3 if settings.flag("use_sliding_window")? != Some(true) => {
                return Ok(());
            }
            _ => {}
        }
        // Null means that every layer sees all, a missing key what the models' classes have by default.
        let missing = (!settings.values.contains_key("sliding_window")).then_some(4096);
        let Some(window) = settings.unsigned("sliding_window")?.or(missing) else { return Ok(()) };
        self.unsigned("attention.sliding_window", window);
        if let Some(types) = settings.get("layer_types") {
            let window = |kind: &serde_json::Value| match kind.as_str() {
                Some("sliding_attention") => Some(Value::Bool(true)),
                Some("full_attention") => Some(Value::Bool(false)),
                _ => None,
            };
            const EXPECTED: &str = "\"full_attention\" or \"sliding_attention\" for each layer";
            let pattern = types.as_array().and_then(|types| types.iter().map(window).collect::<Option<Vec<_>>>());
            let pattern = pattern.filter(|pattern| pattern.len() as u64 == layers);
            let pattern = pattern.ok_or_else(|| settings.wrong("layer_types", EXPECTED, shown(types)))?;
            self.insert(PATTERN, Value::Array(pattern));
        } else if self.architecture == Architecture::Gemma3 {
            let period = settings.unsigned("sliding_window_pattern")?;
            let period = period.or(settings.unsigned("_sliding_window_pattern")?).unwrap_or(6);
            self.unsigned(PATTERN, period);
        } else if self.architecture != Architecture::Mistral {
            // The layers from this one on have the window.
            let first = settings.unsigned("max_window_layers")?.unwrap_or(28);
            // More layers than any model has are refused by whoever reads the keys.
            let pattern = (0..layers.min(1024)).map(|layer| Value::Bool(layer >= first)).collect();
            self.insert(PATTERN, Value::Array(pattern));
        }
        Ok(())
    }

    /// How positions rotate; returns divisors of the single frequencies, if there are any.
    fn rope(&mut self, settings: &Settings, head_size: u64) -> Result<Option<Vec<f32>>, Error> {
        let gemma = self.architecture == Architecture::Gemma3;
        // Since Transformers 5 all that concerns the rotation is in `rope_parameters`, for Gemma 3 by type of layer.
        let parameters = settings.object("rope_parameters")?;
        let (mut full, mut sliding) = (parameters, None);
        if let Some(parameters) = &full
            && parameters.get("full_attention").is_some()
        {
            sliding = parameters.object("sliding_attention")?;
            full = parameters.object("full_attention")?;
        }
        let base = |rope: &Option<Settings>, key: &str, default: f64| -> Result<f64, Error> {
            let inside = rope.as_ref().map_or(Ok(None), |rope| rope.number("rope_theta"))?;
            Ok(inside.or(settings.number(key)?).unwrap_or(default))
        };
        let theta = base(&full, "rope_theta", if gemma { 1e6 } else { 1e4 })?;
        self.float("rope.freq_base", theta);
        if gemma {
            let local = base(&sliding, "rope_local_base_freq", 1e4)?;
            self.float("rope.freq_base_swa", local);
        }
        if let Some(sliding) = &sliding
            && let Some(kind) = sliding.text("rope_type")?.filter(|kind| *kind != "default")
        {
            return Err(settings.unsupported("rope_parameters.sliding_attention.rope_type", "default", kind));
        }
        let scaling = match full {
            Some(full) => Some(full),
            None => settings.object("rope_scaling")?,
        };
        let Some(scaling) = scaling else { return Ok(None) };
        let number = |key: &str| match scaling.number(key)? {
            Some(number) if number > 0.0 => Ok(number),
            found => {
                Err(scaling.wrong(key, "a positive number", found.map_or("nothing".to_owned(), |n| n.to_string())))
            }
        };
        match scaling.text("rope_type")?.or(scaling.text("type")?).unwrap_or("default") {
            "default" => Ok(None),
            "linear" => {
                self.insert("rope.scaling.type", Value::String("linear".to_owned()));
                self.float("rope.scaling.factor", number("factor")?);
                Ok(None)
            }
            "llama3" => {
                let llama3 = Llama3 {
                    factor: number("factor")?,
                    low: number("low_freq_factor")?,
                    high: number("high_freq_factor")?,
                    original_context: number("original_max_position_embeddings")?,
                };
                if llama3.high <= llama3.low {
                    return Err(scaling.wrong("high_freq_factor", "more than low_freq_factor", llama3.high));
                }
                if head_size > MAX_HEAD {
                    return Err(settings.unsupported("head_dim", "up to 1024", head_size));
                }
                Ok(Some((0..head_size / 2).map(|pair| llama3.divisor(theta, pair, head_size)).collect()))
            }
            other => Err(scaling.unsupported("the type of rope scaling", "default, linear or llama3", other)),
        }
    }
}

/// Most values of a head: what is computed from it must not be of any size.
const MAX_HEAD: u64 = 1024;

/// Llama 3.1's scaling of rotary positions ("The Llama 3 Herd of Models", 2024, and the published model): pairs that turn
/// at least `high` times within the context that the model was first trained with stay as they are, pairs that turn at most
/// `low` times are slowed down by `factor`, and those between by something between.
struct Llama3 {
    factor: f64,
    low: f64,
    high: f64,
    /// In tokens.
    original_context: f64,
}

impl Llama3 {
    /// What the frequency of a pair is divided by.
    fn divisor(&self, theta: f64, pair: u64, head_size: u64) -> f32 {
        let frequency = theta.powf(-((2 * pair) as f64) / head_size as f64);
        let turns = self.original_context * frequency / TAU;
        let kept = ((turns - self.low) / (self.high - self.low)).clamp(0.0, 1.0);
        (1.0 / (kept + (1.0 - kept) / self.factor)) as f32
    }
}
