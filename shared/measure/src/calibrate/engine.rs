//! Passes and steps of many sizes, and KV caches out of the engine and into it.

use std::{hint::black_box, slice};

use baton_contract::kv::{self, Block};
use baton_model::{
    model::{self, Model, SequenceId, Step},
    sampling::greedy,
};
use baton_planner::{
    fit::{Fitted, Sample, fit},
    profile::{Kv, Transfer, pairs},
};
use rayon::prelude::*;
use tokio::time::Instant;

use super::beside::{Beside, Do};
use crate::{engine::tokens, error::Error, progress::Steps, runs::Runs};

/// Prompts in a pass, tokens of each, and tokens that each has already.
const PASSES: [(usize, usize, usize); 12] = [
    (1, 16, 0),
    (1, 64, 0),
    (1, 256, 0),
    (1, 512, 0),
    (1, 64, 512),
    (1, 256, 512),
    (1, 64, 2048),
    (1, 256, 2048),
    (4, 16, 0),
    (4, 64, 0),
    (4, 64, 512),
    (8, 32, 256),
];
/// Sequences in a step, and tokens that each has.
const STEPS: [(usize, usize); 11] =
    [(1, 64), (1, 512), (1, 2048), (4, 64), (4, 512), (4, 2048), (8, 256), (16, 64), (16, 512), (32, 64), (32, 256)];
/// Steps in a row, of which the first warms up.
const IN_A_ROW: usize = 6;
/// Fewer sizes explain nothing.
const ENOUGH: usize = 4;
/// Of the token ids.
const SEED: u64 = 7;

/// What was found.
pub(super) struct Measured {
    pub(super) prefill: Fitted<4>,
    pub(super) decode: Fitted<3>,
    pub(super) transfer: Transfer,
    /// Without what is stored.
    pub(super) kv: Kv,
    /// KV caches to put and get.
    pub(super) blocks: Vec<Block>,
    pub(super) shape: kv::Shape,
}

struct Measuring<'m> {
    model: &'m mut dyn Model,
    repeat: usize,
    history: Vec<u32>,
    /// The KV cache of the history in pieces of [`PIECE`] tokens.
    pieces: Vec<Block>,
}

/// Tokens of a piece of the history.
const PIECE: usize = 64;

/// How much is measured.
#[derive(Clone, Copy)]
pub(super) struct Sizes {
    /// Bytes of the model's memory for KV caches.
    pub(super) kv_bytes: u64,
    pub(super) chunk_tokens: usize,
    /// How often each size is measured.
    pub(super) repeat: usize,
}

/// The passes and steps that fit a model's context and memory, and the seconds that each took.
struct Timed {
    passes: Vec<((usize, usize, usize), Vec<f64>)>,
    steps: Vec<((usize, usize), Vec<f64>)>,
}

/// Measures all sizes that fit the model's context and memory.
pub(super) fn measure(
    model: &mut dyn Model,
    sizes: Sizes,
    beside: &mut Beside,
    progress: &mut Steps,
) -> Result<Measured, Error> {
    let Sizes { kv_bytes, chunk_tokens, repeat } = sizes;
    let (spec, memory) = (model.spec().clone(), model.memory());
    let capacity = memory.pages * memory.page_tokens;
    let mut timed = Timed::that_fits(|sequences, tokens| {
        tokens <= spec.context && sequences * tokens.next_multiple_of(memory.page_tokens) <= capacity
    })?;
    progress.total((timed.passes.len() + timed.steps.len()) * (repeat + 1) + 2);
    progress.doing("a history");
    let longest = timed.longest_context().max(chunk_tokens).min(spec.context).min(capacity);
    beside.only(Do::Decode)?;
    let mut measuring = Measuring { model, repeat, history: Vec::new(), pieces: Vec::new() };
    let export_s_per_token = measuring.remember(longest)?;
    progress.done();
    for run in 0..=repeat {
        timed.round(&mut measuring, run > 0, beside, progress)?;
    }
    progress.doing("KV caches");
    let import_s_per_token = measuring.import()?;
    let blocks = measuring.blocks(&[chunk_tokens / 4, chunk_tokens / 2, chunk_tokens])?;
    progress.done();
    Ok(Measured {
        prefill: fit(&timed.prefill()).ok_or(Error::NoFit { what: "prefill" })?,
        decode: fit(&timed.decode()).ok_or(Error::NoFit { what: "decode" })?,
        transfer: Transfer { export_s_per_token, import_s_per_token },
        kv: Kv {
            raw_bytes_per_token: spec.kv.bytes(1) as f64,
            stored_bytes_per_token: spec.kv.bytes(1) as f64,
            memory_bytes_per_token: Some(kv_bytes as f64 / capacity.max(1) as f64),
            page_tokens: memory.page_tokens,
        },
        blocks,
        shape: spec.kv,
    })
}

impl Timed {
    /// The sizes for whose sequences, of tokens each, there is room.
    fn that_fits(room: impl Fn(usize, usize) -> bool) -> Result<Self, Error> {
        let passes = PASSES.into_iter().filter(|&(prompts, tokens, context)| room(prompts, tokens + context));
        let steps = STEPS.into_iter().filter(|&(sequences, context)| room(sequences, context + IN_A_ROW));
        let (passes, steps) =
            (passes.map(|size| (size, Vec::new())).collect::<Vec<_>>(), steps.map(|size| (size, Vec::new())).collect());
        let timed = Self { passes, steps };
        match timed.passes.len().min(timed.steps.len()) {
            found if found < ENOUGH => Err(Error::FewSizes { found, what: "passes and steps" }),
            _ => Ok(timed),
        }
    }

    fn longest_context(&self) -> usize {
        let contexts = self.passes.iter().map(|(size, _)| size.2).chain(self.steps.iter().map(|(size, _)| size.1));
        contexts.max().unwrap_or(0)
    }

    /// Takes all sizes in turn, so that a slow minute of the machine touches them alike; those that warm up don't count.
    fn round(
        &mut self,
        measuring: &mut Measuring<'_>,
        counts: bool,
        beside: &mut Beside,
        progress: &mut Steps,
    ) -> Result<(), Error> {
        beside.only(Do::Decode)?;
        for ((prompts, tokens, context), seconds) in &mut self.passes {
            progress.doing(format!("prefill of {prompts} x {tokens} after {context}"));
            let pass = measuring.pass(*prompts, *tokens, *context)?;
            seconds.extend(counts.then_some(pass));
            progress.done();
        }
        beside.only(Do::Prefill)?;
        for ((sequences, context), seconds) in &mut self.steps {
            progress.doing(format!("decode of {sequences} at {context}"));
            let steps = measuring.steps(*sequences, *context)?;
            seconds.extend(steps.into_iter().filter(|_| counts));
            progress.done();
        }
        Ok(())
    }

    fn prefill(&self) -> Vec<Sample<4>> {
        let sample = |((prompts, tokens, context), seconds): &((usize, usize, usize), Vec<f64>)| {
            let before = *prompts as f64 * pairs(*context as f64, *tokens as f64);
            let features = [1.0, *prompts as f64, (prompts * tokens) as f64, before];
            Sample { features, seconds: Runs::of(seconds.clone()).median }
        };
        self.passes.iter().map(sample).collect()
    }

    fn decode(&self) -> Vec<Sample<3>> {
        let sample = |((sequences, context), seconds): &((usize, usize), Vec<f64>)| {
            // Halfway through the steps in a row.
            let tokens = *sequences as f64 * (*context as f64 + IN_A_ROW as f64 / 2.0);
            Sample { features: [1.0, *sequences as f64, tokens], seconds: Runs::of(seconds.clone()).median }
        };
        self.steps.iter().map(sample).collect()
    }
}

impl Measuring<'_> {
    /// Computes a history of so many tokens and takes it out of the engine; returns the seconds that the latter takes a token.
    fn remember(&mut self, tokens: usize) -> Result<f64, model::Error> {
        self.history = self::tokens(self.model, SEED, tokens);
        let sequence = self.model.open();
        for tokens in self.history.chunks(512) {
            self.model.forward(&[Step { sequence, tokens, logits: 0 }])?;
        }
        let mut seconds = Vec::new();
        for start in (0..tokens).step_by(PIECE) {
            let (started, end) = (Instant::now(), (start + PIECE).min(tokens));
            self.pieces.push(self.model.export(sequence, start..end)?);
            seconds.push(started.elapsed().as_secs_f64() / (end - start) as f64);
        }
        self.model.close(sequence);
        Ok(Runs::of(seconds).median)
    }

    /// So many sequences that have the history's first tokens, in whole pieces.
    fn sequences(&mut self, count: usize, context: usize) -> Result<Vec<SequenceId>, model::Error> {
        let mut sequences = Vec::new();
        for _ in 0..count {
            let sequence = self.model.open();
            for (piece, tokens) in self.pieces.iter().zip(self.history.chunks(PIECE)).take(context / PIECE) {
                self.model.import(sequence, tokens, piece)?;
            }
            sequences.push(sequence);
        }
        Ok(sequences)
    }

    fn close(&mut self, sequences: Vec<SequenceId>) {
        sequences.into_iter().for_each(|sequence| self.model.close(sequence));
    }

    /// The seconds that a pass takes.
    fn pass(&mut self, prompts: usize, tokens: usize, context: usize) -> Result<f64, model::Error> {
        let ids = self::tokens(self.model, SEED, tokens);
        let sequences = self.sequences(prompts, context)?;
        let step = |&sequence| Step { sequence, tokens: &ids, logits: 1 };
        let steps: Vec<_> = sequences.iter().map(step).collect();
        let started = Instant::now();
        self.model.forward(&steps)?;
        let seconds = started.elapsed().as_secs_f64();
        self.close(sequences);
        Ok(seconds)
    }

    /// The seconds that steps in a row take, choosing the tokens included.
    fn steps(&mut self, sequences: usize, context: usize) -> Result<Vec<f64>, model::Error> {
        let ids = tokens(self.model, SEED, sequences * IN_A_ROW);
        let sequences = self.sequences(sequences, context)?;
        let mut seconds = Vec::new();
        for (run, row) in ids.chunks(sequences.len()).enumerate() {
            let step = |(&sequence, token)| Step { sequence, tokens: slice::from_ref(token), logits: 1 };
            let steps: Vec<_> = sequences.iter().zip(row).map(step).collect();
            let started = Instant::now();
            // The tokens are chosen and the logits let go before the next step can begin.
            let chosen: u64 =
                self.model.forward(&steps)?.into_par_iter().map(|logits| u64::from(greedy(&logits))).sum();
            black_box(chosen);
            if run > 0 {
                seconds.push(started.elapsed().as_secs_f64());
            }
        }
        self.close(sequences);
        Ok(seconds)
    }

    /// Seconds a token that a KV cache takes into the engine.
    fn import(&mut self) -> Result<f64, model::Error> {
        let mut seconds = Vec::new();
        for run in 0..=self.repeat {
            let started = Instant::now();
            let sequences = self.sequences(1, self.history.len())?;
            if run > 0 {
                seconds.push(started.elapsed().as_secs_f64());
            }
            self.close(sequences);
        }
        let tokens = self.history.len() / PIECE * PIECE;
        Ok(Runs::of(seconds).median / tokens.max(1) as f64)
    }

    /// The KV caches of the history's first tokens, of so many each.
    fn blocks(&mut self, lengths: &[usize]) -> Result<Vec<Block>, model::Error> {
        let sequences = self.sequences(1, self.history.len())?;
        let blocks = sequences.iter().flat_map(|&sequence| {
            let held = self.model.len(sequence).unwrap_or(0);
            lengths.iter().map(move |&tokens| (sequence, tokens.min(held))).filter(|(_, tokens)| *tokens > 0)
        });
        let blocks: Vec<_> = blocks.collect();
        let blocks = blocks.into_iter().map(|(sequence, tokens)| self.model.export(sequence, 0..tokens));
        let blocks = blocks.collect::<Result<Vec<_>, _>>()?;
        self.close(sequences);
        Ok(blocks)
    }
}
