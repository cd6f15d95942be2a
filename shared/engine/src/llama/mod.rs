//! The llama architecture on Burn (Touvron et al., "LLaMA", 2023): RMS norm before each part, rotary positions, grouped
//! queries, gated feed-forward, tied or separate output head.
//!
//! Computes in f32 on dequantized weights, with the KV cache in bf16 (round to nearest even; attention reads the rounded
//! values, also of the tokens of its own pass). On `flex` a sequence's logits and KV are the same to the bit whatever the
//! batch and however its tokens are split into passes, because every output of every operation is.

mod config;
mod forward;
mod ops;
mod stock;
#[cfg(test)]
mod tests;
mod weights;

use std::collections::HashMap;
use std::ops::Range;

use baton_contract::kv;
use burn::tensor::{DType, Device, Tensor, TensorData};
use half::bf16;

use crate::model::{self, KvMemory, Model, SequenceId, Spec, Step};
use crate::{device, gguf};
use config::Config;
pub use config::spec;
use forward::{Network, Segment};
use ops::{Cache, Operators};
use weights::Weights;

/// Rows that one pass takes at most; more are split, which bounds the memory of a pass and changes no result.
const PASS_ROWS: usize = 512;

/// Why a file is no model that we can run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Device(#[from] device::Error),
    #[error(transparent)]
    File(#[from] gguf::Error),
    #[error("the file's architecture is {found:?}, only \"llama\" is supported; choose a llama model")]
    Architecture { found: String },
    #[error("{key} is {found}, supported is only {expected}; choose another model")]
    Unsupported { key: String, found: String, expected: String },
    #[error("the file has no tensor {tensor}; fetch or convert it again")]
    MissingTensor { tensor: String },
    #[error("tensor {tensor} must have the dimensions {expected:?}, found {found:?}; fetch or convert the file again")]
    TensorShape { tensor: String, expected: Vec<usize>, found: Vec<usize> },
}

/// A llama model on a device, with the KV cache of its open sequences.
pub struct Llama {
    file: gguf::File,
    config: Config,
    spec: Spec,
    weights: Weights,
    operators: Operators,
    device: Device,
    sequences: HashMap<SequenceId, Sequence>,
    next: u64,
}

struct Sequence {
    len: usize,
    /// One entry a layer.
    caches: Vec<Cache>,
}

/// A part of a step that fits a pass.
struct Part<'a> {
    step: usize,
    sequence: SequenceId,
    tokens: &'a [u32],
    /// Of how many of the last tokens the logits are wanted.
    logits: usize,
}

impl Llama {
    /// Reads the weights of `file` onto `device`.
    pub fn load(file: gguf::File, options: &model::Options) -> Result<Llama, Error> {
        let device = device::by_name(&options.device)?;
        let operators = Operators::of(&device);
        Llama::load_with(file, device, operators)
    }

    fn load_with(file: gguf::File, device: Device, operators: Operators) -> Result<Llama, Error> {
        let config = Config::read(&file)?;
        config.embedding(&file)?;
        let weights = Weights::load(&file, &config, operators, &device)?;
        let mut spec = config.spec(&file);
        // Devices and bodies round differently: their KV is not interchangeable.
        let mut fingerprint = blake3::Hasher::new();
        fingerprint.update(&spec.fingerprint).update(operators.tag());
        if operators == Operators::Stock {
            fingerprint.update(format!("{:?}", device.as_dispatch()).as_bytes());
        }
        spec.fingerprint = *fingerprint.finalize().as_bytes();
        Ok(Llama { file, config, spec, weights, operators, device, sequences: HashMap::new(), next: 0 })
    }

    fn sequence(&self, id: SequenceId) -> Result<&Sequence, model::Error> {
        self.sequences.get(&id).ok_or(model::Error::UnknownSequence(id))
    }

    /// Runs parts of different sequences, together at most [`PASS_ROWS`] tokens.
    fn pass(&mut self, parts: &[Part<'_>], logits: &mut [Vec<f32>]) {
        let mut taken: Vec<_> =
            parts.iter().filter_map(|part| Some((part, self.sequences.remove(&part.sequence)?))).collect();
        let mut segments: Vec<_> = taken
            .iter_mut()
            .map(|(part, sequence)| Segment {
                tokens: part.tokens,
                start: sequence.len,
                caches: &mut sequence.caches,
                logits: part.logits,
            })
            .collect();
        let network = Network {
            config: &self.config,
            weights: &self.weights,
            embedding: self.config.embedding(&self.file).expect("checked when the model was loaded"),
            operators: self.operators,
            device: &self.device,
        };
        let found = network.pass(&mut segments);
        for (part, found) in parts.iter().zip(found) {
            logits[part.step].extend(found);
        }
        for (part, mut sequence) in taken {
            sequence.len += part.tokens.len();
            self.sequences.insert(part.sequence, sequence);
        }
    }
}

/// Cuts steps into passes of at most [`PASS_ROWS`] tokens in which a sequence occurs once.
fn passes<'a>(steps: &[Step<'a>]) -> Vec<Vec<Part<'a>>> {
    let mut passes = Vec::new();
    let mut pass: Vec<Part<'a>> = Vec::new();
    let mut room = PASS_ROWS;
    for (index, step) in steps.iter().enumerate() {
        let mut tokens = step.tokens;
        while !tokens.is_empty() {
            if room == 0 || pass.iter().any(|part| part.sequence == step.sequence) {
                passes.push(std::mem::take(&mut pass));
                room = PASS_ROWS;
            }
            let (now, later) = tokens.split_at(room.min(tokens.len()));
            let logits = step.logits.saturating_sub(later.len()).min(now.len());
            pass.push(Part { step: index, sequence: step.sequence, tokens: now, logits });
            room -= now.len();
            tokens = later;
        }
    }
    passes.push(pass);
    passes
}

impl Model for Llama {
    fn spec(&self) -> &Spec {
        &self.spec
    }

    fn memory(&self) -> KvMemory {
        KvMemory { page_tokens: 64, pages: 1 << 20, free_pages: 1 << 20 }
    }

    fn open(&mut self) -> SequenceId {
        let id = SequenceId(self.next);
        self.next += 1;
        let (width, capacity) = (self.spec.kv.width, self.spec.context);
        let caches = (0..self.spec.kv.layers).map(|_| Cache::new(capacity, width, &self.device)).collect();
        self.sequences.insert(id, Sequence { len: 0, caches });
        id
    }

    fn close(&mut self, sequence: SequenceId) {
        self.sequences.remove(&sequence);
    }

    fn len(&self, sequence: SequenceId) -> Result<usize, model::Error> {
        Ok(self.sequence(sequence)?.len)
    }

    fn forward(&mut self, steps: &[Step<'_>]) -> Result<Vec<Vec<f32>>, model::Error> {
        model::check_steps(self, steps)?;
        let mut logits = vec![Vec::new(); steps.len()];
        for parts in passes(steps) {
            if !parts.is_empty() {
                self.pass(&parts, &mut logits);
            }
        }
        Ok(logits)
    }

    fn export(&self, sequence: SequenceId, tokens: Range<usize>) -> Result<kv::Block, model::Error> {
        let Sequence { len, caches, .. } = self.sequence(sequence)?;
        if tokens.start > tokens.end || tokens.end > *len {
            return Err(model::Error::RangeOutOfBounds { start: tokens.start, end: tokens.end, len: *len });
        }
        let mut layers = vec![Vec::new(); caches.len()];
        if !tokens.is_empty() {
            for (layer, cache) in layers.iter_mut().zip(caches) {
                for tensor in [&cache.keys, &cache.values] {
                    let data = tensor.clone().slice([tokens.clone()]).into_data();
                    layer.extend(data.iter::<bf16>().map(bf16::to_bits));
                }
            }
        }
        Ok(kv::Block { tokens: tokens.len(), layers })
    }

    fn import(&mut self, sequence: SequenceId, tokens: &[u32], block: &kv::Block) -> Result<(), model::Error> {
        let len = self.len(sequence)?;
        let shape = self.spec.kv;
        if block.tokens != tokens.len() || !block.fits(&shape) {
            return Err(model::Error::BlockMismatch {
                found: block.layers.iter().map(Vec::len).sum(),
                layers: block.layers.len(),
                expected: shape.layers * shape.layer_values(tokens.len()),
                expected_layers: shape.layers,
            });
        }
        model::check_tokens(self, tokens)?;
        model::check_room(self, [(len, tokens.len())])?;
        let end = len + tokens.len();
        if tokens.is_empty() {
            return Ok(());
        }
        let Some(open) = self.sequences.get_mut(&sequence) else {
            return Err(model::Error::UnknownSequence(sequence));
        };
        for (cache, layer) in open.caches.iter_mut().zip(&block.layers) {
            let (keys, values) = layer.split_at(layer.len() / 2);
            for (tensor, bits) in [(&mut cache.keys, keys), (&mut cache.values, values)] {
                let values: Vec<bf16> = bits.iter().copied().map(bf16::from_bits).collect();
                let new = TensorData::new(values, [tokens.len(), shape.width]);
                let new = Tensor::from_data(new, (&self.device, DType::BF16));
                tensor.inplace(|tensor| tensor.slice_assign([len..end, 0..shape.width], new));
            }
        }
        open.len = end;
        Ok(())
    }
}
