//! What every engine offers to prefill, decode and the one-process reference.

use std::collections::BTreeMap;
use std::ops::Range;

use baton_contract::{kv, outcome::Code};

/// What a model is, known without its weights.
#[derive(Clone, Debug, PartialEq)]
pub struct Spec {
    /// The name the model file gives itself; for people only.
    pub name: String,
    /// The shape of its KV cache.
    pub kv: kv::Shape,
    /// Entries in the vocabulary, the length of a row of logits.
    pub vocabulary: usize,
    /// Tokens the model can attend to, prompt and answer together.
    pub context: usize,
    /// BLAKE3 of everything that determines the KV cache: weights, tokenizer, rope parameters, KV type and layout; of a
    /// loaded model also the kind of device and its kernels.
    /// Equal fingerprints mean interchangeable KV.
    pub fingerprint: [u8; 32],
}

/// Names one open sequence of a [`Model`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SequenceId(pub u64);

/// One sequence's part in a forward pass.
#[derive(Clone, Copy, Debug)]
pub struct Step<'a> {
    /// The sequence that goes on.
    pub sequence: SequenceId,
    /// Tokens to append, at least one.
    pub tokens: &'a [u32],
    /// After how many of them, the last ones, the caller wants the logits.
    pub logits: usize,
}

/// The memory that a model has for KV caches, in pages of some tokens each. A page belongs to one sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvMemory {
    /// Tokens of a page.
    pub page_tokens: usize,
    /// Pages in all.
    pub pages: usize,
    /// Pages that no sequence has.
    pub free_pages: usize,
}

impl KvMemory {
    /// Pages that `tokens` tokens of one sequence take.
    pub fn pages_for(&self, tokens: usize) -> usize {
        tokens.div_ceil(self.page_tokens)
    }
}

/// How a model computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Compute {
    /// In f32 on de-quantized weights: the reference.
    Exact,
    /// On quantized weights and activations where the device has kernels for that, else as `Exact`.
    #[default]
    Fast,
}

impl std::str::FromStr for Compute {
    type Err = UnknownCompute;

    fn from_str(name: &str) -> Result<Compute, UnknownCompute> {
        match name {
            "exact" => Ok(Compute::Exact),
            "fast" => Ok(Compute::Fast),
            _ => Err(UnknownCompute { name: name.to_owned() }),
        }
    }
}

/// A text that names no mode.
#[derive(Debug, thiserror::Error)]
#[error("compute mode {name} is unknown: expected exact or fast")]
pub struct UnknownCompute {
    name: String,
}

/// How to load a model.
#[derive(Clone, Debug)]
pub struct Options {
    /// The name of a device: `flex` is the CPU.
    pub device: String,
    /// How it computes.
    pub compute: Compute,
    /// Bytes that the KV caches of all open sequences may take; at least one page is always there.
    pub kv_bytes: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self { device: "flex".to_owned(), compute: Compute::default(), kv_bytes: 1 << 30 }
    }
}

/// A loaded model with its KV cache.
///
/// The result for a sequence depends on its own tokens only: not on its neighbours in the batch, not on how its tokens
/// were split into passes, not on whether a part of its KV cache was imported: to the bit on `flex` and in the sim engine;
/// other devices round by the shape of the batch.
pub trait Model: Send {
    /// What the model is.
    fn spec(&self) -> &Spec;

    /// The memory for KV caches, and what of it is free.
    fn memory(&self) -> KvMemory;

    /// Opens an empty sequence, which takes no memory until it has tokens.
    fn open(&mut self) -> SequenceId;

    /// Frees a sequence's memory. Closing an unknown sequence does nothing.
    fn close(&mut self, sequence: SequenceId);

    /// Tokens whose KV the sequence holds.
    fn len(&self, sequence: SequenceId) -> Result<usize, Error>;

    /// Appends each step's tokens to its sequence and returns, in the same order, the logits that each step asked for
    /// (`[logits, vocabulary]`, natural log-odds before softmax). A step that can't be taken fails all, and nothing has
    /// changed then.
    fn forward(&mut self, steps: &[Step<'_>]) -> Result<Vec<Vec<f32>>, Error>;

    /// Copies the KV cache of a range of a sequence's tokens, if it holds finite numbers only.
    fn export(&self, sequence: SequenceId, tokens: Range<usize>) -> Result<kv::Block, Error>;

    /// Appends a block to the sequence's KV cache, as if its tokens had been computed. `tokens` are the token ids the
    /// block stands for.
    fn import(&mut self, sequence: SequenceId, tokens: &[u32], block: &kv::Block) -> Result<(), Error>;
}

/// Refuses steps that a model could not take as a whole.
pub fn check_steps(model: &dyn Model, steps: &[Step<'_>]) -> Result<(), Error> {
    // What each sequence holds at first, and what all of its steps add.
    let mut grown: BTreeMap<SequenceId, (usize, usize)> = BTreeMap::new();
    for step in steps {
        let held = model.len(step.sequence)?;
        if step.tokens.is_empty() || step.tokens.len() < step.logits {
            return Err(Error::EmptyStep);
        }
        check_tokens(model, step.tokens)?;
        grown.entry(step.sequence).or_insert((held, 0)).1 += step.tokens.len();
    }
    check_room(model, grown.into_values())
}

/// Refuses tokens that the vocabulary does not have.
pub fn check_tokens(model: &dyn Model, tokens: &[u32]) -> Result<(), Error> {
    let vocabulary = model.spec().vocabulary;
    match tokens.iter().find(|token| **token as usize >= vocabulary) {
        Some(token) => Err(Error::TokenOutOfRange { token: *token, vocabulary }),
        None => Ok(()),
    }
}

/// Refuses sequences that would grow from so many tokens by so many more beyond the context or the memory.
pub fn check_room(model: &dyn Model, growth: impl IntoIterator<Item = (usize, usize)>) -> Result<(), Error> {
    let (memory, context) = (model.memory(), model.spec().context);
    let mut needed = 0;
    for (held, more) in growth {
        let end = held.saturating_add(more);
        if end > context {
            return Err(Error::ContextExceeded { context, needed: end });
        }
        needed += memory.pages_for(end) - memory.pages_for(held);
    }
    let KvMemory { page_tokens, pages, free_pages: free } = memory;
    if needed > free { Err(Error::OutOfMemory { needed, free, pages, page_tokens }) } else { Ok(()) }
}

impl Error {
    /// What a job that failed of it has for a code.
    pub fn code(&self) -> Code {
        match self {
            Self::NonFinite { .. } | Self::NonFiniteLogits => Code::NonFinite,
            _ => Code::Internal,
        }
    }
}

/// Why a pass, an export or an import failed.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say what the variants mean")]
pub enum Error {
    #[error("no such sequence: {0:?}")]
    UnknownSequence(SequenceId),
    #[error("the context of the model is {context} tokens, {needed} are needed")]
    ContextExceeded { context: usize, needed: usize },
    #[error(
        "out of KV memory: {needed} pages of {page_tokens} tokens are needed, {free} of {pages} are free; close a sequence, \
         or give the model more memory"
    )]
    OutOfMemory { needed: usize, free: usize, pages: usize, page_tokens: usize },
    #[error("token id {token} is outside the vocabulary of {vocabulary}")]
    TokenOutOfRange { token: u32, vocabulary: usize },
    #[error("tokens {start}..{end} were asked for, the sequence holds {len}")]
    RangeOutOfBounds { start: usize, end: usize, len: usize },
    #[error(
        "the KV block holds {found} values in {layers} layers, the model's shape demands {expected} in {expected_layers}"
    )]
    BlockMismatch { found: usize, layers: usize, expected: usize, expected_layers: usize },
    #[error(
        "the KV cache of tokens {start}..{end} holds values that are infinite or no numbers; check the model's file \
             (baton verify) and the device"
    )]
    NonFinite { start: usize, end: usize },
    #[error("the model gives logits that are infinite or no numbers; check its file (baton verify) and the device")]
    NonFiniteLogits,
    #[error("a step needs at least one token, and as many as it wants logits of")]
    EmptyStep,
    /// The device failed; the text says what of the model is left: at worst all sequences are closed, or the model is of no
    /// more use. Also told to each job of a batch whose step failed.
    #[error("the step of the whole batch failed: {0}")]
    StepFailed(String),
}
