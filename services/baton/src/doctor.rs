//! `baton doctor`: does everything work that the pipeline needs?

use std::process::ExitCode;

use anyhow::ensure;
use baton_bus::server::{self, Server};
use baton_engine::model::{self, Step};
use baton_topology::{BrokerUrl, Model, Plan, StoreUrl};
use serde::Serialize;
use tokio::task::spawn_blocking;

use crate::{
    context::{self, PipelineArguments},
    guard,
    setup::{self, Setup},
};

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  baton doctor
  baton doctor --nats nats://10.0.0.1:4222 --store s3://kv/baton

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
            Err(error) => (false, format!("{error:#}")),
        };
        Self { check: check.into(), ok, detail }
    }
}

pub async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let plan = arguments.pipeline.plan()?;
    let running = arguments.pipeline.running_plan().ok();
    let mut checks =
        vec![Check::new("broker", broker(&plan, running.as_ref()).await), Check::new("store", store(&plan).await)];
    for (name, model) in &plan.models {
        let device = context::device(plan.stages.decode.compute.device);
        checks.push(Check::new(format!("model {name}"), load(model.clone(), device).await));
    }
    for check in &checks {
        if arguments.json {
            println!("{}", serde_json::to_string(check)?);
        } else {
            println!("{}  {}: {}", if check.ok { "ok  " } else { "FAIL" }, check.check, check.detail);
        }
    }
    Ok(if checks.iter().all(|check| check.ok) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The broker answers and has JetStream on. An embedded one that does not run is started for the check.
async fn broker(plan: &Plan, running: Option<&Plan>) -> anyhow::Result<String> {
    if let Some(running) = running {
        let bus = context::connect(running, "baton-doctor").await?;
        let version = bus.check().await?;
        let lost = bus.lost().await?;
        ensure!(
            lost.is_empty(),
            "nats-server {version} at {} has lost {}; a worker that is started makes it again",
            running.broker.url,
            lost.join(", ")
        );
        return Ok(format!("nats-server {version} at {}, JetStream on", running.broker.url));
    }
    let binary = spawn_blocking(|| Setup::from_environment(false).ensure_nats_server()).await??;
    let directory = setup::home().join("doctor").join(std::process::id().to_string());
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

/// The store can be written to and refuses to overwrite.
async fn store(plan: &Plan) -> anyhow::Result<String> {
    let mut plan = plan.clone();
    if plan.store.url == StoreUrl::Embedded {
        plan.store.url = StoreUrl::Url(context::PipelineHome::new(&plan.root).store_url());
    }
    context::open_store(&plan)?.probe_conditional_put().await?;
    Ok(format!("{} takes create-only puts", plan.store.url))
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
    .await?
}
