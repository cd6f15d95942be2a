//! `baton bench bus`: what the way of a job costs besides computing: a real broker and real workers, the sim engine in no
//! time.

use std::{
    io::{self, Write as _},
    num::NonZeroUsize,
};

use baton_assembly::telemetry;
use baton_measure::bench::bus::{self, Options, Report};
use baton_terminal::table;
use clap::ValueEnum;

use crate::{measuring, output::stdout};

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  baton bench bus --jobs 20000 --concurrency 64 --no-blobs
  baton bench bus --jobs 500 --concurrency 1 --json
  baton bench bus --sync always --workers-per-stage 2

Starts a nats-server, an object store and workers as `baton up` does, with a model that computes nothing and whose KV \
cache has the size of SmolLM2-135M's (1.4 MiB for 64 tokens), and submits jobs as any client would: a job is under way from \
before its request is published until its result has come. Every job passes all three stages. A job's latency is that time; \
processor time is what the kernel counts for broker, workers and this client, by job; memory is what is resident at the end.

By default each prompt is another, so that each job puts its own KV cache into the store and gets it from there. With \
--no-blobs all jobs have one prompt, whose one chunk (of one layer, two values wide) is put by the first job of the warm-up \
and is in the workers' memory from then on: prefill and decode do all they otherwise do, but no object is put or read.")]
pub struct Arguments {
    /// Jobs that are measured
    #[arg(long, value_name = "N", default_value = "10000")]
    jobs: NonZeroUsize,
    /// Jobs under way at a time
    #[arg(long, value_name = "N", default_value = "64")]
    concurrency: NonZeroUsize,
    /// Tokens of each answer
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=4096))]
    tokens: u32,
    /// Tokens of each prompt; with --no-blobs a multiple of 16
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=4096))]
    prompt: u32,
    /// When the broker flushes messages to the disk itself: every ten seconds, or each before it is acknowledged
    #[arg(long, value_name = "WHEN", default_value = "default")]
    sync: Sync,
    /// Let all jobs share one KV chunk, so that none is put or read
    #[arg(long)]
    no_blobs: bool,
    /// Worker processes of each stage
    #[arg(long, value_name = "N", default_value = "1")]
    workers_per_stage: NonZeroUsize,
    /// Which log lines the workers write, into a file
    #[arg(long, value_name = "FILTER", default_value = "info")]
    log: String,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Sync {
    Default,
    Always,
}

impl From<Sync> for bus::Sync {
    fn from(sync: Sync) -> Self {
        match sync {
            Sync::Default => Self::Default,
            Sync::Always => Self::Always,
        }
    }
}

pub async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let options = Options {
        jobs: arguments.jobs,
        concurrency: arguments.concurrency,
        tokens: arguments.tokens,
        prompt: arguments.prompt,
        sync: arguments.sync.into(),
        blobs: !arguments.no_blobs,
        workers_per_stage: arguments.workers_per_stage,
        log: arguments.log,
    };
    let telemetry = telemetry::start_quiet(&bus::plan(&options)?.telemetry, "baton-bench", "bench")?;
    let (bar, mut steps) = measuring::bar("{bar:30} {pos}/{len} jobs  {msg}  {per_sec}  {eta} left");
    let measured = bus::measure(&options, &mut steps).await;
    bar.finish_and_clear();
    telemetry.shutdown().await;
    let report = measured?;
    if arguments.json {
        writeln!(stdout(), "{}", serde_json::to_string(&report)?)?;
    } else {
        print(&report)?;
    }
    Ok(())
}

fn print(report: &Report) -> io::Result<()> {
    let mut out = stdout();
    let Report { jobs, concurrency, tokens, prompt_tokens, workers_per_stage, .. } = report;
    let flushed = match report.sync {
        bus::Sync::Default => "flushed every 10 s",
        bus::Sync::Always => "each flushed",
    };
    let blobs = if report.blobs { "a KV cache each" } else { "one KV cache for all" };
    writeln!(
        out,
        "{jobs} jobs, {concurrency} at a time; prompts of {prompt_tokens} tokens, answers of {tokens}; {blobs}"
    )?;
    writeln!(out, "{workers_per_stage} worker(s) a stage; messages {flushed}\n")?;
    writeln!(out, "jobs a second    {:.0}", report.jobs_s)?;
    writeln!(out, "latency          p50 {:.2} ms, p99 {:.2} ms", report.p50_ms, report.p99_ms)?;
    writeln!(out, "KV stored        {} a job\n", table::bytes(report.kv_bytes_per_job as u64))?;
    let share = |name: &str, cpu: f64, rss: f64| vec![name.to_owned(), format!("{cpu:.3}"), format!("{rss:.0}")];
    let mut rows: Vec<_> =
        report.processes.iter().map(|it| share(&it.process, it.cpu_ms_per_job, it.rss_mib)).collect();
    let rss = report.processes.iter().map(|it| it.rss_mib).sum();
    rows.push(share("together", report.cpu_ms_per_job, rss));
    write!(out, "{}", table::render(&["process", "CPU ms a job", "MiB"], &rows))?;
    Ok(())
}
