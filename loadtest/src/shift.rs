//! A load that changes its shape while a planner looks on: how long it takes until the workers fit the new shape, measured
//! against the best that workers of fixed roles make of it, and what is lost on the way.

use std::{collections::BTreeMap, path::Path, str::FromStr, time::Duration};

use baton_bus::{duty::roles::PlannerWatch, unix_ms};
use baton_contract::{Name, stats::RoleChange, subject::Stage};
use baton_load::{Measured, Options as Load, Target, timeline::Timeline};
use baton_workload::Lengths;
use serde::Serialize;
use tokio::time::{Instant, sleep};

use crate::pipeline::{self, Started, Workers};

/// The pipeline that is run where no other is named.
const PIPELINE: &str = include_str!("../shift.toml");
/// The share of the best fixed split that counts as reached.
const SHARE: f64 = 0.9;
/// Throughput is a mean over so long.
const WINDOW: Duration = Duration::from_secs(5);
const STEP: Duration = Duration::from_millis(500);
/// A planner is to come to rest within this time.
const MINUTE: f64 = 60.0;
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// Requests of one phase may wait for those of the other.
const TIMEOUT_S: f64 = 180.0;

/// What to run.
#[derive(clap::Args, Clone, Debug, Serialize)]
pub struct Options {
    #[command(flatten)]
    #[serde(flatten)]
    pub workers: Workers,
    /// The load at first: tokens of prompt and answer
    #[arg(long, value_name = "PROMPT:OUTPUT", default_value = "400:8")]
    pub first: Size,
    /// The load that it changes to
    #[arg(long, value_name = "PROMPT:OUTPUT", default_value = "16:200")]
    pub second: Size,
    /// Requests under way at first; those that wait when the load changes are in the way of the others
    #[arg(long, value_name = "N", default_value_t = 48)]
    pub first_concurrency: usize,
    /// Requests under way of the second load
    #[arg(long, value_name = "N", default_value_t = 120)]
    pub concurrency: usize,
    /// Seconds of each phase
    #[arg(long = "phase", value_name = "S", default_value_t = 60.0)]
    pub phase_s: f64,
    /// Seconds for which each fixed split has the second load before; 0 leaves that out, and nothing is judged then
    #[arg(long = "fixed", value_name = "S", default_value_t = 25.0)]
    pub fixed_s: f64,
    /// Equal seeds give equal prompts
    #[arg(long, value_name = "S", default_value_t = 0)]
    pub seed: u64,
}

/// Tokens of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Size {
    pub prompt_tokens: u32,
    pub output_tokens: u32,
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed =
            text.split_once(':').and_then(|(prompt, output)| Some((prompt.parse().ok()?, output.parse().ok()?)));
        match parsed {
            Some((prompt_tokens @ 1.., output_tokens @ 1..)) => Ok(Self { prompt_tokens, output_tokens }),
            _ => Err("expected tokens of prompt and answer, as in 400:8".to_owned()),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Pipeline(#[from] pipeline::Error),
    #[error(transparent)]
    Run(#[from] baton_load::Error),
    #[error(transparent)]
    Bus(#[from] baton_bus::Error),
    #[error("cannot write the pipeline's file")]
    File(#[from] std::io::Error),
}

/// What came of it.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub options: Options,
    /// What each fixed split makes of the second load.
    pub fixed: Vec<Fixed>,
    /// The load before and after it changed.
    pub phases: [Phase; 2],
    /// Seconds after the change from which on five seconds' throughput is 90 % of the best fixed split's.
    pub reached_90_s: Option<f64>,
    /// From then to the end of the phase: throughput as a share of the best fixed split's.
    pub then_share: Option<f64>,
    /// Requests of both phases without a result.
    pub lost: usize,
}

/// One split of workers that keep their roles.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Fixed {
    pub prefill: u32,
    pub decode: u32,
    pub request_throughput: f64,
    /// Tokens per second.
    pub output_throughput: f64,
    pub lost: usize,
}

/// One load.
#[derive(Clone, Debug, Serialize)]
pub struct Phase {
    pub size: Size,
    pub completed: usize,
    pub failed: usize,
    pub lost: usize,
    pub request_throughput: f64,
    /// Tokens per second.
    pub output_throughput: f64,
    /// Workers that changed their role meanwhile.
    pub changes: Vec<Change>,
    /// How many of them after its first minute.
    pub changes_after_a_minute: usize,
}

/// A worker that changed its role.
#[derive(Clone, Debug, Serialize)]
pub struct Change {
    /// Seconds since the phase began.
    pub at_s: f64,
    pub worker: String,
    pub to: Stage,
    pub reason: String,
}

impl Report {
    /// Whether nothing was lost, and the new shape was fitted in time where that was judged.
    pub fn holds(&self) -> bool {
        let kept = self.phases.iter().all(|phase| phase.failed + phase.lost == 0 && phase.completed > 0);
        kept && (self.fixed.is_empty() || self.reached_90_s.is_some_and(|seconds| seconds <= 30.0))
    }
}

/// Measures the fixed splits, then lets the load change under a planner. `progress` hears what is going on.
pub async fn run(options: &Options, mut progress: impl FnMut(String)) -> Result<Report, Error> {
    let directory = tempfile::tempdir()?;
    let file = options.workers.file(directory.path(), PIPELINE)?;
    let mut fixed = Vec::new();
    if options.fixed_s > 0.0 {
        for prefill in 1..options.workers.count {
            progress(format!("{prefill}:{} fixed", options.workers.count - prefill));
            fixed.push(measure(options, &file, prefill).await?);
        }
    }
    progress("the load changes".to_owned());
    let (phases, timeline) = shift(options, &file).await?;
    let best = fixed.iter().map(|split| split.output_throughput).fold(0.0, f64::max);
    let lasts = Duration::from_secs_f64(options.phase_s);
    let reached = (best > 0.0).then(|| reached(&timeline, SHARE * best, lasts)).flatten();
    let then_share = reached.map(|from| {
        let (tokens, seconds) = timeline.tokens(from, lasts);
        tokens as f64 / seconds / best
    });
    let lost = phases.iter().map(|phase| phase.lost).sum();
    let reached_90_s = reached.map(|from| from.as_secs_f64());
    Ok(Report { options: options.clone(), fixed, phases, reached_90_s, then_share, lost })
}

async fn start(options: &Options, file: &Path, prefill: u32, planned: bool) -> Result<Started, Error> {
    let root = Name::new(&format!("shift-{}", std::process::id())).map_err(baton_load::Error::from)?;
    Ok(options.workers.start(file, root, prefill, planned).await?)
}

async fn measure(options: &Options, file: &Path, prefill: u32) -> Result<Fixed, Error> {
    let started = start(options, file, prefill, false).await?;
    let load = load(options, (options.second, options.concurrency), options.fixed_s, u64::from(prefill))?;
    let measured = baton_load::run(&Target::from(started.bus.clone()), &load, |_| {}).await;
    started.stop().await;
    let report = measured?.report;
    let steady = report.steady;
    Ok(Fixed {
        prefill,
        decode: options.workers.count - prefill,
        request_throughput: steady.map_or(0.0, |steady| steady.request_throughput),
        output_throughput: steady.map_or(0.0, |steady| steady.output_throughput),
        lost: report.failed + report.lost,
    })
}

/// Both loads, the second from the moment on at which the first ends; also what the second's tokens came at.
async fn shift(options: &Options, file: &Path) -> Result<([Phase; 2], Timeline), Error> {
    let started = start(options, file, options.workers.count / 2, true).await?;
    let watch = started.bus.watch_planner().await?;
    let target = Target::from(started.bus.clone());
    let (first, second) = (
        load(options, (options.first, options.first_concurrency), options.phase_s, 101)?,
        load(options, (options.second, options.concurrency), options.phase_s, 102)?,
    );
    let (began, began_ms) = (Instant::now(), unix_ms());
    let second = async {
        sleep(Duration::from_secs_f64(options.phase_s)).await;
        let second_ms = began_ms + began.elapsed().as_millis() as u64;
        (baton_load::run(&target, &second, |_| {}).await, second_ms)
    };
    let mut changes = BTreeMap::new();
    let both = async { tokio::join!(baton_load::run(&target, &first, |_| {}), second) };
    let (first, (second, second_ms)) = tokio::select! {
        both = both => both,
        never = listen(&watch, &mut changes) => match never {},
    };
    started.stop().await;
    let (first, second) = (first?, second?);
    let earlier: Vec<&RoleChange> = changes.values().filter(|change| change.at_ms < second_ms).collect();
    let later: Vec<&RoleChange> = changes.values().filter(|change| change.at_ms >= second_ms).collect();
    let phases = [phase(options.first, &first, &earlier, began_ms), phase(options.second, &second, &later, second_ms)];
    Ok((phases, second.timeline))
}

/// Notes what the planner has done, by time.
async fn listen(watch: &PlannerWatch, changes: &mut BTreeMap<u64, RoleChange>) -> std::convert::Infallible {
    loop {
        if let Some(change) = watch.last().and_then(|planning| planning.last) {
            changes.insert(change.at_ms, change);
        }
        sleep(LOOK_EVERY).await;
    }
}

fn load(options: &Options, (size, concurrency): (Size, usize), lasts_s: f64, number: u64) -> Result<Load, Error> {
    let load = Load::closed_loop(concurrency, Duration::from_secs_f64(lasts_s))?;
    Ok(Load {
        prompt_tokens: Lengths::Fixed(size.prompt_tokens),
        output_tokens: Lengths::Fixed(size.output_tokens),
        // No run meets the KV of another.
        seed: options.seed.wrapping_mul(1_000).wrapping_add(number),
        timeout_s: TIMEOUT_S,
        ..load
    })
}

fn phase(size: Size, measured: &Measured, changes: &[&RoleChange], began_ms: u64) -> Phase {
    let (report, steady) = (&measured.report, measured.report.steady);
    let change = |change: &&RoleChange| Change {
        at_s: change.at_ms.saturating_sub(began_ms) as f64 / 1e3,
        worker: change.worker.clone(),
        to: change.to,
        reason: change.reason.clone(),
    };
    let changes: Vec<Change> = changes.iter().map(change).collect();
    Phase {
        size,
        completed: report.completed,
        failed: report.failed,
        lost: report.lost,
        request_throughput: steady.map_or(0.0, |steady| steady.request_throughput),
        output_throughput: steady.map_or(0.0, |steady| steady.output_throughput),
        changes_after_a_minute: changes.iter().filter(|change| change.at_s > MINUTE).count(),
        changes,
    }
}

/// When the tokens of a window first come at a `rate` per second: the window's beginning.
fn reached(timeline: &Timeline, rate: f64, lasts: Duration) -> Option<Duration> {
    let last = lasts.checked_sub(WINDOW)?;
    let places = (0..).map(|place| STEP * place).take_while(|from| *from <= last);
    places.into_iter().find(|from| {
        let (tokens, seconds) = timeline.tokens(*from, *from + WINDOW);
        tokens as f64 >= rate * seconds
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_reached_where_a_whole_window_has_it() {
        let mut timeline = Timeline::default();
        // 10 tokens a second, a burst at 6 s, and 100 a second from 12 s on.
        for ms in (0..30_000u64).step_by(100) {
            let count = if ms >= 12_000 || ms == 6_000 { 10 } else { 1 };
            (0..count).for_each(|_| timeline.token(Duration::from_millis(ms)));
        }
        let lasts = Duration::from_secs(30);
        assert_eq!(reached(&timeline, 90.0, lasts), Some(Duration::from_millis(11_500)));
        assert_eq!(reached(&timeline, 5.0, lasts), Some(Duration::ZERO));
        assert_eq!(reached(&timeline, 101.0, lasts), None);
        assert_eq!(reached(&timeline, 1.0, Duration::from_secs(1)), None, "there is no whole window");
    }

    #[test]
    fn sizes_are_two_numbers() {
        assert_eq!("400:8".parse(), Ok(Size { prompt_tokens: 400, output_tokens: 8 }));
        for bad in ["", "400", "400:", "0:8", "8:0", "a:b"] {
            assert!(bad.parse::<Size>().is_err(), "{bad}");
        }
    }
}
