//! `baton up`: a whole pipeline on this machine, each worker a process of its own, restarted when it fails.

use std::path::PathBuf;

use baton_assembly::{pipeline::Pipeline, signals::asked_to_stop, telemetry};
use baton_provision::{home::PipelineHome, processes::Logs};

use crate::{context::PipelineArguments, output::note};

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  baton up                              one worker a stage, embedded broker and store
  baton up pipelines/balanced.toml      three prefill and three decode workers
  baton up --set stages.decode.replicas=2 --store s3://kv/baton

Other commands on this machine find the running pipeline by its root: `baton submit 'Hello' --stream`.")]
pub struct Arguments {
    /// Pipeline file (the same as --pipeline)
    #[arg(value_name = "PIPELINE")]
    file: Option<PathBuf>,
    #[command(flatten)]
    pipeline: PipelineArguments,
}

pub async fn run(mut arguments: Arguments) -> anyhow::Result<()> {
    if arguments.file.is_some() {
        arguments.pipeline.pipeline = arguments.file.take();
    }
    let told = arguments.pipeline.told()?;
    let reach = told.reach()?;
    let telemetry = telemetry::start(&reach.telemetry, "baton-up", "up")?;
    let home = PipelineHome::new(&reach.root)?;
    let pipeline = Pipeline::start_told(told, home, Logs::Stderr, false).await?;
    let ran = keep_running(pipeline).await;
    telemetry.shutdown().await;
    ran
}

/// Says when the pipeline runs, and runs it until it is asked to stop. A pipeline that can't start is stopped at once.
async fn keep_running(mut pipeline: Pipeline) -> anyhow::Result<()> {
    let asked = asked_to_stop();
    tokio::pin!(asked);
    let started = tokio::select! {
        stopped = &mut asked => stopped.map(|()| false).map_err(anyhow::Error::from),
        ready = pipeline.ready() => ready.map(|()| true).map_err(anyhow::Error::from),
    };
    let ran = match started {
        Ok(true) => {
            tracing::info!(
                nats = %pipeline.plan().broker.url,
                store = %pipeline.plan().store.url,
                "the pipeline runs; Ctrl-C drains and stops it"
            );
            invite(&pipeline).await;
            Ok(asked.await?)
        }
        Ok(false) => Ok(()),
        Err(error) => Err(error.context("the pipeline can't start")),
    };
    tracing::info!("draining");
    pipeline.stop().await?;
    ran
}

/// Shows what there is, and what to do next.
async fn invite(pipeline: &Pipeline) {
    let (nats, store) = (&pipeline.plan().broker.url, &pipeline.plan().store.url);
    let page = match pipeline.gateway_url().await {
        Some(url) => format!("  page   {url}/\n  API    {url}/v1 (OpenAI's)\n"),
        None => String::new(),
    };
    note!(
        "{page}  NATS   {nats}\n  store  {store}\nin another terminal:  baton submit 'Why is the sea salty?' --stream"
    );
}
