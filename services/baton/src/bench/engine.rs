//! `baton bench engine`: prefill, decode, loading and memory of the engine, without broker, store or sampling.

use std::{
    io::{self, Write as _},
    num::NonZeroUsize,
    path::Path,
};

use anyhow::ensure;
use baton_contract::kv::{self, Block};
use baton_engine::{
    ComputeThreads,
    model::{self, Compute, Model, SequenceId, Spec, Step},
    source::Source,
};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use tokio::{task::spawn_blocking, time::Instant};

use super::{
    machine::{Cpu, Memory},
    runs::Runs,
};
use crate::{local::EngineArguments, output::stdout, table};

/// Steps that decode takes before those that count.
const WARM_UP_STEPS: usize = 8;

/// A sequence's last page may be filled in part: so many tokens are more than any engine's page has.
const PAGE_BOUND: usize = 256;

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  baton bench engine
  baton bench engine --model model.gguf --threads 2 --prefill 512,4096 --generate 64 --batch 1,8,32 --json
  baton bench engine --compute exact --batch 1 --repeat 3

Token ids are random, the same in every run. Every measure is taken once to warm up and then --repeat times; shown are \
the median, and the slowest and fastest as min and max. Prefill computes a prompt in passes of --pass \
tokens, with the logits of its last token. Decode lets --batch sequences with a history of --context tokens step together, \
--generate times, with logits for each. Choosing the token (sampling) is not part of any figure.

Loading runs from opening the file until the first prompt could start; resident memory is taken right after it, when no \
KV cache exists yet.")]
pub struct Arguments {
    #[command(flatten)]
    engine: EngineArguments,
    /// How to compute: fast (on quantized weights and activations) or exact (in f32 on de-quantized weights)
    #[arg(long, value_name = "MODE", default_value = "fast")]
    compute: Compute,
    /// Lengths of the prompts whose prefill is measured
    #[arg(long, value_name = "TOKENS", value_delimiter = ',', default_value = "512")]
    prefill: Vec<NonZeroUsize>,
    /// Tokens that prefill computes at a time, a worker's stages.prefill.batch_tokens
    #[arg(long, value_name = "TOKENS", default_value = "512")]
    pass: NonZeroUsize,
    /// Numbers of sequences that generate together, each up to 1024
    #[arg(long, value_name = "SEQUENCES", value_delimiter = ',', default_value = "1,8,32",
        value_parser = clap::value_parser!(u16).range(1..=1024))]
    batch: Vec<u16>,
    /// Tokens that each of them generates
    #[arg(long, value_name = "TOKENS", default_value = "64")]
    generate: NonZeroUsize,
    /// Tokens of each of them before the first generated one
    #[arg(long, value_name = "TOKENS", default_value_t = 256)]
    context: usize,
    /// How often every measure is taken
    #[arg(long, value_name = "TIMES", default_value = "5")]
    repeat: NonZeroUsize,
    /// Print the figures as one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report {
    /// The model as it was named, and as its file does.
    model: String,
    name: String,
    compute: &'static str,
    device: String,
    threads: usize,
    cpu: Cpu,
    repeat: usize,
    /// Size of the model's file, where it is one file.
    file_mib: Option<f64>,
    /// Seconds from opening the file until the first prompt could start.
    load_s: f64,
    /// Resident after loading; the most that was resident until then, and until the end. Nothing on systems without /proc.
    rss_mib: Option<f64>,
    load_peak_rss_mib: Option<f64>,
    peak_rss_mib: Option<f64>,
    /// The first of `prefill`.
    prefill_tokens: usize,
    prefill_tok_s: f64,
    pass_tokens: usize,
    prefill: Vec<Prefill>,
    context_tokens: usize,
    generate_tokens: usize,
    decode: Vec<Decode>,
}

#[derive(Serialize)]
struct Prefill {
    tokens: usize,
    #[serde(flatten)]
    speed: Speed,
}

#[derive(Serialize)]
struct Decode {
    batch: usize,
    #[serde(flatten)]
    speed: Speed,
    /// Milliseconds that a step of the whole batch takes.
    step_ms: f64,
}

/// Tokens a second in several runs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
struct Speed {
    /// The median.
    tok_s: f64,
    min_tok_s: f64,
    max_tok_s: f64,
}

impl Speed {
    /// Of runs that computed `tokens` tokens each; `seconds` holds at least one.
    fn of(tokens: usize, seconds: Vec<f64>) -> Speed {
        let Runs { median, least, most } = Runs::of(seconds);
        let tok_s = |seconds: f64| tokens as f64 / seconds;
        Speed { tok_s: tok_s(median), min_tok_s: tok_s(most), max_tok_s: tok_s(least) }
    }
}

pub async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let source = arguments.engine.source().await?;
    let json = arguments.json;
    // As the engine of a worker with one model.
    let measuring = move || ComputeThreads::of_one_in(1)?.run(|| measure(&arguments, &source));
    let report = spawn_blocking(measuring).await??;
    if json {
        writeln!(stdout(), "{}", serde_json::to_string(&report)?)?;
    } else {
        print(&report)?;
    }
    Ok(())
}

fn measure(arguments: &Arguments, source: &Source) -> anyhow::Result<Report> {
    let Arguments { engine, compute, .. } = arguments;
    let lengths: Vec<usize> = arguments.prefill.iter().map(|length| length.get()).collect();
    let batches: Vec<usize> = arguments.batch.iter().map(|&batch| batch.into()).collect();
    let (generate, context, repeat) = (arguments.generate.get(), arguments.context, arguments.repeat.get());

    let bar = ProgressBar::new(((repeat + 1) * (lengths.len() + batches.len()) + 1) as u64);
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {msg}  {elapsed}") {
        bar.set_style(style);
    }
    bar.set_message("loading");
    let started = Instant::now();
    let spec = engine.vocabulary(source)?.spec().clone();
    fits(&spec, &lengths, "--prefill")?;
    fits(&spec, &[context.saturating_add(generate)], "--context and --generate together")?;
    let kv_bytes = kv_bytes(&spec.kv, &lengths, &batches, context + generate);
    let mut model = engine.load(source, model::Options { compute: *compute, kv_bytes, ..model::Options::default() })?;
    let load_s = started.elapsed().as_secs_f64();
    let loaded = Memory::now();
    bar.inc(1);

    let mut bench = Bench { model: model.as_mut(), pass: arguments.pass.get(), repeat, bar };
    let prefill = lengths.iter().map(|&tokens| bench.prefill(tokens)).collect::<Result<Vec<_>, _>>()?;
    let history = bench.history(context)?;
    let decode = batches.iter().map(|&batch| bench.decode(batch, &history, generate));
    let decode = decode.collect::<Result<Vec<_>, _>>()?;
    bench.bar.finish_and_clear();

    let cpu = Cpu::of_this_machine();
    Ok(Report {
        model: engine.model.clone(),
        name: spec.name,
        compute: name_of(*compute),
        device: engine.device.clone(),
        threads: if engine.threads == 0 { cpu.cores } else { engine.threads },
        cpu,
        repeat,
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
        pass_tokens: arguments.pass.get(),
        prefill,
        context_tokens: context,
        generate_tokens: generate,
        decode,
    })
}

/// As `--compute` takes it.
pub fn name_of(compute: Compute) -> &'static str {
    match compute {
        Compute::Exact => "exact",
        Compute::Fast => "fast",
    }
}

/// Refuses lengths of sequences that the model can't have.
pub(super) fn fits(spec: &Spec, lengths: &[usize], option: &str) -> anyhow::Result<()> {
    for &length in lengths {
        let context = spec.context;
        ensure!(length <= context, "{option}: the model's context is {context} tokens, found {length}; ask for fewer");
    }
    Ok(())
}

/// Memory for the KV caches of the greediest measure: one of prompts of these lengths, or of so many sequences of a length.
pub(super) fn kv_bytes(shape: &kv::Shape, lengths: &[usize], batches: &[usize], sequence: usize) -> u64 {
    let prefill = lengths.iter().copied().max().unwrap_or(0).next_multiple_of(PAGE_BOUND);
    let decode = batches.iter().copied().max().unwrap_or(0).saturating_mul(sequence.next_multiple_of(PAGE_BOUND));
    let bf16 = (shape.layers * shape.layer_values(1) * 2) as u64;
    // Fast mode keeps quantized copies besides, of about half the size; of up to 1.2 times where heads are tiny.
    (prefill.max(decode) as u64).saturating_mul(bf16).saturating_mul(5) / 2
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
    bar: ProgressBar,
}

impl Bench<'_> {
    /// As many token ids as asked for, the same at every call.
    fn tokens(&self, count: usize) -> Vec<u32> {
        let vocabulary = self.model.spec().vocabulary as u64;
        // Knuth's linear congruential generator; its high bits are the good ones.
        let mut state = 1u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((state >> 33) % vocabulary) as u32
        };
        (0..count).map(|_| next()).collect()
    }

    /// Computes a prompt as prefill does.
    fn compute(&mut self, sequence: SequenceId, prompt: &[u32]) -> Result<(), model::Error> {
        let passes = prompt.len().div_ceil(self.pass);
        for (index, tokens) in prompt.chunks(self.pass).enumerate() {
            let logits = usize::from(index + 1 == passes);
            self.model.forward(&[Step { sequence, tokens, logits }])?;
        }
        Ok(())
    }

    fn prefill(&mut self, tokens: usize) -> Result<Prefill, model::Error> {
        self.bar.set_message(format!("prefill of {tokens} tokens"));
        let prompt = self.tokens(tokens);
        let mut seconds = Vec::new();
        for run in 0..=self.repeat {
            let sequence = self.model.open();
            let started = Instant::now();
            self.compute(sequence, &prompt)?;
            if run > 0 {
                seconds.push(started.elapsed().as_secs_f64());
            }
            self.model.close(sequence);
            self.bar.inc(1);
        }
        Ok(Prefill { tokens, speed: Speed::of(tokens, seconds) })
    }

    /// What every sequence of decode begins with: computed once, since only its length matters to the time of a step.
    fn history(&mut self, tokens: usize) -> Result<History, model::Error> {
        let tokens = self.tokens(tokens);
        let sequence = self.model.open();
        self.compute(sequence, &tokens)?;
        let block = self.model.export(sequence, 0..tokens.len())?;
        self.model.close(sequence);
        Ok(History { tokens, block })
    }

    fn decode(&mut self, batch: usize, history: &History, generate: usize) -> Result<Decode, model::Error> {
        self.bar.set_message(format!("decode of {batch}"));
        let tokens = self.tokens(batch * generate);
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
            self.bar.inc(1);
        }
        let speed = Speed::of(batch * generate, seconds);
        Ok(Decode { batch, speed, step_ms: batch as f64 / speed.tok_s * 1e3 })
    }
}

fn print(report: &Report) -> io::Result<()> {
    let mut out = stdout();
    let Report { name, compute, device, threads, cpu, .. } = report;
    let mib = |mib: Option<f64>| mib.map_or_else(|| "unknown".to_owned(), |mib| format!("{mib:.0} MiB"));
    writeln!(out, "{name} ({}), {compute} on {device}, {threads} threads", report.model)?;
    writeln!(out, "{}: {}", cpu.name.as_deref().unwrap_or("unknown processor"), cpu.features.join(" "))?;
    let of_file = report.file_mib.map_or_else(String::new, |size| format!(" from a file of {size:.0} MiB"));
    writeln!(out, "loaded in {:.2} s{of_file}", report.load_s)?;
    let (peak, end) = (mib(report.load_peak_rss_mib), mib(report.peak_rss_mib));
    writeln!(out, "resident {} after loading, at most {peak} while loading, {end} in all\n", mib(report.rss_mib))?;

    let row = |measure: String, speed: Speed, step_ms: Option<f64>| {
        let number = |number: f64| format!("{number:.1}");
        let step = step_ms.map_or_else(String::new, |ms| format!("{ms:.2}"));
        vec![measure, number(speed.tok_s), number(speed.min_tok_s), number(speed.max_tok_s), step]
    };
    let prefill = report.prefill.iter().map(|it| row(format!("prefill of {} tokens", it.tokens), it.speed, None));
    let decode = report.decode.iter().map(|it| {
        let measure = format!("decode, {} at {} tokens", it.batch, report.context_tokens);
        row(measure, it.speed, Some(it.step_ms))
    });
    let rows: Vec<_> = prefill.chain(decode).collect();
    write!(out, "{}", table::render(&["measure", "tokens/s", "min", "max", "ms a step"], &rows))?;
    writeln!(out, "\nmedian of {} runs; sampling is not part of it", report.repeat)?;
    Ok(())
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
