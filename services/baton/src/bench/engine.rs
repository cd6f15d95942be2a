//! `baton bench engine`: prefill, decode, loading and memory of the engine, without broker, store or sampling.

use std::{
    io::{self, Write as _},
    num::NonZeroUsize,
};

use baton_measure::bench::engine::{self, Options, Report, Speed};
use baton_model::{model::Compute, threads::ComputeThreads};
use baton_terminal::table;
use tokio::task::spawn_blocking;

use crate::{local::EngineArguments, measuring, output::stdout};

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

pub async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let source = arguments.engine.source().await?;
    let options = Options {
        engine: arguments.engine.engine(),
        compute: arguments.compute,
        prefill: arguments.prefill.into_iter().map(Into::into).collect(),
        pass: arguments.pass.into(),
        batch: arguments.batch.into_iter().map(Into::into).collect(),
        generate: arguments.generate.into(),
        context: arguments.context,
        repeat: arguments.repeat.into(),
    };
    let (bar, mut steps) = measuring::bar("{bar:30} {msg}  {elapsed}");
    // As the engine of a worker with one model.
    let measure =
        move || anyhow::Ok(ComputeThreads::of_one_in(1)?.run(|| engine::measure(&options, &source, &mut steps))?);
    let report = spawn_blocking(measure).await??;
    bar.finish_and_clear();
    if arguments.json {
        writeln!(stdout(), "{}", serde_json::to_string(&report)?)?;
    } else {
        print(&report)?;
    }
    Ok(())
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
