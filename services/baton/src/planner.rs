//! `baton planner`: decides how many workers serve prefill and how many decode.

use std::{io::Write, path::Path};

use anyhow::Context;
use baton_assembly::serving::Process;
use baton_planner::{pipeline, profile::Profile, service};

use crate::{context::PipelineArguments, output::stdout};

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  baton planner                                 plans for the pipeline that runs on this machine
  baton planner --dry-run                       tells what it would do, and does nothing
  baton up pipelines/adaptive.toml              starts one with the pipeline

Every second it looks at queues and workers, and decides how many workers each role needs. If the split is wrong it asks one worker \
that was started with --roles to change, and waits until that has settled. It tells what it thinks on <root>.stats.planner; `baton \
top` shows it, and gateways have it as the metric baton_desired_replicas{stage}, for autoscalers. Several may run: one acts. The \
table [planner] of the pipeline holds its settings.")]
pub struct Arguments {
    #[command(flatten)]
    pipeline: PipelineArguments,
    /// Decide and log, but change nothing and tell nobody else
    #[arg(long)]
    dry_run: bool,
    /// Names the planner in what it tells; without it `planner` and the process id
    #[arg(long)]
    name: Option<String>,
}

pub async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let found = arguments.pipeline.find()?;
    let name = arguments.name.unwrap_or_else(|| format!("planner-{}", std::process::id()));
    let dry_run = arguments.dry_run;
    let process = Process { kind: "planner", service: "planner", name: &name, uses_store: &|_| false };
    process
        .serve(&found, async |plan, bus, shutdown| {
            let profile = plan.planner.profile.as_deref().map(Path::new).map(read).transpose()?;
            let options = service::Options { decide: pipeline::decided(plan, profile), name: name.clone(), dry_run };
            let ready = || {
                tracing::info!(planner = name, dry_run, "the planner is ready");
                // Its parent may not read it.
                let _ = writeln!(stdout(), "ready");
            };
            Ok(service::run(bus.clone(), options, ready, shutdown).await?)
        })
        .await
}

fn read(path: &Path) -> anyhow::Result<Profile> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("cannot read the profile {} (planner.profile)", path.display()))?;
    Profile::read(&text).with_context(|| format!("profile {} (planner.profile)", path.display()))
}
