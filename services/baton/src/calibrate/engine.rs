//! Passes and steps of many sizes, and KV caches out of the engine and into it.

use std::{hint::black_box, slice};

use anyhow::Context;
use baton_contract::kv::{self, Block};
use baton_engine::{
    model::{Model, SequenceId, Step},
    sampling::greedy,
};
use baton_planner::{
    fit::{Fitted, Sample, fit},
    profile::{Kv, Transfer, pairs},
};
use indicatif::ProgressBar;
use rayon::prelude::*;
use tokio::time::Instant;

use super::{
    beside::{Beside, Do},
    enough,
};
use crate::bench::Runs;

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

/// Measures all sizes that fit the model's memory of `kv_bytes`.
pub(super) fn measure(
    model: &mut dyn Model,
    kv_bytes: u64,
    chunk_tokens: usize,
    repeat: usize,
    beside: &mut Beside,
    bar: &ProgressBar,
) -> anyhow::Result<Measured> {
    let (spec, memory) = (model.spec().clone(), model.memory());
    let capacity = memory.pages * memory.page_tokens;
    let room = |sequences: usize, tokens: usize| {
        tokens <= spec.context && sequences * tokens.next_multiple_of(memory.page_tokens) <= capacity
    };
    let passes: Vec<_> =
        PASSES.into_iter().filter(|&(prompts, tokens, context)| room(prompts, tokens + context)).collect();
    let steps: Vec<_> = STEPS.into_iter().filter(|&(sequences, context)| room(sequences, context + IN_A_ROW)).collect();
    enough(passes.len().min(steps.len()), "passes and steps")?;
    // All sizes in turn, again and again, so that a slow minute of the machine touches them alike.
    bar.set_length(((passes.len() + steps.len()) * (repeat + 1) + 2) as u64);
    bar.set_message("a history");
    let longest = passes.iter().map(|it| it.2).chain(steps.iter().map(|it| it.1)).max().unwrap_or(0);
    let longest = longest.max(chunk_tokens).min(spec.context).min(capacity);
    beside.only(Do::Decode)?;
    let mut measuring = Measuring { model, repeat, history: Vec::new(), pieces: Vec::new() };
    let export_s_per_token = measuring.remember(longest)?;
    bar.inc(1);
    let (mut pass_s, mut step_s) = (vec![Vec::new(); passes.len()], vec![Vec::new(); steps.len()]);
    for run in 0..=repeat {
        beside.only(Do::Decode)?;
        for (&(prompts, tokens, context), seconds) in passes.iter().zip(&mut pass_s) {
            bar.set_message(format!("prefill of {prompts} x {tokens} after {context}"));
            let pass = measuring.pass(prompts, tokens, context)?;
            // The first of each size warms up.
            if run > 0 {
                seconds.push(pass);
            }
            bar.inc(1);
        }
        beside.only(Do::Prefill)?;
        for (&(sequences, context), seconds) in steps.iter().zip(&mut step_s) {
            bar.set_message(format!("decode of {sequences} at {context}"));
            let steps = measuring.steps(sequences, context)?;
            if run > 0 {
                seconds.extend(steps);
            }
            bar.inc(1);
        }
    }
    let prefill: Vec<_> = passes
        .into_iter()
        .zip(pass_s)
        .map(|((prompts, tokens, context), seconds)| {
            let before = prompts as f64 * pairs(context as f64, tokens as f64);
            let features = [1.0, prompts as f64, (prompts * tokens) as f64, before];
            Sample { features, seconds: Runs::of(seconds).median }
        })
        .collect();
    let decode: Vec<_> = steps
        .into_iter()
        .zip(step_s)
        .map(|((sequences, context), seconds)| {
            // Halfway through the steps in a row.
            let tokens = sequences as f64 * (context as f64 + IN_A_ROW as f64 / 2.0);
            Sample { features: [1.0, sequences as f64, tokens], seconds: Runs::of(seconds).median }
        })
        .collect();
    bar.set_message("KV caches");
    let import_s_per_token = measuring.import()?;
    let blocks = measuring.blocks(&[chunk_tokens / 4, chunk_tokens / 2, chunk_tokens])?;
    bar.inc(1);
    Ok(Measured {
        prefill: fit(&prefill).context("no coefficients explain the times of prefill")?,
        decode: fit(&decode).context("no coefficients explain the times of decode")?,
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

impl Measuring<'_> {
    /// Token ids of no meaning, the same at every call.
    fn tokens(&self, count: usize) -> Vec<u32> {
        let vocabulary = self.model.spec().vocabulary as u64;
        // Knuth's linear congruential generator; its high bits are the good ones.
        let mut state = 7u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((state >> 33) % vocabulary) as u32
        };
        (0..count).map(|_| next()).collect()
    }

    /// Computes a history of so many tokens and takes it out of the engine; returns the seconds that the latter takes a token.
    fn remember(&mut self, tokens: usize) -> anyhow::Result<f64> {
        self.history = self.tokens(tokens);
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
    fn sequences(&mut self, count: usize, context: usize) -> anyhow::Result<Vec<SequenceId>> {
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
    fn pass(&mut self, prompts: usize, tokens: usize, context: usize) -> anyhow::Result<f64> {
        let ids = self.tokens(tokens);
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
    fn steps(&mut self, sequences: usize, context: usize) -> anyhow::Result<Vec<f64>> {
        let ids = self.tokens(sequences * IN_A_ROW);
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
    fn import(&mut self) -> anyhow::Result<f64> {
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
    fn blocks(&mut self, lengths: &[usize]) -> anyhow::Result<Vec<Block>> {
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
