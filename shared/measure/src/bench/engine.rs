//! Prefill, decode, loading and memory of the engine, without broker, store or sampling.

use std::path::Path;

use baton_contract::kv::Block;
use baton_model::{
    model::{self, Compute, Model, SequenceId, Step},
    source::Source,
};
use serde::Serialize;
use tokio::time::Instant;

use crate::{
    bench::sequence::kv_bytes,
    engine::{Engine, fits, name_of, tokens},
    error::Error,
    machine::{Cpu, Memory},
    progress::Steps,
    runs::Runs,
};

/// Steps that decode takes before those that count.
const WARM_UP_STEPS: usize = 8;
/// Of the token ids.
const SEED: u64 = 1;

/// What is measured.
#[derive(Clone, Debug)]
pub struct Options {
    /// The model, and what computes it.
    pub engine: Engine,
    /// How it computes.
    pub compute: Compute,
    /// Lengths of the prompts whose prefill is measured; at least one.
    pub prefill: Vec<usize>,
    /// Tokens that prefill computes at a time.
    pub pass: usize,
    /// Numbers of sequences that generate together.
    pub batch: Vec<usize>,
    /// Tokens that each of them generates.
    pub generate: usize,
    /// Tokens of each of them before the first generated one.
    pub context: usize,
    /// How often every measure is taken, besides once to warm up.
    pub repeat: usize,
}

/// What was found.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The model as it was named.
    pub model: String,
    /// The model as its file names it.
    pub name: String,
    /// `fast` or `exact`.
    pub compute: &'static str,
    /// What computed it.
    pub device: String,
    /// CPU threads.
    pub threads: usize,
    /// This machine's processor.
    pub cpu: Cpu,
    /// Runs of every measure.
    pub repeat: usize,
    /// Size of the model's file, where it is one file.
    pub file_mib: Option<f64>,
    /// Seconds from opening the file until the first prompt could start.
    pub load_s: f64,
    /// Resident after loading. Nothing on systems without `/proc`.
    pub rss_mib: Option<f64>,
    /// The most that was resident until then.
    pub load_peak_rss_mib: Option<f64>,
    /// The most that was resident until the end.
    pub peak_rss_mib: Option<f64>,
    /// The first length of `prefill`.
    pub prefill_tokens: usize,
    /// Its tokens a second.
    pub prefill_tok_s: f64,
    /// Tokens that prefill computed at a time.
    pub pass_tokens: usize,
    /// By the prompts' lengths.
    pub prefill: Vec<Prefill>,
    /// Tokens of a sequence before the first generated one.
    pub context_tokens: usize,
    /// Tokens that a sequence generated.
    pub generate_tokens: usize,
    /// By the numbers of sequences.
    pub decode: Vec<Decode>,
}

/// Prompts of one length.
#[derive(Clone, Debug, Serialize)]
pub struct Prefill {
    /// Tokens of the prompt.
    pub tokens: usize,
    /// How fast they were computed.
    #[serde(flatten)]
    pub speed: Speed,
}

/// Sequences that generate together.
#[derive(Clone, Debug, Serialize)]
pub struct Decode {
    /// How many they are.
    pub batch: usize,
    /// How fast they generated, together.
    #[serde(flatten)]
    pub speed: Speed,
    /// Milliseconds that a step of the whole batch takes.
    pub step_ms: f64,
}

/// Tokens a second in several runs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Speed {
    /// The median.
    pub tok_s: f64,
    /// The slowest run's.
    pub min_tok_s: f64,
    /// The fastest run's.
    pub max_tok_s: f64,
}

impl Speed {
    /// Of runs that computed `tokens` tokens each; `seconds` holds at least one.
    fn of(tokens: usize, seconds: Vec<f64>) -> Speed {
        let Runs { median, least, most } = Runs::of(seconds);
        let tok_s = |seconds: f64| tokens as f64 / seconds;
        Speed { tok_s: tok_s(median), min_tok_s: tok_s(most), max_tok_s: tok_s(least) }
    }
}

/// Loads the model and measures it, all on the calling thread, which is to be one of the compute threads.
///
/// # Errors
///
/// If the model can't be loaded, or has no room for what is asked.
pub fn measure(options: &Options, source: &Source, steps: &mut Steps) -> Result<Report, Error> {
    let Options { engine, compute, prefill: lengths, batch: batches, generate, context, repeat, pass } = options;
    steps.total((repeat + 1) * (lengths.len() + batches.len()) + 1);
    steps.doing("loading");
    let started = Instant::now();
    let spec = engine.vocabulary(source)?.spec().clone();
    fits(&spec, lengths, "--prefill")?;
    fits(&spec, &[context.saturating_add(*generate)], "--context and --generate together")?;
    let kv_bytes = kv_bytes(&spec.kv, lengths, batches, context + generate);
    let mut model = engine.load(source, model::Options { compute: *compute, kv_bytes, ..model::Options::default() })?;
    let load_s = started.elapsed().as_secs_f64();
    let loaded = Memory::now();
    steps.done();

    let mut bench = Bench { model: model.as_mut(), pass: *pass, repeat: *repeat, steps };
    let prefill = lengths.iter().map(|&tokens| bench.prefill(tokens)).collect::<Result<Vec<_>, _>>()?;
    let history = bench.history(*context)?;
    let decode = batches.iter().map(|&batch| bench.decode(batch, &history, *generate));
    let decode = decode.collect::<Result<Vec<_>, _>>()?;

    let cpu = Cpu::of_this_machine();
    Ok(Report {
        model: engine.model.clone(),
        name: spec.name,
        compute: name_of(*compute),
        device: engine.device.clone(),
        threads: if engine.threads == 0 { cpu.cores } else { engine.threads },
        cpu,
        repeat: *repeat,
        file_mib: match source {
            Source::Checkpoint(path) => file_mib(path),
            Source::Sim(_) => None,
        },
        load_s,
        rss_mib: loaded.map(|memory| memory.resident),
        load_peak_rss_mib: loaded.map(|memory| memory.peak),
        peak_rss_mib: Memory::now().map(|memory| memory.peak),
        prefill_tokens: lengths[0],
        prefill_tok_s: prefill[0].speed.tok_s,
        pass_tokens: *pass,
        prefill,
        context_tokens: *context,
        generate_tokens: *generate,
        decode,
    })
}

fn file_mib(path: &Path) -> Option<f64> {
    let data = path.metadata().ok().filter(|data| data.is_file())?;
    Some(data.len() as f64 / f64::from(1 << 20))
}

/// Tokens and their KV cache, to begin sequences with.
struct History {
    tokens: Vec<u32>,
    block: Block,
}

struct Bench<'m> {
    model: &'m mut dyn Model,
    pass: usize,
    repeat: usize,
    steps: &'m mut Steps,
}

impl Bench<'_> {
    /// Computes a prompt as prefill does.
    fn compute(&mut self, sequence: SequenceId, prompt: &[u32]) -> Result<(), model::Error> {
        let passes = prompt.len().div_ceil(self.pass);
        for (index, tokens) in prompt.chunks(self.pass).enumerate() {
            let logits = usize::from(index + 1 == passes);
            self.model.forward(&[Step { sequence, tokens, logits }])?;
        }
        Ok(())
    }

    fn prefill(&mut self, count: usize) -> Result<Prefill, model::Error> {
        self.steps.doing(format!("prefill of {count} tokens"));
        let prompt = tokens(self.model, SEED, count);
        let mut seconds = Vec::new();
        for run in 0..=self.repeat {
            let sequence = self.model.open();
            let started = Instant::now();
            self.compute(sequence, &prompt)?;
            if run > 0 {
                seconds.push(started.elapsed().as_secs_f64());
            }
            self.model.close(sequence);
            self.steps.done();
        }
        Ok(Prefill { tokens: count, speed: Speed::of(count, seconds) })
    }

    /// What every sequence of decode begins with: computed once, since only its length matters to the time of a step.
    fn history(&mut self, count: usize) -> Result<History, model::Error> {
        let tokens = tokens(self.model, SEED, count);
        let sequence = self.model.open();
        self.compute(sequence, &tokens)?;
        let block = self.model.export(sequence, 0..tokens.len())?;
        self.model.close(sequence);
        Ok(History { tokens, block })
    }

    fn decode(&mut self, batch: usize, history: &History, generate: usize) -> Result<Decode, model::Error> {
        self.steps.doing(format!("decode of {batch}"));
        let tokens = tokens(self.model, SEED, batch * generate);
        let mut seconds = Vec::new();
        for run in 0..=self.repeat {
            let sequences: Vec<_> = (0..batch).map(|_| self.model.open()).collect();
            for &sequence in &sequences {
                if !history.tokens.is_empty() {
                    self.model.import(sequence, &history.tokens, &history.block)?;
                }
            }
            let count = if run == 0 { WARM_UP_STEPS.min(generate) } else { generate };
            let started = Instant::now();
            for row in tokens.chunks(batch).take(count) {
                let step = |(&sequence, token)| Step { sequence, tokens: std::slice::from_ref(token), logits: 1 };
                let steps: Vec<_> = sequences.iter().zip(row).map(step).collect();
                self.model.forward(&steps)?;
            }
            if run > 0 {
                seconds.push(started.elapsed().as_secs_f64());
            }
            sequences.into_iter().for_each(|sequence| self.model.close(sequence));
            self.steps.done();
        }
        let speed = Speed::of(batch * generate, seconds);
        Ok(Decode { batch, speed, step_ms: batch as f64 / speed.tok_s * 1e3 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speeds_are_the_median_and_the_bounds() {
        let speed = Speed::of(12, vec![3.0, 1.0, 4.0, 2.0]);
        assert_eq!(speed, Speed { tok_s: 12.0 / 2.5, min_tok_s: 3.0, max_tok_s: 12.0 });
        assert_eq!(Speed::of(12, vec![6.0, 3.0, 4.0]).tok_s, 3.0);
        assert_eq!(Speed::of(12, vec![6.0]).tok_s, 2.0);
    }

    #[test]
    fn the_memory_of_this_process_is_known() {
        let memory = Memory::now().expect("this system has /proc");
        assert!(memory.resident > 0.5 && memory.peak >= memory.resident / 2.0);
        assert!(Cpu::of_this_machine().cores >= 1);
    }
}
