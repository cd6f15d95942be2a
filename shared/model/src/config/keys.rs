//! The keys of a model file that begin with its architecture's name.

use super::error::{Error, require, unsupported};
use super::parts::{Architecture, Layer, Pairs, Rope};
use super::tensors::vector;
use crate::checkpoint::{Checkpoint, Value};

/// What the frequencies of rotary positions are divided by, one value a pair (Llama 3 scales them so).
const ROPE_DIVISORS: &str = "rope_freqs.weight";
/// `halves` where the pairs of rotary positions are not those of the architecture's GGUF files.
const ROPE_PAIRS: &str = "baton.rope.pairs";
/// Gemma 3's layers: five that see a window, one that sees all, and so on.
const GEMMA3_PATTERN: u64 = 6;
const ROPE_BASE: f64 = 10_000.0;

/// The keys of a file that begin with its architecture's name.
pub(super) struct Keys<'a> {
    pub(super) file: &'a Checkpoint,
    pub(super) architecture: Architecture,
}

impl Keys<'_> {
    pub(super) fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.architecture.name())
    }

    fn get(&self, name: &str) -> Option<&Value> {
        self.file.get(&self.key(name))
    }

    pub(super) fn require(
        &self,
        name: &str,
        found: usize,
        holds: bool,
        expected: impl FnOnce() -> String,
    ) -> Result<(), Error> {
        require(&self.key(name), found, holds, expected)
    }

    pub(super) fn size(&self, name: &str, most: usize) -> Result<usize, Error> {
        let key = self.key(name);
        let value = self.file.unsigned(&key)?;
        match usize::try_from(value) {
            Ok(value) if (1..=most).contains(&value) => Ok(value),
            _ => Err(unsupported(&key, value, format!("1 to {most}"))),
        }
    }

    pub(super) fn size_or(&self, name: &str, most: usize, default: usize) -> Result<usize, Error> {
        if self.get(name).is_some() { self.size(name, most) } else { Ok(default) }
    }

    pub(super) fn positive_or(&self, name: &str, default: f64) -> Result<f64, Error> {
        if self.get(name).is_none() {
            return Ok(default);
        }
        let key = self.key(name);
        match self.file.float(&key)? {
            value if value.is_finite() && value > 0.0 => Ok(value),
            other => Err(unsupported(&key, other, "a positive number")),
        }
    }

    pub(super) fn pairs(&self) -> Result<Pairs, Error> {
        match (self.file.get(ROPE_PAIRS), self.architecture) {
            (None, Architecture::Llama) => Ok(Pairs::Adjacent),
            (None, _) => Ok(Pairs::Halves),
            (Some(_), _) => match self.file.string(ROPE_PAIRS)? {
                "halves" => Ok(Pairs::Halves),
                other => Err(unsupported(ROPE_PAIRS, other, "halves")),
            },
        }
    }

    /// What each layer's attention sees, and the rotations that the layers refer to.
    pub(super) fn attention(
        &self,
        layers: usize,
        context: usize,
        rope_width: usize,
    ) -> Result<(Vec<Layer>, Vec<Rope>), Error> {
        let base = self.positive_or("rope.freq_base", ROPE_BASE)?;
        let mut ropes = vec![Rope::new(base, rope_width)];
        self.scale(&mut ropes[0])?;
        let windowed = self.windowed(layers)?;
        // A model may turn the layers that see a window faster; no scaling applies to these.
        let local = self.architecture == Architecture::Gemma3 || self.get("rope.freq_base_swa").is_some();
        if local && windowed.iter().any(Option::is_some) {
            ropes.push(Rope::new(self.positive_or("rope.freq_base_swa", ROPE_BASE)?, rope_width));
        }
        let layer = |window: Option<usize>| Layer {
            window: window.filter(|window| *window < context),
            rope: if window.is_some() { ropes.len() - 1 } else { 0 },
        };
        Ok((windowed.into_iter().map(layer).collect(), ropes))
    }

    /// The window of each layer.
    fn windowed(&self, layers: usize) -> Result<Vec<Option<usize>>, Error> {
        const WINDOW: &str = "attention.sliding_window";
        const PATTERN: &str = "attention.sliding_window_pattern";
        if self.get(WINDOW).is_none() || self.file.unsigned(&self.key(WINDOW))? == 0 {
            return Ok(vec![None; layers]);
        }
        let window = self.size(WINDOW, u32::MAX as usize)?;
        let all_but_each = |period: u64| {
            (1..=layers as u64).map(|layer| (period == 0 || layer % period != 0).then_some(window)).collect()
        };
        match self.get(PATTERN) {
            None if self.architecture == Architecture::Gemma3 => Ok(all_but_each(GEMMA3_PATTERN)),
            None => Ok(vec![Some(window); layers]),
            Some(Value::Array(pattern)) => {
                let pattern: Option<Vec<bool>> = pattern.iter().take(layers).map(Value::as_bool).collect();
                match pattern.filter(|pattern| pattern.len() == layers) {
                    Some(pattern) => Ok(pattern.into_iter().map(|local| local.then_some(window)).collect()),
                    None => Err(unsupported(&self.key(PATTERN), "an array", format!("{layers} bools or a number"))),
                }
            }
            Some(_) => Ok(all_but_each(self.file.unsigned(&self.key(PATTERN))?)),
        }
    }

    /// Slows the rotation down as the file asks.
    fn scale(&self, rope: &mut Rope) -> Result<(), Error> {
        let kind =
            self.get("rope.scaling.type").map_or(Ok("linear"), |_| self.file.string(&self.key("rope.scaling.type")))?;
        if !["none", "linear"].contains(&kind) {
            return Err(unsupported(&self.key("rope.scaling.type"), kind, "none or linear"));
        }
        // Two names, the second one in old files.
        let name = ["rope.scaling.factor", "rope.scale_linear"].into_iter().find(|name| self.get(name).is_some());
        if let (Some(name), "linear") = (name, kind) {
            let key = self.key(name);
            match self.file.float(&key)? {
                // As good as absent.
                0.0 => {}
                factor if factor.is_finite() && factor > 0.0 => rope.divide(|_| factor),
                other => return Err(unsupported(&key, other, "a positive number")),
            }
        }
        if self.file.tensor(ROPE_DIVISORS).is_some() {
            let divisors = vector(self.file, ROPE_DIVISORS, rope.frequencies.len())?;
            if let Some(bad) = divisors.iter().find(|divisor| !(divisor.is_finite() && **divisor > 0.0)) {
                return Err(unsupported(ROPE_DIVISORS, bad, "positive numbers"));
            }
            rope.divide(|pair| f64::from(divisors[pair]));
        }
        Ok(())
    }

    /// Refuses what would compute, but not the model that was meant.
    pub(super) fn refuse_variants(&self) -> Result<(), Error> {
        // A value that changes nothing is fine.
        let neutral = [
            ("expert_count", 0.0),
            ("final_logit_softcapping", 0.0),
            ("attn_logit_softcapping", 0.0),
            ("attention.clamp_kqv", 0.0),
            ("attention.max_alibi_bias", 0.0),
            ("rope.scaling.attn_factor", 1.0),
            ("logit_scale", 1.0),
            ("residual_scale", 1.0),
            ("embedding_scale", 1.0),
        ];
        for (name, neutral) in neutral {
            let Some(value) = self.get(name) else { continue };
            if value.as_f64().or(value.as_i64().map(|value| value as f64)) != Some(neutral) {
                return Err(unsupported(&self.key(name), shown(value), neutral));
            }
        }
        let flags = [("attention.causal", true), ("use_parallel_residual", false)];
        for (name, expected) in flags {
            let Some(value) = self.get(name) else { continue };
            if value.as_bool() != Some(expected) {
                return Err(unsupported(&self.key(name), shown(value), expected));
            }
        }
        // Layers that see a window might have other sizes than the rest.
        for (name, other) in [
            ("attention.key_length_swa", "attention.key_length"),
            ("attention.value_length_swa", "attention.value_length"),
            ("rope.dimension_count_swa", "rope.dimension_count"),
        ] {
            let Some(value) = self.get(name) else { continue };
            if self.get(other) != Some(value) {
                return Err(unsupported(&self.key(name), shown(value), format!("the value of {}", self.key(other))));
            }
        }
        Ok(())
    }
}

impl Rope {
    /// `base^(-2i / width)` radians a position for pair `i`.
    fn new(base: f64, width: usize) -> Rope {
        let frequency = |pair| base.powf(-((2 * pair) as f64) / width as f64);
        Rope { frequencies: (0..width / 2).map(frequency).collect() }
    }

    fn divide(&mut self, divisor: impl Fn(usize) -> f64) {
        self.frequencies.iter_mut().enumerate().for_each(|(pair, frequency)| *frequency /= divisor(pair));
    }
}

/// A value in a message.
fn shown(value: &Value) -> String {
    match value {
        Value::Unsigned(value) => value.to_string(),
        Value::Signed(value) => value.to_string(),
        Value::Float(value) => value.to_string(),
        Value::Bool(value) => value.to_string(),
        Value::String(value) => format!("{value:?}"),
        Value::Array(values) => format!("an array of {}", values.len()),
    }
}
