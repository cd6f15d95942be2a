//! Three loads on three splits of six workers, and what the split does to each.

mod cell;
mod insight;

use std::time::Duration;

use baton_load::{
    Options, Target,
    chart::{self, Bars, Labels},
};
use baton_topology::Plan;
use baton_workload::Named;

pub use self::{cell::Cell, insight::of as insight};
use crate::{
    error::Error,
    pipeline::{self, Pipeline},
    progress::Steps,
};

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
pub const CONCURRENCY: usize = 72;
/// How long each load is kept up.
const LASTS: Duration = Duration::from_millis(4_500);

/// Starts each split in turn and puts it under all loads.
///
/// # Errors
///
/// If a pipeline can't be started, or a request does not complete.
pub async fn measure(steps: &mut Steps) -> Result<Vec<Cell>, Error> {
    steps.total(RATIOS.len() * Named::ALL.len());
    let mut cells = Vec::new();
    for (prefill, decode) in RATIOS {
        steps.doing(format!("{prefill}:{decode} starts"));
        let own = pipeline::Options { what: "demo", folder: "demo", sync_always: false };
        let split = async |pipeline: &mut Pipeline| loads(pipeline, (prefill, decode), steps).await;
        cells.extend(pipeline::with(plan(prefill, decode)?, own, split).await?);
    }
    Ok(cells)
}

fn plan(prefill: usize, decode: usize) -> Result<Plan, Error> {
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
    steps: &mut Steps,
) -> Result<Vec<Cell>, Error> {
    pipeline.ready().await?;
    let target = Target::from(pipeline::connect(pipeline.plan(), "baton-demo").await?);
    let mut cells = Vec::new();
    for (seed, workload) in (0..).zip(Named::ALL) {
        steps.doing(format!("{prefill}:{decode}, {workload}"));
        let options = Options {
            workload: Some(workload),
            length_scale: LENGTH_SCALE,
            warmup: CONCURRENCY,
            seed,
            ..Options::closed_loop(CONCURRENCY, LASTS)?
        };
        let report = baton_load::run(&target, &options, |_| {}).await?.report;
        let split = cell::Split { prefill, decode, slots: DECODE_SLOTS, token_s: PREFILL_S, step_s: DECODE_S };
        cells.push(split.cell(workload, report)?);
        steps.done();
    }
    Ok(cells)
}

/// In the order of the loads.
pub fn by_workload(cells: &[Cell]) -> impl Iterator<Item = &Cell> {
    Named::ALL.into_iter().flat_map(|workload| cells.iter().filter(move |cell| cell.workload == workload))
}

/// Each split's throughput by the best one's, load by load.
pub fn picture(cells: &[Cell]) -> String {
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
