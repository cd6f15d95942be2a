//! What messages cost: jobs of little work through a pipeline of their own, one at a time and then many.

use std::time::Duration;

use baton_bus::Bus;
use baton_contract::{
    JobId, Name,
    outcome::Status,
    request::{Prompt, Request},
};
use baton_load::{Options as Load, Target};
use baton_planner::fit::{Fitted, Sample, fit};
use baton_topology::Plan;
use baton_workload::Lengths;
use tokio::time::{Instant, sleep};

use crate::{
    error::Error,
    pipeline::{self, Pipeline},
    processes::Process,
    runs::Runs,
};

/// Jobs before those that count, and those.
const JOBS: (usize, usize) = (20, 60);
/// Messages of a job, each after the one before: the request, to prefill, to decode, and the result.
const HOPS: f64 = 4.0;
/// One chunk of a few bytes, so that the store has next to no part in it.
const TOKENS: usize = 16;
/// Where processor time is measured: jobs, those under way together, and tokens of the answers that they stream. At first the jobs
/// cost the most, then the tokens, then the steps.
const STREAMS: [(usize, usize, usize); 3] = [(320, 8, 2), (64, 8, 64), (4, 1, 64)];
/// A step of theirs, as of a small model on few cores: what is sent after a step is not hidden behind the one before.
const STEP_S: f64 = 0.02;
/// Time in which nothing is sent.
const REST: Duration = Duration::from_secs(2);

/// What was found.
pub(super) struct Measured {
    /// Seconds from publishing a message until it is handled, handling included.
    pub(super) hop_s: f64,
    /// Seconds of processor time for a job, a step, and a token, of all processes together; none on systems that don't tell.
    pub(super) cpu_s: Option<[f64; 3]>,
}

/// Starts the pipeline, and removes it afterwards. What the processes `beside` it do does not count.
pub(super) async fn measure(beside: Vec<u32>) -> Result<Measured, Error> {
    let own = pipeline::Options { what: "measurement of the bus", folder: "calibrate", sync_always: false };
    pipeline::with(plan()?, own, async |pipeline| jobs(pipeline, &beside).await).await
}

fn plan() -> Result<Plan, Error> {
    let mut settings = vec![
        "root=calibrate".to_owned(),
        "models.sim.source=sim".to_owned(),
        "models.sim.sim.layers=1".to_owned(),
        "models.sim.sim.kv_width=2".to_owned(),
        "default_model=sim".to_owned(),
        "models.paced.source=sim".to_owned(),
        "models.paced.sim.layers=1".to_owned(),
        "models.paced.sim.kv_width=2".to_owned(),
        format!("models.paced.sim.decode_s_per_step={STEP_S}"),
        format!("store.chunk_tokens={TOKENS}"),
        "store.cache_memory=16MiB".to_owned(),
        // Nobody asks it, and another pipeline's may have the port.
        "gateway.replicas=0".to_owned(),
    ];
    for stage in ["prefill", "decode"] {
        settings.push(format!("stages.{stage}.threads=1"));
        settings.push(format!("stages.{stage}.kv_memory=16MiB"));
    }
    Ok(Plan::load(None, [], &settings)?)
}

async fn jobs(pipeline: &mut Pipeline, beside: &[u32]) -> Result<Measured, Error> {
    pipeline.ready().await?;
    let plan = pipeline.plan();
    let bus = pipeline::connect(plan, "baton-calibrate").await?;
    let hop_s = hop_s(&bus, plan).await?;
    let processes: Vec<Process> = Process::all().into_iter().filter(|it| !beside.contains(&it.pid)).collect();
    let spent = || processes.iter().map(Process::cpu_seconds).sum::<Option<f64>>().filter(|_| !processes.is_empty());
    let mut samples = Vec::new();
    for stream in [None].into_iter().chain(STREAMS.map(Some)) {
        let (before, began) = (spent(), Instant::now());
        match stream {
            None => sleep(REST).await,
            Some(stream) => send(&bus, plan, stream).await?,
        }
        let Some(seconds) = spent().zip(before).map(|(after, before)| after - before) else { break };
        let (jobs, together, tokens) = stream.unwrap_or((0, 1, 0));
        // The first token of an answer needs no step of decode.
        let steps = (jobs / together * tokens.saturating_sub(1)) as f64;
        samples.push(Sample {
            features: [jobs as f64, steps, (jobs * tokens) as f64, began.elapsed().as_secs_f64()],
            seconds,
        });
    }
    let fitted = (samples.len() > STREAMS.len()).then(|| fit(&samples)).flatten();
    let cpu_s = fitted.map(|Fitted { coefficients: [job, step, token, _at_rest], .. }| [job, step, token]);
    Ok(Measured { hop_s, cpu_s })
}

/// Sends so many jobs, and waits for their results.
async fn send(bus: &Bus, plan: &Plan, (jobs, together, tokens): (usize, usize, usize)) -> Result<(), Error> {
    let load = Load {
        model: Some("paced".to_owned()),
        lane: plan.lanes[0].clone(),
        prompt_tokens: Lengths::Fixed(TOKENS as u32),
        output_tokens: Lengths::Fixed(tokens as u32),
        jobs: Some(jobs),
        duration_s: None,
        seed: jobs as u64,
        ..Load::closed_loop(together, Duration::ZERO)?
    };
    let report = baton_load::run(&Target::from(bus.clone()), &load, |_| {}).await?.report;
    match report.completed {
        completed if completed == jobs => Ok(()),
        completed => Err(Error::Unfinished { completed, jobs }),
    }
}

async fn hop_s(bus: &Bus, plan: &Plan) -> Result<f64, Error> {
    let (tenant, lane) = (Name::new("calibrate")?, plan.lanes[0].clone());
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
        if outcome.status != Status::Completed {
            return Err(Error::job(&outcome));
        }
        if number >= JOBS.0 {
            seconds.push(started.elapsed().as_secs_f64());
        }
    }
    Ok(Runs::of(seconds).median / HOPS)
}
