//! What a message costs: jobs of no work, one at a time, through a pipeline of their own.

use std::fs;

use anyhow::{Context, ensure};
use baton_contract::{
    JobId, Name,
    outcome::Status,
    request::{Prompt, Request},
};
use baton_topology::Plan;
use tokio::time::Instant;

use crate::{
    bench::Runs,
    context::{self, PipelineHome},
    setup,
    supervisor::{Logs, Pipeline},
};

/// Jobs before those that count, and those.
const JOBS: (usize, usize) = (20, 60);
/// Messages of a job, each after the one before: the request, to prefill, to decode, and the result.
const HOPS: f64 = 4.0;
/// One chunk that all jobs share, so that the store has no part in it.
const TOKENS: usize = 16;

/// Seconds from publishing a message until it is handled, handling included.
pub(super) async fn hop_s() -> anyhow::Result<f64> {
    let directory = setup::home().join("calibrate").join(format!("bus-{}", std::process::id()));
    // What a killed run of the same process id may have left.
    let _ = fs::remove_dir_all(&directory);
    fs::create_dir_all(&directory).with_context(|| format!("cannot create {}", directory.display()))?;
    let (home, log) = (PipelineHome { directory: directory.clone() }, directory.join("workers.log"));
    let mut pipeline = Pipeline::start_with(plan()?, home, Logs::File(log), false).await?;
    let measured = tokio::select! {
        measured = measure(&mut pipeline) => measured,
        stopped = context::asked_to_stop() => stopped.and(Err(anyhow::anyhow!("stopped"))),
    };
    pipeline.stop().await?;
    fs::remove_dir_all(&directory).with_context(|| format!("cannot remove {}", directory.display()))?;
    measured
}

fn plan() -> anyhow::Result<Plan> {
    let mut settings = vec![
        "root=calibrate".to_owned(),
        "models.sim.source=sim".to_owned(),
        "models.sim.sim.layers=1".to_owned(),
        "models.sim.sim.kv_width=2".to_owned(),
        "default_model=sim".to_owned(),
        format!("store.chunk_tokens={TOKENS}"),
        "store.cache_memory=16MiB".to_owned(),
    ];
    for stage in ["prefill", "decode"] {
        settings.push(format!("stages.{stage}.threads=1"));
        settings.push(format!("stages.{stage}.kv_memory=16MiB"));
    }
    Ok(Plan::load(None, [], &settings)?)
}

async fn measure(pipeline: &mut Pipeline) -> anyhow::Result<f64> {
    pipeline.ready().await?;
    let plan = pipeline.plan();
    let (tenant, lane) = (Name::new("calibrate")?, plan.lanes[0].clone());
    let bus = context::connect(plan, "baton-calibrate").await?;
    let mut results = bus.results(&tenant).await?;
    let mut seconds = Vec::new();
    for number in 0..JOBS.0 + JOBS.1 {
        let id = JobId::new(&format!("calibrate-{number}"))?;
        let request = Request {
            id: Some(id.to_string()),
            prompt: Some(Prompt::Tokens(vec![u32::from(b'a'); TOKENS])),
            max_tokens: Some(2),
            ..Request::default()
        };
        let body = serde_json::to_vec(&request)?;
        let started = Instant::now();
        bus.submit(&tenant, &lane, body).await?;
        let outcome = results.next().await?;
        ensure!(
            outcome.status == Status::Completed,
            "job {} of the measurement ended as {:?}",
            outcome.id,
            outcome.status
        );
        if number >= JOBS.0 {
            seconds.push(started.elapsed().as_secs_f64());
        }
    }
    Ok(Runs::of(seconds).median / HOPS)
}
