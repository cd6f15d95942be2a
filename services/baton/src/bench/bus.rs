//! `baton bench bus`: what the way of a job costs besides computing: a real broker and real workers, the sim engine in no
//! time.

use std::{
    collections::HashMap,
    fs,
    io::{self, IsTerminal, Write as _},
    num::NonZeroUsize,
};

use anyhow::{Context, ensure};
use baton_assembly::{bus, pipeline::Pipeline, signals, telemetry};
use baton_bus::{Bus, clients::follower::Results};
use baton_contract::{
    JobId, Name,
    outcome::{Outcome, Status},
    request::{Prompt, Request},
};
use baton_provision::{
    home::{self, PipelineHome},
    processes::Logs,
};
use baton_topology::Plan;
use clap::ValueEnum;
use futures::{StreamExt, stream::FuturesUnordered};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use tokio::time::Instant;

use super::{machine::Cpu, processes::Process};
use crate::{output::stdout, table};

/// Jobs that go before the clock starts, besides those that are under way at once.
const WARM_UP: usize = 100;
/// Slots of a worker, at least.
const SLOTS: usize = 64;
/// Bytes that all KV caches of a worker may take.
const KV_MEMORY: &str = "1GiB";
/// The prompts' tokens are letters.
const LETTERS: usize = 26;

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

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
enum Sync {
    Default,
    Always,
}

#[derive(Serialize)]
struct Report {
    jobs: usize,
    concurrency: usize,
    tokens: u32,
    prompt_tokens: u32,
    sync: Sync,
    blobs: bool,
    workers_per_stage: usize,
    cpu: Cpu,
    jobs_s: f64,
    p50_ms: f64,
    p99_ms: f64,
    /// Of all processes together.
    cpu_ms_per_job: f64,
    /// Bytes of KV chunks that a job put, packed.
    kv_bytes_per_job: f64,
    /// Prompt tokens of all jobs together that decode had to compute again.
    recomputed_tokens: u64,
    processes: Vec<Share>,
}

/// What one process took.
#[derive(Serialize)]
struct Share {
    process: String,
    cpu_ms_per_job: f64,
    rss_mib: f64,
}

pub async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let plan = plan(&arguments)?;
    let telemetry = telemetry::start_quiet(&plan.telemetry, "baton-bench", "bench")?;
    let directory = home::home()?.join("bench").join(std::process::id().to_string());
    // What a killed run of the same process id may have left.
    let _ = fs::remove_dir_all(&directory);
    fs::create_dir_all(&directory).with_context(|| format!("cannot create {}", directory.display()))?;
    let (home, log) = (PipelineHome { directory: directory.clone() }, directory.join("workers.log"));

    let always = arguments.sync == Sync::Always;
    let mut pipeline = Pipeline::start_with(plan, home, Logs::File(log.clone()), always).await?;
    let measured = tokio::select! {
        measured = measure(&mut pipeline, &arguments) => measured,
        stopped = signals::asked_to_stop() => stopped.map_err(anyhow::Error::from).and(Err(anyhow::anyhow!("stopped"))),
    };
    pipeline.stop().await?;
    telemetry.shutdown().await;
    let failed = || format!("the benchmark failed; the workers' log is {}", log.display());
    let report = measured.with_context(failed)?;
    fs::remove_dir_all(&directory).with_context(|| format!("cannot remove {}", directory.display()))?;
    if arguments.json {
        writeln!(stdout(), "{}", serde_json::to_string(&report)?)?;
    } else {
        print(&report)?;
    }
    Ok(())
}

/// A pipeline for the purpose; what is not said here is as in any other.
fn plan(arguments: &Arguments) -> anyhow::Result<Plan> {
    let Arguments { prompt, no_blobs, workers_per_stage: workers, concurrency, log, .. } = arguments;
    let slots = concurrency.get().div_ceil(workers.get()).max(SLOTS);
    let mut settings = vec![
        "root=bench".to_owned(),
        "models.sim.source=sim".to_owned(),
        "default_model=sim".to_owned(),
        format!("telemetry.log={log}"),
        "gateway.replicas=0".into(),
    ];
    for stage in ["ingest", "prefill", "decode"] {
        settings.push(format!("stages.{stage}.replicas={workers}"));
        settings.push(format!("stages.{stage}.slots={slots}"));
    }
    for stage in ["prefill", "decode"] {
        settings.push(format!("stages.{stage}.threads=1"));
        settings.push(format!("stages.{stage}.kv_memory={KV_MEMORY}"));
    }
    if *no_blobs {
        ensure!(
            prompt.is_multiple_of(16),
            "--no-blobs needs a prompt that fills a chunk: expected --prompt in multiples of 16, found {prompt}"
        );
        settings.push(format!("store.chunk_tokens={prompt}"));
        settings.extend(
            ["store.cache_memory=16MiB", "models.sim.sim.layers=1", "models.sim.sim.kv_width=2"].map(Into::into),
        );
    }
    Ok(Plan::load(None, [], &settings)?)
}

async fn measure(pipeline: &mut Pipeline, arguments: &Arguments) -> anyhow::Result<Report> {
    let (jobs, concurrency) = (arguments.jobs.get(), arguments.concurrency.get());
    let warm_up = WARM_UP.min(jobs) + concurrency;
    let bar = progress(warm_up + jobs);
    bar.set_message("starting");
    pipeline.ready().await?;
    let plan = pipeline.plan();
    let (tenant, lane) = (Name::new("bench")?, plan.lanes[0].clone());
    let bus = bus::connect(plan, "baton-bench").await?;
    let results = bus.results(&tenant).await?;
    let mut load = Load { bus, results, tenant, lane, arguments, sent: 0, bar };

    load.bar.set_message("warming up");
    load.run(warm_up).await?;
    let processes = Process::all();
    let cpu = || -> Vec<f64> { processes.iter().map(|process| process.cpu_seconds().unwrap_or(0.0)).collect() };
    let before = cpu();
    load.bar.set_message("measuring");
    let Run { seconds, mut latencies_ms, stored_bytes, recomputed_tokens } = load.run(jobs).await?;
    let after = cpu();
    load.bar.finish_and_clear();

    latencies_ms.sort_by(f64::total_cmp);
    let percentile = |percent: usize| latencies_ms[(jobs * percent).div_ceil(100) - 1];
    let shares: Vec<Share> = processes
        .iter()
        .zip(before.iter().zip(&after))
        .map(|(process, (before, after))| Share {
            process: process.name.clone(),
            cpu_ms_per_job: (after - before) * 1e3 / jobs as f64,
            rss_mib: process.resident_mib().unwrap_or(0.0),
        })
        .collect();
    Ok(Report {
        jobs,
        concurrency,
        tokens: arguments.tokens,
        prompt_tokens: arguments.prompt,
        sync: arguments.sync,
        blobs: !arguments.no_blobs,
        workers_per_stage: arguments.workers_per_stage.get(),
        cpu: Cpu::of_this_machine(),
        jobs_s: jobs as f64 / seconds,
        p50_ms: percentile(50),
        p99_ms: percentile(99),
        cpu_ms_per_job: shares.iter().map(|share| share.cpu_ms_per_job).sum(),
        kv_bytes_per_job: stored_bytes as f64 / jobs as f64,
        recomputed_tokens,
        processes: shares,
    })
}

/// Submits jobs, and follows them by the stream of results.
struct Load<'a> {
    bus: Bus,
    results: Results,
    tenant: Name,
    lane: Name,
    arguments: &'a Arguments,
    /// Jobs so far, warm-up and all.
    sent: usize,
    bar: ProgressBar,
}

/// What some jobs came to.
struct Run {
    seconds: f64,
    latencies_ms: Vec<f64>,
    stored_bytes: u64,
    recomputed_tokens: u64,
}

impl Load<'_> {
    /// Submits so many jobs, as many at a time as asked for, and waits for all of their results.
    async fn run(&mut self, jobs: usize) -> anyhow::Result<Run> {
        let (end, concurrency) = (self.sent + jobs, self.arguments.concurrency.get());
        let started = Instant::now();
        let mut run =
            Run { seconds: 0.0, latencies_ms: Vec::with_capacity(jobs), stored_bytes: 0, recomputed_tokens: 0 };
        let mut open: HashMap<JobId, Instant> = HashMap::with_capacity(concurrency);
        let mut submissions = FuturesUnordered::new();
        while run.latencies_ms.len() < jobs {
            while self.sent < end && open.len() < concurrency {
                let (id, body) = self.request()?;
                open.insert(id, Instant::now());
                submissions.push(self.submission(body));
            }
            tokio::select! {
                outcome = self.results.next() => {
                    let outcome = outcome?;
                    let Some(began) = open.remove(&outcome.id) else { continue };
                    run.note(&outcome, began)?;
                    self.bar.inc(1);
                }
                Some(submitted) = submissions.next() => submitted?,
            }
        }
        run.seconds = started.elapsed().as_secs_f64();
        Ok(run)
    }

    fn submission(&self, body: Vec<u8>) -> impl Future<Output = anyhow::Result<()>> + use<> {
        let (bus, tenant, lane) = (self.bus.clone(), self.tenant.clone(), self.lane.clone());
        async move {
            bus.submit(&tenant, &lane, body).await?;
            Ok(())
        }
    }

    /// The next request: a prompt of letters, another for each job unless they are to share one.
    fn request(&mut self) -> anyhow::Result<(JobId, Vec<u8>)> {
        let number = self.sent;
        self.sent += 1;
        let id = JobId::new(&format!("bench-{number}"))?;
        // The first letters count the jobs, so that no two prompts begin alike.
        let mut rest = if self.arguments.no_blobs { 0 } else { number };
        let prompt = (0..self.arguments.prompt).map(|_| {
            let letter = rest % LETTERS;
            rest /= LETTERS;
            u32::from(b'a') + letter as u32
        });
        let request = Request {
            id: Some(id.to_string()),
            prompt: Some(Prompt::Tokens(prompt.collect())),
            max_tokens: Some(self.arguments.tokens),
            ..Request::default()
        };
        Ok((id, serde_json::to_vec(&request)?))
    }
}

impl Run {
    fn note(&mut self, outcome: &Outcome, began: Instant) -> anyhow::Result<()> {
        let error = outcome.error.as_ref().map_or("", |error| error.message.as_str());
        ensure!(outcome.status == Status::Completed, "job {} {:?}: {error}", outcome.id, outcome.status);
        self.latencies_ms.push(began.elapsed().as_secs_f64() * 1e3);
        self.stored_bytes += outcome.timings.kv_stored_bytes;
        self.recomputed_tokens += u64::from(outcome.timings.recomputed_tokens);
        Ok(())
    }
}

fn progress(jobs: usize) -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len} jobs  {msg}  {per_sec}  {eta} left");
    ProgressBar::new(jobs as u64).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

fn print(report: &Report) -> io::Result<()> {
    let mut out = stdout();
    let Report { jobs, concurrency, tokens, prompt_tokens, workers_per_stage, .. } = report;
    let flushed = match report.sync {
        Sync::Default => "flushed every 10 s",
        Sync::Always => "each flushed",
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
