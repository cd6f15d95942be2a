//! `baton doctor`: does everything work that the pipeline needs?

mod pipeline;

use std::{io::Write as _, path::PathBuf, process::ExitCode};

use anyhow::Context;
use baton_bus::server::{self, Server};
use baton_contract::causes;
use baton_engine::model::{self, Step};
use baton_topology::{BrokerUrl, Model, Plan, StoreUrl};
use serde::Serialize;
use tokio::task::spawn_blocking;

use crate::{
    context::{self, PipelineArguments, PipelineHome},
    guard,
    join::Found,
    output::stdout,
    private::open_to_others,
    setup::{self, Setup},
};

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  baton doctor
  baton doctor --nats nats://10.0.0.1:4222
  baton doctor --json | jq -r 'select(.ok | not) | .detail'

It looks at the broker and the room in it, at the pipeline's settings, streams and workers, at the store as workers use it, and \
loads the models. Where no embedded pipeline runs it looks whether one could. With --json each line is an object: check, ok, detail.

Exit code: 0 if every check passed, 1 otherwise.")]
pub struct Arguments {
    #[command(flatten)]
    pipeline: PipelineArguments,
    /// Print the checks as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Check {
    check: String,
    ok: bool,
    detail: String,
}

impl Check {
    fn new(check: impl Into<String>, outcome: anyhow::Result<String>) -> Self {
        let (ok, detail) = match outcome {
            Ok(detail) => (true, detail),
            Err(error) => (false, causes(error.as_ref())),
        };
        Self { check: check.into(), ok, detail }
    }
}

pub async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let checks = match arguments.pipeline.find() {
        Ok(found) => running(&found).await,
        // A broker that is named is looked for; an embedded one that doesn't run may be about to.
        Err(_) => idle(&arguments.pipeline).await?,
    };
    for check in &checks {
        if arguments.json {
            writeln!(stdout(), "{}", serde_json::to_string(check)?)?;
        } else {
            writeln!(stdout(), "{}  {}: {}", if check.ok { "ok  " } else { "FAIL" }, check.check, check.detail)?;
        }
    }
    Ok(if checks.iter().all(|check| check.ok) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Of a pipeline whose broker is known.
async fn running(found: &Found) -> Vec<Check> {
    let url = &found.reach.broker.url;
    let reached = async {
        let bus = context::reach(&found.reach.root, &found.reach.broker, "baton-doctor").await?;
        let version = bus.check().await?;
        anyhow::Ok((bus, version))
    };
    let (bus, version) = match reached.await {
        Ok(reached) => reached,
        Err(error) => return vec![Check::new("broker", Err(error))],
    };
    let mut checks = vec![Check::new("broker", Ok(format!("nats-server {version} at {url}, JetStream on")))];
    let plan = pipeline::checks(found, &bus, &mut checks).await;
    if let Some(plan) = plan {
        checks.push(Check::new("private files", private(&plan)));
        checks.extend(models(&plan).await);
    }
    checks
}

/// Where no pipeline runs: whether an embedded one could.
async fn idle(pipeline: &PipelineArguments) -> anyhow::Result<Vec<Check>> {
    let plan = pipeline.plan()?;
    let mut checks = vec![Check::new("broker", embedded_broker(&plan).await)];
    let store = async {
        let found = Found { told: pipeline.told()?, reach: pipeline.told()?.reach()?, embedded: None };
        let found = Found { embedded: Some(PipelineHome::new(&plan.root)?), ..found };
        let mut plan = plan.clone();
        found.place_store(&mut plan);
        pipeline::store(&plan, None).await
    };
    checks.push(Check::new("store", store.await));
    checks.push(Check::new("private files", private(&plan)));
    checks.extend(models(&plan).await);
    Ok(checks)
}

/// An embedded broker starts, and has JetStream on.
async fn embedded_broker(plan: &Plan) -> anyhow::Result<String> {
    let binary = spawn_blocking(|| Setup::from_environment(false)?.ensure_nats_server()).await??;
    let directory = setup::home()?.join("doctor").join(std::process::id().to_string());
    let options = server::Options {
        binary: binary.clone(),
        directory: directory.clone(),
        launcher: guard::launcher()?,
        sync_always: false,
    };
    let server = Server::start(options).await?;
    let mut plan = plan.clone();
    plan.broker.url = BrokerUrl::Servers(server.url().to_owned());
    let checked = async { anyhow::Ok(context::connect(&plan, "baton-doctor").await?.check().await?) }.await;
    server.stop().await?;
    // What is left is small and in Baton's own folder.
    let _ = std::fs::remove_dir_all(&directory);
    Ok(format!("embedded nats-server {} ({}) starts, JetStream on", checked?, binary.display()))
}

async fn models(plan: &Plan) -> Vec<Check> {
    let device = context::device(plan.stages.decode.compute.device);
    let mut checks = Vec::new();
    for (name, model) in &plan.models {
        checks.push(Check::new(format!("model {name}"), load(model.clone(), device).await));
    }
    checks
}

/// Nobody but their owner can read the files that hold what users said, or secrets. Where secrets are mounted for everybody to
/// read, as in containers, that is told and not counted as a fault.
fn private(plan: &Plan) -> anyhow::Result<String> {
    let home = PipelineHome::new(&plan.root)?;
    let mut kept = vec![home.directory];
    match &plan.store.url {
        StoreUrl::Embedded => {}
        StoreUrl::Url(url) => kept.extend(url.strip_prefix("file://").map(PathBuf::from)),
    }
    kept.extend(plan.store.cache_path.as_ref().map(PathBuf::from));
    let open = |paths: &[PathBuf]| {
        let open = paths.iter().filter_map(|path| Some(format!("{} ({:03o})", path.display(), open_to_others(path)?)));
        open.collect::<Vec<_>>().join(", ")
    };
    let found = open(&kept);
    anyhow::ensure!(found.is_empty(), "others may read {found}: chmod 700 keeps them out");
    let secrets = [&plan.gateway.keys_file, &plan.broker.credentials].into_iter().flatten().map(PathBuf::from);
    let found = open(&secrets.collect::<Vec<_>>());
    Ok(match found.is_empty() {
        true => "only their owner can read them".into(),
        false => format!("others may read {found}: chmod 600 keeps them out"),
    })
}

/// The model loads and computes.
async fn load(source: Model, device: &'static str) -> anyhow::Result<String> {
    spawn_blocking(move || {
        let options = model::Options { device: device.to_owned(), ..model::Options::default() };
        let mut model = baton_engine::source::load(&context::source(&source)?, &options)?;
        let sequence = model.open();
        model.forward(&[Step { sequence, tokens: &[0], logits: 1 }])?;
        let spec = model.spec();
        Ok(format!("{} loads on {device}: {} layers, context {}", spec.name, spec.kv.layers, spec.context))
    })
    .await
    .context("the check was lost")?
}
