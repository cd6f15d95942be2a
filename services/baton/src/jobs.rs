//! `baton job` and `baton result`: what became of a job.

use std::process::ExitCode;

use anyhow::bail;
use baton_contract::{JobId, Name, outcome::Status};

use crate::{
    context::{self, PipelineArguments},
    submit::print_outcome,
};

#[derive(clap::Args)]
pub struct JobArguments {
    id: JobId,
    #[command(flatten)]
    pipeline: PipelineArguments,
    /// Tenant that submitted it
    #[arg(long, default_value = "default")]
    tenant: Name,
    /// Print the record as JSON
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  baton result report-7
  baton result report-7 --wait --json

Exit status: 0 if the job completed, 1 otherwise.")]
pub struct ResultArguments {
    id: JobId,
    #[command(flatten)]
    pipeline: PipelineArguments,
    /// Tenant that submitted it
    #[arg(long, default_value = "default")]
    tenant: Name,
    /// Wait until the job has ended
    #[arg(long, short)]
    wait: bool,
    /// Print the whole result as JSON
    #[arg(long)]
    json: bool,
}

pub async fn job(arguments: JobArguments) -> anyhow::Result<()> {
    let plan = arguments.pipeline.running_plan()?;
    let bus = context::connect(&plan, "baton-job").await?;
    let id = &arguments.id;
    let Some(stored) = bus.jobs().await?.get(&arguments.tenant, id).await? else {
        bail!("nothing is known about job {id} of tenant {}; has ingest seen it yet?", arguments.tenant);
    };
    let record = stored.record;
    if arguments.json {
        println!("{}", serde_json::to_string(&record)?);
        return Ok(());
    }
    let state = format!("{:?}", record.state).to_lowercase();
    let accepted = std::time::UNIX_EPOCH + std::time::Duration::from_millis(record.accepted_at_ms);
    println!("job       {id}");
    let note = if record.cancelled && !record.state.is_final() { ", being cancelled" } else { "" };
    println!("state     {state}{note}");
    println!("accepted  {}", humantime::format_rfc3339_millis(accepted));
    if let Some(claim) = record.claim {
        println!("worker    {} (stage {}, attempt {})", claim.worker, claim.stage, claim.attempt);
    }
    Ok(())
}

pub async fn result(arguments: ResultArguments) -> anyhow::Result<ExitCode> {
    let plan = arguments.pipeline.running_plan()?;
    let bus = context::connect(&plan, "baton-result").await?;
    let (id, tenant) = (&arguments.id, &arguments.tenant);
    let outcome = if arguments.wait {
        bus.follow(tenant).await?.result(id).await?
    } else {
        match bus.jobs().await?.result(tenant, id).await? {
            Some(outcome) => outcome,
            None => bail!("job {id} of tenant {tenant} has no result yet; --wait waits for it"),
        }
    };
    print_outcome(&outcome, arguments.json, None, false)?;
    Ok(if outcome.status == Status::Completed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
