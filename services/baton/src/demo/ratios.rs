//! `baton demo --ratios`: three loads on three splits of six workers, and what the split does to each.

mod insight;

use std::{
    io::{self, IsTerminal, Write as _},
    path::Path,
    time::Duration,
};

use anyhow::{Context, ensure};
use baton_assembly::{bus, pipeline::Pipeline, signals};
use baton_load::{
    Options, Report, Target,
    chart::{self, Bars, Labels},
    table::shares,
};
use baton_provision::{
    home::{self, PipelineHome},
    processes::Logs,
};
use baton_topology::Plan;
use baton_workload::Named;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use crate::{exit, output::stdout, table};

/// Prefill and decode workers.
const RATIOS: [(usize, usize); 3] = [(2, 4), (3, 3), (4, 2)];
/// A token of a prompt and a step of a decode worker's batch in seconds, as they are for an 8B model on a data-centre GPU
/// (0.1 ms; 12 ms for 32 answers), three times as slow, with half of the batch at half of the step's time. The workloads' lengths
/// are a quarter, so that the broker's own time stays small beside the engine's and a run takes seconds.
const PREFILL_S: f64 = 0.0003;
const DECODE_S: f64 = 0.018;
const DECODE_SLOTS: usize = 16;
const LENGTH_SCALE: f64 = 0.25;
/// Requests under way at a time: what fills four decode workers, and some for prefill.
const CONCURRENCY: usize = 72;
/// How long each load is kept up.
const LASTS: Duration = Duration::from_millis(4_500);

/// One load on one split.
#[derive(Clone, Debug, Serialize)]
pub struct Cell {
    pub workload: Named,
    pub prefill_workers: usize,
    pub decode_workers: usize,
    /// Requests and generated tokens a second while the load was steady.
    pub request_throughput: f64,
    pub output_throughput: f64,
    /// What the pools did of what they can do, 0 to 1: prompt tokens computed; decode slots that generate.
    pub prefill_utilisation: f64,
    pub decode_utilisation: f64,
    /// Shares of a mean job's time, 0 to 1: queue, prefill, hand-over, decode, rest.
    pub shares: [f64; 5],
    pub report: Report,
}

impl Cell {
    /// As in `2:4`.
    pub fn ratio(&self) -> String {
        format!("{}:{}", self.prefill_workers, self.decode_workers)
    }
}

/// Runs all of it; the plot goes into the file.
pub async fn run(json: bool, plot: &Path) -> anyhow::Result<()> {
    let bar = progress();
    let mut cells = Vec::new();
    for ratio in RATIOS {
        cells.extend(measure(ratio, &bar).await?);
    }
    bar.finish_and_clear();
    std::fs::write(plot, picture(&cells)).with_context(|| format!("cannot write the plot {}", plot.display()))?;
    if json {
        for cell in by_workload(&cells) {
            writeln!(stdout(), "{}", serde_json::to_string(cell)?)?;
        }
        return Ok(());
    }
    writeln!(
        stdout(),
        "six workers, sim engine as an 8B model on a GPU (scaled), {CONCURRENCY} requests under way; times in ms, p50 / p99\n"
    )?;
    write!(stdout(), "{}", table::render(&HEADINGS, &by_workload(&cells).map(row).collect::<Vec<_>>()))?;
    writeln!(stdout())?;
    for workload in Named::ALL {
        let cells: Vec<&Cell> = cells.iter().filter(|cell| cell.workload == workload).collect();
        writeln!(stdout(), "{}", insight::of(&cells))?;
    }
    writeln!(stdout(), "\nplot: {}", plot.display())?;
    Ok(())
}

/// All loads on one split, which is started for them.
async fn measure((prefill, decode): (usize, usize), bar: &ProgressBar) -> anyhow::Result<Vec<Cell>> {
    let plan = plan(prefill, decode)?;
    let directory = home::home()?.join("demo").join(format!("{}-{prefill}-{decode}", std::process::id()));
    // What a killed demo of the same process id may have left.
    let _ = std::fs::remove_dir_all(&directory);
    std::fs::create_dir_all(&directory).with_context(|| format!("cannot create {}", directory.display()))?;
    let (home, log) = (PipelineHome { directory: directory.clone() }, directory.join("workers.log"));
    bar.set_message(format!("{prefill}:{decode} starts"));
    let mut pipeline = Pipeline::start(plan, home, Logs::File(log.clone())).await?;
    let cells = tokio::select! {
        cells = loads(&mut pipeline, (prefill, decode), bar) => cells,
        stopped = signals::asked_to_stop() => stopped.map_err(anyhow::Error::from).and(Err(exit::Interrupted.into())),
    };
    pipeline.stop().await?;
    let cells = cells.with_context(|| format!("the demo failed; the workers' log is {}", log.display()))?;
    std::fs::remove_dir_all(&directory).with_context(|| format!("cannot remove {}", directory.display()))?;
    Ok(cells)
}

fn plan(prefill: usize, decode: usize) -> anyhow::Result<Plan> {
    let settings = [
        "root=ratios".to_owned(),
        "default_model=sim".to_owned(),
        "models.sim.source=sim".to_owned(),
        // Little KV to compute: the clock stands for the arithmetic.
        "models.sim.sim.layers=2".to_owned(),
        "models.sim.sim.kv_width=32".to_owned(),
        format!("models.sim.sim.prefill_s_per_token={PREFILL_S}"),
        format!("models.sim.sim.decode_s_per_step={DECODE_S}"),
        format!("stages.prefill.replicas={prefill}"),
        format!("stages.decode.replicas={decode}"),
        format!("stages.decode.slots={DECODE_SLOTS}"),
        "stages.prefill.kv_memory=256MiB".to_owned(),
        "stages.decode.kv_memory=256MiB".to_owned(),
        "telemetry.log=warn".to_owned(),
        "gateway.replicas=0".to_owned(),
    ];
    Ok(Plan::load(None, [], &settings)?)
}

async fn loads(
    pipeline: &mut Pipeline,
    (prefill, decode): (usize, usize),
    bar: &ProgressBar,
) -> anyhow::Result<Vec<Cell>> {
    pipeline.ready().await?;
    let target = Target::from(bus::connect(pipeline.plan(), "baton-demo").await?);
    let mut cells = Vec::new();
    for (seed, workload) in (0..).zip(Named::ALL) {
        bar.set_message(format!("{prefill}:{decode}, {workload}"));
        let options = Options {
            workload: Some(workload),
            length_scale: LENGTH_SCALE,
            warmup: CONCURRENCY,
            seed,
            ..Options::closed_loop(CONCURRENCY, LASTS)?
        };
        let report = baton_load::run(&target, &options, |_| {}).await?.report;
        cells.push(cell(workload, (prefill, decode), report)?);
        bar.inc(1);
    }
    Ok(cells)
}

fn cell(workload: Named, (prefill, decode): (usize, usize), report: Report) -> anyhow::Result<Cell> {
    let failures = report.failures.values().next().map_or("", |failures| failures.example.as_str());
    ensure!(
        report.failed + report.lost == 0,
        "{} requests failed, {} were lost: {failures}",
        report.failed,
        report.lost
    );
    let (Some(steady), Some(stages)) = (&report.steady, &report.stages_ms) else {
        anyhow::bail!("the machine is too slow for this demo: no request was sent after the first {CONCURRENCY}");
    };
    let computed = report.total_input_tokens - report.total_cached_tokens;
    let prompt_s = computed as f64 / report.completed.max(1) as f64 * PREFILL_S;
    Ok(Cell {
        workload,
        prefill_workers: prefill,
        decode_workers: decode,
        request_throughput: steady.request_throughput,
        output_throughput: steady.output_throughput,
        // A mean prompt by the whole run's requests, which in a short window may have been longer.
        prefill_utilisation: (steady.request_throughput * prompt_s / prefill as f64).min(1.0),
        decode_utilisation: steady.output_throughput * DECODE_S / (decode * DECODE_SLOTS) as f64,
        shares: shares(stages).map(|(_, share)| share),
        report,
    })
}

fn by_workload(cells: &[Cell]) -> impl Iterator<Item = &Cell> {
    Named::ALL.into_iter().flat_map(|workload| cells.iter().filter(move |cell| cell.workload == workload))
}

const HEADINGS: [&str; 13] = [
    "load",
    "P:D",
    "req/s",
    "tok/s",
    "TTFT",
    "ITL",
    "end to end",
    "queue",
    "prefill",
    "hand-over",
    "decode",
    "P busy",
    "D busy",
];

fn row(cell: &Cell) -> Vec<String> {
    let percent = |share: f64| format!("{:.0} %", share * 100.0);
    let [queue, prefill, hand_over, decode, _] = cell.shares.map(percent);
    let both = |summary: Option<baton_load::Summary>, digits: usize| {
        summary.map_or("-".into(), |it| format!("{:.digits$} / {:.digits$}", it.p50, it.p99))
    };
    vec![
        cell.workload.to_string(),
        cell.ratio(),
        format!("{:.1}", cell.request_throughput),
        format!("{:.0}", cell.output_throughput),
        both(cell.report.ttft_ms, 0),
        both(cell.report.itl_ms, 1),
        both(cell.report.e2el_ms, 0),
        queue,
        prefill,
        hand_over,
        decode,
        percent(cell.prefill_utilisation),
        percent(cell.decode_utilisation),
    ]
}

/// Each split's throughput by the best one's, load by load.
fn picture(cells: &[Cell]) -> String {
    let names: Vec<String> = RATIOS.iter().map(|(prefill, decode)| format!("{prefill}:{decode}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let group = |workload: Named| {
        let found = cells.iter().filter(|cell| cell.workload == workload);
        let values: Vec<f64> = found.map(|cell| cell.output_throughput).collect();
        let best = values.iter().copied().fold(f64::MIN_POSITIVE, f64::max);
        (workload.to_string(), values.iter().map(|value| value / best * 100.0).collect())
    };
    let groups: Vec<(String, Vec<f64>)> = Named::ALL.into_iter().map(group).collect();
    let labels = Labels {
        title: "Throughput by prefill:decode split",
        x: "load",
        y: "% of the best split's output tokens a second",
    };
    chart::bars(labels, &names, &groups, Bars::Beside)
}

fn progress() -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len} runs, {msg}  {elapsed}");
    let cells = (RATIOS.len() * Named::ALL.len()) as u64;
    let bar = ProgressBar::new(cells).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}
