//! A model without weights: every interface, a clock that can be set, KV of the right size, and a text that depends on
//! all of the history. The bus, the store and the planner are measured and tested with it.

mod story;
mod values;

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use baton_contract::kv;
use serde::{Deserialize, Serialize};

use crate::model::{self, Error, KvMemory, Model, SequenceId, Spec, Step};
use crate::tokenizer;
pub use story::AnswerTokens;
use story::Story;
use values::Values;

/// Tokens in a page of KV memory.
const PAGE_TOKENS: usize = 64;

/// How the simulated model behaves.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Options {
    /// Transformer layers; decides the size of the KV cache.
    pub layers: usize,
    /// Values per token in K, and as many in V: KV heads times head size. At least 2.
    pub kv_width: usize,
    /// Tokens that prompt and answer may have together.
    pub context: usize,
    /// Seconds that a token of a prompt takes: each token of a step with more than one.
    pub prefill_s_per_token: f64,
    /// Seconds that generating takes for a whole batch: once for all steps with one token.
    pub decode_s_per_step: f64,
    /// Length of the answers. Without it an answer never ends by itself, and `max_tokens` decides.
    pub answer_tokens: Option<AnswerTokens>,
}

impl Default for Options {
    /// The shape of SmolLM2-135M, in no time.
    fn default() -> Options {
        Options {
            layers: 30,
            kv_width: 192,
            context: 8192,
            prefill_s_per_token: 0.0,
            decode_s_per_step: 0.0,
            answer_tokens: None,
        }
    }
}

/// Options that describe no model.
#[derive(Debug, thiserror::Error)]
#[error("sim.{key}: expected {expected}, found {found}")]
pub struct OptionsError {
    /// The option.
    pub key: &'static str,
    /// What it may be.
    pub expected: &'static str,
    /// What it is.
    pub found: String,
}

impl Options {
    /// What the model is, or why there can't be one.
    pub fn spec(&self) -> Result<Spec, OptionsError> {
        let refused =
            |key, expected, found: &dyn ToString| Err(OptionsError { key, expected, found: found.to_string() });
        if !(1..=1024).contains(&self.layers) {
            return refused("layers", "1 to 1024", &self.layers);
        }
        if !(2..=65_536).contains(&self.kv_width) {
            return refused("kv_width", "2 to 65536", &self.kv_width);
        }
        if !(1..=1 << 24).contains(&self.context) {
            return refused("context", "1 to 16777216 tokens", &self.context);
        }
        for (key, seconds) in
            [("prefill_s_per_token", self.prefill_s_per_token), ("decode_s_per_step", self.decode_s_per_step)]
        {
            if !(0.0..=3600.0).contains(&seconds) {
                return refused(key, "0 to 3600 seconds", &seconds);
            }
        }
        if let Some(AnswerTokens { min, max }) = self.answer_tokens
            && (min == 0 || min > max)
        {
            return refused("answer_tokens", "1 <= min <= max", &format!("min {min}, max {max}"));
        }
        let mut fingerprint = blake3::Hasher::new_derive_key("baton sim engine, layout 1");
        fingerprint.update(&(self.layers as u64).to_le_bytes());
        fingerprint.update(&(self.kv_width as u64).to_le_bytes());
        Ok(Spec {
            name: "sim".to_owned(),
            kv: kv::Shape { layers: self.layers, width: self.kv_width },
            vocabulary: story::VOCABULARY,
            context: self.context,
            fingerprint: *fingerprint.finalize().as_bytes(),
        })
    }
}

/// The simulated model.
///
/// A token's KV depends on the token and its position. In each layer K begins with the token's id (low byte, high byte);
/// the rest is distributed like a trained model's. The text is a function of the KV that a sequence holds and of nothing
/// else, so a KV block that was mixed up, cut or damaged shows in the answer.
pub struct Sim {
    options: Options,
    spec: Spec,
    values: Values,
    sequences: BTreeMap<SequenceId, Sequence>,
    next_id: u64,
    /// Pages that all sequences may take together.
    pages: usize,
}

struct Sequence {
    /// bf16 bit patterns, `[token, layer, K then V]`: each token's are together, as they are read.
    rows: Vec<u16>,
    story: Story,
}

impl Sim {
    /// `kv_bytes` bounds the KV of all open sequences; one page is always there.
    pub fn new(options: Options, kv_bytes: u64) -> Result<Sim, OptionsError> {
        let spec = options.spec()?;
        let page_bytes = (PAGE_TOKENS * spec.kv.layers * spec.kv.layer_values(1) * 2) as u64;
        let pages = usize::try_from(kv_bytes / page_bytes).unwrap_or(usize::MAX).max(1);
        Ok(Sim { options, spec, values: Values::new(), sequences: BTreeMap::new(), next_id: 0, pages })
    }

    /// The simulated model's tokenizer: bytes and `<end>`.
    pub fn tokenizer() -> tokenizer::Tokenizer {
        tokenizer::Tokenizer::bytes()
    }

    /// The simulated model's chat template.
    pub const CHAT_TEMPLATE: &str =
        "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}assistant:\n";

    fn sequence(&self, id: SequenceId) -> Result<&Sequence, Error> {
        self.sequences.get(&id).ok_or(Error::UnknownSequence(id))
    }

    /// bf16 values of a token in all layers.
    fn row_values(&self) -> usize {
        self.spec.kv.layers * self.spec.kv.layer_values(1)
    }

    fn sleep(&self, steps: &[Step<'_>]) {
        let prompt_tokens: usize = steps.iter().map(|step| step.tokens.len()).filter(|&tokens| tokens > 1).sum();
        let generates = steps.iter().any(|step| step.tokens.len() == 1);
        let seconds = self.options.prefill_s_per_token * prompt_tokens as f64
            + if generates { self.options.decode_s_per_step } else { 0.0 };
        if let Ok(time) = Duration::try_from_secs_f64(seconds)
            && !time.is_zero()
        {
            #[allow(
                clippy::disallowed_methods,
                reason = "a calibrated clock is what this model has in place of weights"
            )]
            std::thread::sleep(time);
        }
    }
}

impl Model for Sim {
    fn spec(&self) -> &Spec {
        &self.spec
    }

    fn memory(&self) -> KvMemory {
        let held = self.sequences.values().map(|sequence| sequence.rows.len() / self.row_values());
        let used: usize = held.map(|tokens| tokens.div_ceil(PAGE_TOKENS)).sum();
        KvMemory { page_tokens: PAGE_TOKENS, pages: self.pages, free_pages: self.pages - used }
    }

    fn open(&mut self) -> SequenceId {
        let id = SequenceId(self.next_id);
        self.next_id += 1;
        self.sequences.insert(id, Sequence { rows: Vec::new(), story: Story::default() });
        id
    }

    fn close(&mut self, sequence: SequenceId) {
        self.sequences.remove(&sequence);
    }

    fn len(&self, sequence: SequenceId) -> Result<usize, Error> {
        Ok(self.sequence(sequence)?.rows.len() / self.row_values())
    }

    fn forward(&mut self, steps: &[Step<'_>]) -> Result<Vec<Vec<f32>>, Error> {
        // Nothing is appended unless everything can be.
        model::check_steps(self, steps)?;
        self.sleep(steps);
        let row_values = self.row_values();
        let mut out = Vec::with_capacity(steps.len());
        for step in steps {
            let sequence = self.sequences.get_mut(&step.sequence).ok_or(Error::UnknownSequence(step.sequence))?;
            let mut logits = Vec::new();
            for (index, &token) in step.tokens.iter().enumerate() {
                let start = sequence.rows.len();
                sequence.rows.resize(start + row_values, 0);
                let row = &mut sequence.rows[start..];
                self.values.fill(row, self.spec.kv, token, start / row_values);
                sequence.story.read(row);
                if index + step.logits >= step.tokens.len() {
                    logits.extend(sequence.story.logits(self.options.answer_tokens));
                }
            }
            out.push(logits);
        }
        Ok(out)
    }

    fn export(&self, sequence: SequenceId, tokens: Range<usize>) -> Result<kv::Block, Error> {
        let len = self.len(sequence)?;
        if tokens.start > tokens.end || tokens.end > len {
            return Err(Error::RangeOutOfBounds { start: tokens.start, end: tokens.end, len });
        }
        let rows = &self.sequence(sequence)?.rows[tokens.start * self.row_values()..tokens.end * self.row_values()];
        let width = self.spec.kv.width;
        let layer = |layer: usize| {
            let mut values = Vec::with_capacity(self.spec.kv.layer_values(tokens.len()));
            for part in [0, width] {
                for row in rows.chunks_exact(self.row_values()) {
                    let start = layer * 2 * width + part;
                    values.extend_from_slice(&row[start..start + width]);
                }
            }
            values
        };
        Ok(kv::Block { tokens: tokens.len(), layers: (0..self.spec.kv.layers).map(layer).collect() })
    }

    /// The block rules: if it stands for other tokens than `tokens`, it is imported all the same, and the answer goes on
    /// from what it holds.
    fn import(&mut self, sequence: SequenceId, tokens: &[u32], block: &kv::Block) -> Result<(), Error> {
        let len = self.len(sequence)?;
        let (shape, row_values) = (self.spec.kv, self.row_values());
        if block.tokens != tokens.len() || !block.fits(&shape) {
            return Err(Error::BlockMismatch {
                found: block.layers.iter().map(Vec::len).sum(),
                layers: block.layers.len(),
                expected: shape.layers * shape.layer_values(tokens.len()),
                expected_layers: shape.layers,
            });
        }
        model::check_room(self, [(len, tokens.len())])?;
        let state = self.sequences.get_mut(&sequence).ok_or(Error::UnknownSequence(sequence))?;
        state.rows.reserve(tokens.len() * row_values);
        let (width, mut differing) = (shape.width, 0);
        for (index, &token) in tokens.iter().enumerate() {
            let start = state.rows.len();
            for layer in &block.layers {
                let (k, v) = layer.split_at(block.tokens * width);
                state.rows.extend_from_slice(&k[index * width..(index + 1) * width]);
                state.rows.extend_from_slice(&v[index * width..(index + 1) * width]);
            }
            state.story.read(&state.rows[start..]);
            differing += usize::from(story::token(&state.rows[start..]) != token);
        }
        if differing > 0 {
            tracing::warn!(differing, tokens = tokens.len(), "an imported KV block stood for other tokens than named");
        }
        Ok(())
    }
}
