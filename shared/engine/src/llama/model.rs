//! A loaded model: its weights, the pages of its KV cache and the sequences in them.

use std::collections::HashMap;
use std::ops::Range;

use baton_contract::kv;
use baton_model::checkpoint::Checkpoint;
use baton_model::config::Config;
use baton_model::model::{self, KvMemory, Model, SequenceId, Spec, Step};
use burn::tensor::Device;

use super::cache::{self, Cache};
use super::error::Error;
use super::failure::{self, Failure};
use super::forward::{Batch, Network};
use super::operators::Operators;
use super::proof;
use super::weights::Weights;
use crate::device;
use crate::kernels::{PAGE, Segment};

/// Rows that one pass takes at most; more are split, which bounds the memory of a pass and changes no result.
const PASS_ROWS: usize = 512;

/// A model on a device, with the KV cache of its open sequences.
pub struct Llama {
    pub(super) config: Config,
    spec: Spec,
    weights: Weights,
    pub(super) operators: Operators,
    pub(super) device: Device,
    /// One entry a layer.
    pub(super) caches: Vec<Cache>,
    pub(super) pages: usize,
    pub(super) free_pages: Vec<u32>,
    pub(super) sequences: HashMap<SequenceId, Sequence>,
    next: u64,
    /// Why nothing can be computed any more.
    pub(super) lost: Option<String>,
}

#[derive(Default)]
pub(super) struct Sequence {
    pub(super) len: usize,
    pub(super) pages: Vec<u32>,
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
    /// Reads the weights of `file` onto a device.
    pub fn load(file: Checkpoint, options: &model::Options) -> Result<Llama, Error> {
        let device = device::by_name(&options.device)?;
        let operators = Operators::of(&device, options.compute);
        Llama::load_with(file, device, operators, options.kv_bytes)
    }

    /// As [`Self::load`], with these operators.
    pub(super) fn load_with(
        file: Checkpoint,
        device: Device,
        operators: Operators,
        kv_bytes: u64,
    ) -> Result<Llama, Error> {
        let does_not_fit = |failure: Failure| Error::DoesNotFit { reason: failure.to_string() };
        if operators == Operators::Stock {
            proof::check(&device).map_err(|failure| Error::DoesNotCompute { reason: failure.to_string() })?;
        }
        let loaded = match operators {
            Operators::Kernels(_) => Llama::build(file, device, operators, kv_bytes),
            Operators::Stock => failure::caught(|| Ok(Llama::build(file, device, operators, kv_bytes)))
                .unwrap_or_else(|failure| Err(does_not_fit(failure))),
        };
        let mut model = loaded?;
        model.try_out().map_err(does_not_fit)?;
        Ok(model)
    }

    fn build(file: Checkpoint, device: Device, operators: Operators, kv_bytes: u64) -> Result<Llama, Error> {
        let config = Config::read(&file)?;
        let weights = Weights::load(&file, &config, operators, &device)?;
        let mut spec = config.spec(&file);
        // Devices and bodies round differently: their KV is not interchangeable.
        let mut fingerprint = blake3::Hasher::new();
        fingerprint.update(&spec.fingerprint).update(operators.tag());
        if operators == Operators::Stock {
            fingerprint.update(format!("{:?}", device.as_dispatch()).as_bytes());
        }
        spec.fingerprint = *fingerprint.finalize().as_bytes();

        let layers = config.layers.len();
        let page_bytes = cache::page_bytes(operators, &device, config.heads, layers) as u64;
        let pages = u32::try_from(kv_bytes / page_bytes).unwrap_or(u32::MAX).max(1);
        let caches = (0..layers).map(|_| Cache::new(operators, &device, config.heads, pages as usize)).collect();
        // The lowest pages are taken first, and what was freed last: so memory stays small and warm.
        let free_pages = (0..pages).rev().collect();
        let pages = pages as usize;
        let sequences = HashMap::new();
        let (next, lost) = (0, None);
        Ok(Llama { config, spec, weights, operators, device, caches, pages, free_pages, sequences, next, lost })
    }

    fn sequence(&self, id: SequenceId) -> Result<&Sequence, model::Error> {
        self.sequences.get(&id).ok_or(model::Error::UnknownSequence(id))
    }

    /// The next `tokens` tokens of a sequence as the rows from `row` of a pass, with the pages that they need; the
    /// sequence has them then.
    fn grow(&mut self, id: SequenceId, row: usize, tokens: usize) -> Result<Segment, model::Error> {
        let sequence = self.sequences.get_mut(&id).ok_or(model::Error::UnknownSequence(id))?;
        let start = sequence.len;
        sequence.len += tokens;
        let missing = sequence.len.div_ceil(PAGE) - sequence.pages.len();
        let rest = self.free_pages.len() - missing;
        sequence.pages.extend(self.free_pages.drain(rest..).rev());
        Ok(Segment { row, rows: tokens, start, pages: sequence.pages.clone() })
    }

    /// Runs parts of different sequences, together at most [`PASS_ROWS`] tokens.
    fn pass(&mut self, parts: &[Part<'_>], logits: &mut [Vec<f32>]) -> Result<(), model::Error> {
        let mut batch = Batch { tokens: Vec::new(), segments: Vec::new(), logits: Vec::new() };
        for part in parts {
            batch.segments.push(self.grow(part.sequence, batch.tokens.len(), part.tokens.len())?);
            batch.tokens.extend(part.tokens);
            batch.logits.push(part.logits);
        }
        let found = self.compute(&batch).map_err(|failure| self.fail(failure))?;
        for (part, found) in parts.iter().zip(found) {
            logits[part.step].extend(found);
        }
        Ok(())
    }

    /// Runs one token through a freshly loaded model, whose memory is found to be there only so.
    fn try_out(&mut self) -> Result<(), Failure> {
        match self.operators {
            Operators::Kernels(_) => Ok(()),
            Operators::Stock => self.compute(&first_token()).map(drop),
        }
    }

    fn compute(&mut self, batch: &Batch) -> Result<Vec<Vec<f32>>, Failure> {
        let network =
            Network { config: &self.config, weights: &self.weights, operators: self.operators, device: &self.device };
        let caches = &mut self.caches;
        match self.operators {
            // On a thread of the pool, so that its threads share the work of each operation without being woken for it.
            Operators::Kernels(_) => rayon::scope(|_| network.pass(batch, caches)),
            // On this thread, for Burn keeps queues and memory by thread.
            Operators::Stock => failure::caught(|| network.pass(batch, caches)),
        }
    }
}

/// A token at the start of the first page, that of no sequence.
fn first_token() -> Batch {
    Batch { tokens: vec![0], segments: vec![Segment { row: 0, rows: 1, start: 0, pages: vec![0] }], logits: vec![1] }
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
        KvMemory { page_tokens: PAGE, pages: self.pages, free_pages: self.free_pages.len() }
    }

    fn open(&mut self) -> SequenceId {
        let id = SequenceId(self.next);
        self.next += 1;
        self.sequences.insert(id, Sequence::default());
        id
    }

    fn close(&mut self, sequence: SequenceId) {
        if let Some(sequence) = self.sequences.remove(&sequence) {
            self.free_pages.extend(sequence.pages.into_iter().rev());
        }
    }

    fn len(&self, sequence: SequenceId) -> Result<usize, model::Error> {
        Ok(self.sequence(sequence)?.len)
    }

    fn forward(&mut self, steps: &[Step<'_>]) -> Result<Vec<Vec<f32>>, model::Error> {
        self.check_device()?;
        model::check_steps(self, steps)?;
        let lengths = steps.iter().map(|step| Ok((step.sequence, self.len(step.sequence)?)));
        let lengths = lengths.collect::<Result<Vec<_>, model::Error>>()?;
        let mut logits = vec![Vec::new(); steps.len()];
        let mut passes = passes(steps).into_iter().filter(|parts| !parts.is_empty());
        match passes.try_for_each(|parts| self.pass(&parts, &mut logits)) {
            Ok(()) => Ok(logits),
            Err(error) => {
                self.shrink(&lengths);
                Err(error)
            }
        }
    }

    fn export(&self, sequence: SequenceId, tokens: Range<usize>) -> Result<kv::Block, model::Error> {
        self.check_device()?;
        let Sequence { len, pages } = self.sequence(sequence)?;
        if tokens.start > tokens.end || tokens.end > *len {
            return Err(model::Error::RangeOutOfBounds { start: tokens.start, end: tokens.end, len: *len });
        }
        let segment = Segment { row: 0, rows: tokens.len(), start: tokens.start, pages: pages.clone() };
        let read = |cache: &Cache| if tokens.is_empty() { Ok(Vec::new()) } else { cache.read(&segment) };
        let layers = self.caches.iter().map(read).collect::<Result<_, Failure>>();
        let layers = layers.map_err(|failure| model::Error::StepFailed(failure.to_string()))?;
        let block = kv::Block { tokens: tokens.len(), layers };
        let Range { start, end } = tokens;
        // What is exported others may read for a long time.
        if block.is_finite() { Ok(block) } else { Err(model::Error::NonFinite { start, end }) }
    }

    fn import(&mut self, sequence: SequenceId, tokens: &[u32], block: &kv::Block) -> Result<(), model::Error> {
        self.check_device()?;
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
        if !tokens.is_empty() {
            let segment = self.grow(sequence, 0, tokens.len())?;
            if let Err(failure) = cache::import(self.operators, &mut self.caches, &segment, block) {
                let error = self.fail(failure);
                self.shrink(&[(sequence, len)]);
                return Err(error);
            }
        }
        Ok(())
    }
}
