//! What the way of a job costs besides computing: a real broker and real workers, the sim engine in no time.

use std::{collections::HashMap, num::NonZeroUsize};

use baton_bus::{Bus, clients::follower::Results};
use baton_contract::{
    JobId, Name,
    outcome::{Outcome, Status},
    request::{Prompt, Request},
};
use baton_load::Summary;
use baton_topology::Plan;
use futures::{StreamExt, stream::FuturesUnordered};
use serde::Serialize;
use tokio::time::Instant;

use crate::{
    error::Error,
    machine::Cpu,
    pipeline::{self, Pipeline},
    processes::Process,
    progress::Steps,
};

/// Jobs that go before the clock starts, besides those that are under way at once.
const WARM_UP: usize = 100;
/// Slots of a worker, at least.
const SLOTS: usize = 64;
/// Bytes that all KV caches of a worker may take.
const KV_MEMORY: &str = "1GiB";
/// The prompts' tokens are letters.
const LETTERS: usize = 26;

/// What is measured.
#[derive(Clone, Debug)]
pub struct Options {
    /// Jobs that are measured.
    pub jobs: NonZeroUsize,
    /// Jobs under way at a time.
    pub concurrency: NonZeroUsize,
    /// Tokens of each answer.
    pub tokens: u32,
    /// Tokens of each prompt; without `blobs` a multiple of 16.
    pub prompt: u32,
    /// When the broker flushes messages to the disk.
    pub sync: Sync,
    /// Whether each job puts a KV chunk and gets it; else all share one.
    pub blobs: bool,
    /// Worker processes of each stage.
    pub workers_per_stage: NonZeroUsize,
    /// Which log lines the workers write, into a file.
    pub log: String,
}

/// When the broker flushes messages to the disk itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Sync {
    /// Every ten seconds.
    Default,
    /// Each before it is acknowledged.
    Always,
}

/// What was found.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Jobs that were measured.
    pub jobs: usize,
    /// Jobs under way at a time.
    pub concurrency: usize,
    /// Tokens of each answer.
    pub tokens: u32,
    /// Tokens of each prompt.
    pub prompt_tokens: u32,
    /// When the broker flushed messages.
    pub sync: Sync,
    /// Whether each job had a KV chunk.
    pub blobs: bool,
    /// Worker processes of each stage.
    pub workers_per_stage: usize,
    /// This machine's processor.
    pub cpu: Cpu,
    /// Jobs a second.
    pub jobs_s: f64,
    /// The median of the jobs' times, in milliseconds.
    pub p50_ms: f64,
    /// The 99th percentile.
    pub p99_ms: f64,
    /// Processor time of all processes together, in milliseconds a job.
    pub cpu_ms_per_job: f64,
    /// Bytes of KV chunks that a job put, packed.
    pub kv_bytes_per_job: f64,
    /// Prompt tokens of all jobs together that decode had to compute again.
    pub recomputed_tokens: u64,
    /// By process.
    pub processes: Vec<Share>,
}

/// What one process took.
#[derive(Clone, Debug, Serialize)]
pub struct Share {
    /// The process's name.
    pub process: String,
    /// Its processor time, in milliseconds a job.
    pub cpu_ms_per_job: f64,
    /// Its memory at the end, in MiB.
    pub rss_mib: f64,
}

/// Starts a pipeline, measures it, and removes it; if that fails, its directory stays for the log in it.
///
/// # Errors
///
/// If the pipeline can't be started, or a job does not complete.
pub async fn measure(options: &Options, steps: &mut Steps) -> Result<Report, Error> {
    let own = pipeline::Options { what: "benchmark", folder: "bench", sync_always: options.sync == Sync::Always };
    pipeline::with(plan(options)?, own, async |pipeline| jobs(pipeline, options, steps).await).await
}

/// A pipeline for the purpose; what is not said here is as in any other.
///
/// # Errors
///
/// If the prompt fills no chunk where all jobs share one, or a setting is refused.
pub fn plan(options: &Options) -> Result<Plan, Error> {
    let Options { prompt, blobs, workers_per_stage: workers, concurrency, log, .. } = options;
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
    if !blobs {
        if !prompt.is_multiple_of(16) {
            return Err(Error::PartOfAChunk { prompt: *prompt });
        }
        settings.push(format!("store.chunk_tokens={prompt}"));
        settings.extend(
            ["store.cache_memory=16MiB", "models.sim.sim.layers=1", "models.sim.sim.kv_width=2"].map(Into::into),
        );
    }
    Ok(Plan::load(None, [], &settings)?)
}

async fn jobs(pipeline: &mut Pipeline, options: &Options, steps: &mut Steps) -> Result<Report, Error> {
    let (jobs, concurrency) = (options.jobs.get(), options.concurrency.get());
    let warm_up = WARM_UP.min(jobs) + concurrency;
    steps.total(warm_up + jobs);
    steps.doing("starting");
    pipeline.ready().await?;
    let plan = pipeline.plan();
    let (tenant, lane) = (Name::new("bench")?, plan.lanes[0].clone());
    let bus = pipeline::connect(plan, "baton-bench").await?;
    let results = bus.results(&tenant).await?;
    let mut load = Load { bus, results, tenant, lane, options, sent: 0, steps };

    load.steps.doing("warming up");
    load.run(warm_up).await?;
    let processes = Process::all();
    let cpu = || -> Vec<f64> { processes.iter().map(|process| process.cpu_seconds().unwrap_or(0.0)).collect() };
    let before = cpu();
    load.steps.doing("measuring");
    let Run { seconds, latencies_ms, stored_bytes, recomputed_tokens } = load.run(jobs).await?;
    let after = cpu();

    let latency = Summary::of(latencies_ms).ok_or(Error::NoJobs)?;
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
        tokens: options.tokens,
        prompt_tokens: options.prompt,
        sync: options.sync,
        blobs: options.blobs,
        workers_per_stage: options.workers_per_stage.get(),
        cpu: Cpu::of_this_machine(),
        jobs_s: jobs as f64 / seconds,
        p50_ms: latency.p50,
        p99_ms: latency.p99,
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
    options: &'a Options,
    /// Jobs so far, warm-up and all.
    sent: usize,
    steps: &'a mut Steps,
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
    async fn run(&mut self, jobs: usize) -> Result<Run, Error> {
        let (end, concurrency) = (self.sent + jobs, self.options.concurrency.get());
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
                    self.steps.done();
                }
                Some(submitted) = submissions.next() => submitted?,
            }
        }
        run.seconds = started.elapsed().as_secs_f64();
        Ok(run)
    }

    fn submission(&self, body: Vec<u8>) -> impl Future<Output = Result<(), Error>> + use<> {
        let (bus, tenant, lane) = (self.bus.clone(), self.tenant.clone(), self.lane.clone());
        async move {
            bus.submit(&tenant, &lane, body).await?;
            Ok(())
        }
    }

    /// The next request: a prompt of letters, another for each job unless they are to share one.
    fn request(&mut self) -> Result<(JobId, Vec<u8>), Error> {
        let number = self.sent;
        self.sent += 1;
        let id = JobId::new(&format!("bench-{number}"))?;
        // The first letters count the jobs, so that no two prompts begin alike.
        let mut rest = if self.options.blobs { number } else { 0 };
        let prompt = (0..self.options.prompt).map(|_| {
            let letter = rest % LETTERS;
            rest /= LETTERS;
            u32::from(b'a') + letter as u32
        });
        let request = Request {
            id: Some(id.to_string()),
            prompt: Some(Prompt::Tokens(prompt.collect())),
            max_tokens: Some(self.options.tokens),
            ..Request::default()
        };
        Ok((id, serde_json::to_vec(&request)?))
    }
}

impl Run {
    fn note(&mut self, outcome: &Outcome, began: Instant) -> Result<(), Error> {
        if outcome.status != Status::Completed {
            return Err(Error::job(outcome));
        }
        self.latencies_ms.push(began.elapsed().as_secs_f64() * 1e3);
        self.stored_bytes += outcome.timings.kv_stored_bytes;
        self.recomputed_tokens += u64::from(outcome.timings.recomputed_tokens);
        Ok(())
    }
}
