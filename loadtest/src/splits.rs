//! Every split of some workers under each of the named loads: what is measured, and what `baton plan` predicts of the same
//! requests. (Of others of the same load it would not be comparable: the median TTFT of 500 requests that keep both pools full
//! varies by 9 % from seed to seed.)

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use baton_contract::{Name, causes};
use baton_load::{Options as Load, Target};
use baton_workload::Named;
use serde::{Deserialize, Serialize};
use tokio::process::Command;

use crate::pipeline::{self, Workers};

/// The pipeline that is run where no other is named.
const PIPELINE: &str = include_str!("../splits.toml");
/// The share of the best split's throughput that a recommended one is to have.
const SHARE: f64 = 0.95;
/// Requests of each load that a split is recommended by.
const RECOMMENDED_BY: usize = 5_000;

/// What to run.
#[derive(clap::Args, Clone, Debug, Serialize)]
pub struct Options {
    #[command(flatten)]
    #[serde(flatten)]
    pub workers: Workers,
    /// What the model costs, for the prediction: see `baton calibrate`; the sim engine needs none
    #[arg(long, value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub profile: Option<PathBuf>,
    /// This machine's cores, for the prediction: the workers share them with each other's threads, the broker and the client
    #[arg(long, value_name = "CORES", requires = "profile")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cores: Option<usize>,
    /// The loads: long, mixed, prompts
    #[arg(long = "workload", value_name = "NAMES", value_delimiter = ',', default_value = "long,mixed,prompts")]
    pub workloads: Vec<Named>,
    /// Makes every prompt and answer so many times as long
    #[arg(long, value_name = "F", default_value_t = 0.25)]
    pub length_scale: f64,
    /// Requests under way at a time
    #[arg(long, value_name = "N", default_value_t = 72)]
    pub concurrency: usize,
    /// Seconds of each load on each split
    #[arg(long = "duration", value_name = "S", default_value_t = 20.0)]
    pub duration_s: f64,
    /// Equal seeds give equal prompts
    #[arg(long, value_name = "S", default_value_t = 0)]
    pub seed: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Pipeline(#[from] pipeline::Error),
    #[error(transparent)]
    Run(#[from] baton_load::Error),
    #[error("cannot write the pipeline's file")]
    File(#[source] std::io::Error),
    #[error("cannot run {}; build baton first, or say where it is with --baton", program.display())]
    Start { program: PathBuf, source: std::io::Error },
    #[error("`baton plan` failed: {0}")]
    Plan(String),
}

/// What came of it.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub options: Options,
    pub loads: Vec<Judged>,
}

/// One load on all splits.
#[derive(Clone, Debug, Serialize)]
pub struct Judged {
    pub workload: Named,
    pub splits: Vec<Compared>,
    /// Prefill workers of the split that does most, and of the one that the plan recommends.
    pub best: u32,
    pub recommended: u32,
    /// Throughput of the recommended split by that of the best.
    pub share: f64,
}

/// One load on one split.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Compared {
    pub prefill: u32,
    pub decode: u32,
    /// Requests that were sent, the warm-up included.
    pub requests: usize,
    pub measured: Figures,
    pub predicted: Figures,
    /// Requests that failed or got no result.
    pub lost: usize,
}

/// Throughput in tokens a second; times in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Figures {
    pub output_throughput: f64,
    pub ttft_p50: f64,
    pub ttft_p99: f64,
    pub itl_p99: f64,
}

impl Figures {
    /// How far these are from what was measured, as shares of it.
    pub fn off(&self, measured: &Self) -> Self {
        let off = |found: f64, expected: f64| if expected > 0.0 { found / expected - 1.0 } else { 0.0 };
        Self {
            output_throughput: off(self.output_throughput, measured.output_throughput),
            ttft_p50: off(self.ttft_p50, measured.ttft_p50),
            ttft_p99: off(self.ttft_p99, measured.ttft_p99),
            itl_p99: off(self.itl_p99, measured.itl_p99),
        }
    }
}

impl Report {
    /// Whether nothing was lost, and each recommended split does about as much as the best.
    pub fn holds(&self) -> bool {
        let lost: usize = self.loads.iter().flat_map(|load| &load.splits).map(|split| split.lost).sum();
        lost == 0 && self.loads.iter().all(|load| load.share >= SHARE)
    }
}

/// What of a plan is compared.
#[derive(Deserialize)]
struct Plan {
    splits: Vec<Planned>,
    recommendation: Recommendation,
}

#[derive(Deserialize)]
struct Recommendation {
    split: Split,
}

#[derive(Deserialize)]
struct Planned {
    output_throughput: f64,
    ttft: Quantiles,
    itl: Quantiles,
}

#[derive(Deserialize)]
struct Split {
    prefill: u32,
}

#[derive(Deserialize)]
struct Quantiles {
    p50: f64,
    p99: f64,
}

impl Planned {
    fn figures(&self) -> Figures {
        Figures {
            output_throughput: self.output_throughput,
            ttft_p50: self.ttft.p50,
            ttft_p99: self.ttft.p99,
            itl_p99: self.itl.p99,
        }
    }
}

/// The requests of a closed loop: so many of what a seed draws.
#[derive(Clone, Copy)]
struct Requests {
    seed: u64,
    count: usize,
}

/// Has a split recommended for each load, then measures each split in turn and predicts what it did. `progress` hears what is
/// going on.
pub async fn run(options: &Options, mut progress: impl FnMut(String)) -> Result<Report, Error> {
    let directory = tempfile::tempdir().map_err(Error::File)?;
    let file = options.workers.file(directory.path(), PIPELINE).map_err(Error::File)?;
    let all = ["--workers".to_owned(), options.workers.count.to_string()];
    let mut recommended = Vec::new();
    for workload in &options.workloads {
        progress(format!("{workload} is planned"));
        let requests = Requests { seed: options.seed, count: RECOMMENDED_BY };
        recommended.push(plan(options, &file, *workload, requests, &all).await?.recommendation.split.prefill);
    }
    let mut compared = vec![Vec::new(); options.workloads.len()];
    for prefill in 1..options.workers.count {
        let decode = options.workers.count - prefill;
        let root = Name::new(&format!("splits-{}", std::process::id())).map_err(baton_load::Error::from)?;
        let started = options.workers.start(&file, root, prefill, false).await?;
        let target = Target::from(started.bus.clone());
        let mut done = Ok(());
        for (workload, compared) in options.workloads.iter().zip(&mut compared) {
            progress(format!("{prefill}:{decode}, {workload}"));
            match compare(options, &target, &file, *workload, (prefill, decode)).await {
                Ok(one) => compared.push(one),
                Err(error) => {
                    done = Err(error);
                    break;
                }
            }
        }
        started.stop().await;
        done?;
    }
    let judged = options.workloads.iter().zip(compared).zip(recommended);
    let loads = judged.map(|((workload, splits), recommended)| judge(*workload, splits, recommended)).collect();
    Ok(Report { options: options.clone(), loads })
}

/// Measures a load on a split that runs, and predicts it.
async fn compare(
    options: &Options,
    target: &Target,
    file: &Path,
    workload: Named,
    (prefill, decode): (u32, u32),
) -> Result<Compared, Error> {
    // No run meets the KV of another.
    let seed = options.seed.wrapping_mul(10_000).wrapping_add(100 * workload as u64 + u64::from(prefill));
    let (measured, requests, lost) = measure(options, target, workload, seed).await?;
    // Of fewer a plan knows no steady state.
    let count = requests.max(3 * options.concurrency);
    let split = ["--prefill-workers".into(), prefill.to_string(), "--decode-workers".into(), decode.to_string()];
    let planned = plan(options, file, workload, Requests { seed, count }, &split).await?;
    let predicted = planned.splits.first().map(Planned::figures);
    let predicted = predicted.ok_or_else(|| Error::Plan(format!("it has no split {prefill}:{decode}")))?;
    Ok(Compared { prefill, decode, requests, measured, predicted, lost })
}

fn judge(workload: Named, splits: Vec<Compared>, recommended: u32) -> Judged {
    let throughput = |split: &Compared| split.measured.output_throughput;
    let best = splits.iter().max_by(|a, b| throughput(a).total_cmp(&throughput(b)));
    let taken = splits.iter().find(|split| split.prefill == recommended);
    let share = taken.map_or(0.0, throughput) / best.map_or(0.0, throughput).max(f64::MIN_POSITIVE);
    let best = best.map_or(0, |split| split.prefill);
    Judged { workload, splits, best, recommended, share }
}

/// What `baton plan` says of some splits.
async fn plan(
    options: &Options,
    file: &Path,
    workload: Named,
    requests: Requests,
    splits: &[String],
) -> Result<Plan, Error> {
    let baton = options.workers.baton();
    let mut command = Command::new(&baton);
    command.arg("plan").arg("--json").arg("--pipeline").arg(file).args(splits);
    for (key, value) in [
        ("--workload", workload.to_string()),
        ("--length-scale", options.length_scale.to_string()),
        ("--concurrency", options.concurrency.to_string()),
        ("--num-prompts", requests.count.to_string()),
        ("--seed", requests.seed.to_string()),
    ] {
        command.arg(key).arg(value);
    }
    for setting in &options.workers.set {
        command.arg("--set").arg(setting);
    }
    if let Some(profile) = &options.profile {
        command.arg("--profile").arg(profile);
    }
    if let Some(cores) = options.cores {
        command.arg("--cores").arg(cores.to_string());
    }
    command.stdin(Stdio::null()).kill_on_drop(true);
    let planned = command.output().await.map_err(|source| Error::Start { program: baton, source })?;
    if !planned.status.success() {
        return Err(Error::Plan(String::from_utf8_lossy(&planned.stderr).trim().to_owned()));
    }
    serde_json::from_slice(&planned.stdout).map_err(|error| Error::Plan(causes(&error)))
}

/// Also the requests that were sent, and those that failed or got no result.
async fn measure(
    options: &Options,
    target: &Target,
    workload: Named,
    seed: u64,
) -> Result<(Figures, usize, usize), baton_load::Error> {
    let load = Load {
        workload: Some(workload),
        length_scale: options.length_scale,
        warmup: options.concurrency,
        seed,
        ..Load::closed_loop(options.concurrency, Duration::from_secs_f64(options.duration_s))?
    };
    let report = baton_load::run(target, &load, |_| {}).await?.report;
    let times = |summary: &Option<baton_load::Summary>| summary.as_ref().map_or((0.0, 0.0), |it| (it.p50, it.p99));
    let ((ttft_p50, ttft_p99), (_, itl_p99)) = (times(&report.ttft_ms), times(&report.itl_ms));
    let output_throughput = report.steady.map_or(report.output_throughput, |steady| steady.output_throughput);
    let figures = Figures { output_throughput, ttft_p50, ttft_p99, itl_p99 };
    Ok((figures, load.warmup + report.submitted, report.failed + report.lost))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_recommended_split_is_judged_by_what_it_does() {
        let split = |prefill, measured, predicted| {
            let figures = |output_throughput| Figures { output_throughput, ..Figures::default() };
            let (measured, predicted) = (figures(measured), figures(predicted));
            Compared { prefill, decode: 6 - prefill, requests: 100, measured, predicted, lost: 0 }
        };
        let splits = vec![split(1, 10.0, 8.0), split(2, 100.0, 90.0), split(3, 96.0, 99.0)];
        let judged = judge(Named::Mixed, splits, 3);
        assert_eq!((judged.best, judged.recommended, judged.share), (2, 3, 0.96));
        let off = judged.splits[1].predicted.off(&judged.splits[1].measured);
        assert!((off.output_throughput + 0.1).abs() < 1e-9);
    }
}
