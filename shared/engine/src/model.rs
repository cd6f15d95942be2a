//! What every engine offers to prefill, decode and the one-process reference.

use std::ops::Range;

use baton_contract::kv;

/// What a model is, known without its weights.
#[derive(Clone, Debug, PartialEq)]
pub struct Spec {
    /// The name the model file gives itself; for people only.
    pub name: String,
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
    pub sequence: SequenceId,
    /// Tokens to append, at least one.
    pub tokens: &'a [u32],
    /// Whether the caller wants the logits after the last of them.
    pub logits: bool,
}

/// A loaded model with its KV cache.
///
/// The result for a sequence depends on its own tokens only: not on its neighbours in the batch, not on how its tokens
/// were split into passes, not on whether a part of its KV cache was imported: to the bit on `flex` and in the sim engine;
/// other devices round by the shape of the batch.
pub trait Model: Send {
    fn spec(&self) -> &Spec;

    /// Opens an empty sequence with room for `capacity` tokens (at most the context).
    fn open(&mut self, capacity: usize) -> Result<SequenceId, Error>;

    /// Frees a sequence's memory. Closing an unknown sequence does nothing.
    fn close(&mut self, sequence: SequenceId);

    /// Tokens whose KV the sequence holds.
    fn len(&self, sequence: SequenceId) -> Result<usize, Error>;

    /// Appends each step's tokens to its sequence and returns, in the same order, the logits after the last token
    /// (`[vocabulary]`, natural log-odds before softmax) of each step that asked for them. A sequence occurs once.
    fn forward(&mut self, steps: &[Step<'_>]) -> Result<Vec<Option<Vec<f32>>>, Error>;

    /// Copies the KV cache of a range of a sequence's tokens.
    fn export(&self, sequence: SequenceId, tokens: Range<usize>) -> Result<kv::Block, Error>;

    /// Appends a block to the sequence's KV cache, as if its tokens had been computed. `tokens` are the token ids the
    /// block stands for.
    fn import(&mut self, sequence: SequenceId, tokens: &[u32], block: &kv::Block) -> Result<(), Error>;
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("no such sequence: {0:?}")]
    UnknownSequence(SequenceId),
    #[error("the sequence has room for {capacity} tokens, {needed} are needed")]
    Full { capacity: usize, needed: usize },
    #[error("token id {token} is outside the vocabulary of {vocabulary}")]
    TokenOutOfRange { token: u32, vocabulary: usize },
    #[error("tokens {start}..{end} were asked for, the sequence holds {len}")]
    RangeOutOfBounds { start: usize, end: usize, len: usize },
    #[error(
        "the KV block holds {found} values in {layers} layers, the model's shape demands {expected} in {expected_layers}"
    )]
    BlockMismatch { found: usize, layers: usize, expected: usize, expected_layers: usize },
    #[error("a step needs at least one token")]
    EmptyStep,
    /// Told to each job of a batch whose step failed.
    #[error("the step of the whole batch failed: {0}")]
    StepFailed(String),
}
