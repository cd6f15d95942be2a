//! `baton job`, `baton result` and `baton jobs`: what became of jobs.

mod list;

use std::{
    io::Write,
    process::ExitCode,
    time::{Duration, UNIX_EPOCH},
};

use anyhow::bail;
use baton_bus::clients::waits::Waits;
use baton_contract::{JobId, outcome::Status, record::State};

pub use self::list::{ListArguments, list};
use crate::{
    context::{PipelineArguments, TenantArguments},
    exit::Exit,
    output::{note, raw_stdout, stdout},
    submit::print_outcome,
};

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  baton job report-7
  baton job report-7 --tenant acme --json | jq -r .state

With --json the record as it is stored: state (accepted, prefill, decode, completed, failed, cancelled or expired), \
request_digest, accepted_at_ms, request, tries, cancelled, claim, waiting (the fault that it was given back for); and as long as \
it has not ended `waits`: for (ingest, queue, fault, worker or broker), and what else is known of that.")]
pub struct JobArguments {
    id: JobId,
    #[command(flatten)]
    pipeline: PipelineArguments,
    #[command(flatten)]
    tenant: TenantArguments,
    /// Print the record as JSON
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  baton result report-7
  baton result report-7 --wait --json
  baton result report-7 --raw               control characters, too, as the model wrote them

On a terminal, characters that could steer it are shown by their numbers; piped, every byte comes as it is. Exit code: 0 if the job completed, 3 if it ended otherwise, 1 if it has no result yet.")]
pub struct ResultArguments {
    id: JobId,
    #[command(flatten)]
    pipeline: PipelineArguments,
    #[command(flatten)]
    tenant: TenantArguments,
    /// Wait until the job has ended
    #[arg(long, short)]
    wait: bool,
    /// Print the whole result as JSON
    #[arg(long)]
    json: bool,
    /// Print every byte of the text, also on a terminal
    #[arg(long)]
    raw: bool,
}

/// Shows a job's record.
pub async fn job(arguments: JobArguments) -> anyhow::Result<()> {
    let tenant = arguments.tenant.of(&arguments.pipeline)?;
    let (_, bus) = arguments.pipeline.join("baton-job").await?;
    let id = &arguments.id;
    let jobs = bus.jobs().await?;
    let stored = jobs.get(&tenant, id).await?;
    let waits = jobs.wait_reason(&tenant, id).await;
    let Some(stored) = stored else {
        match waits {
            Some(waits) => bail!("ingest has not seen job {id} of tenant {tenant}; it waits for {waits}"),
            None => bail!("the record of job {id} of tenant {tenant} is gone; `baton result {id}` prints its result"),
        }
    };
    let record = stored.record;
    let mut out = stdout();
    if arguments.json {
        let mut shown = serde_json::to_value(&record)?;
        if let Some(waits) = &waits {
            shown["waits"] = serde_json::to_value(waits)?;
        }
        writeln!(out, "{shown}")?;
        return Ok(());
    }
    writeln!(out, "job       {id}")?;
    let note = if record.cancelled && !record.state.is_final() { ", being cancelled" } else { "" };
    writeln!(out, "state     {}{note}", word(record.state))?;
    writeln!(out, "accepted  {}", time(record.accepted_at_ms))?;
    if let Some(claim) = record.claim {
        writeln!(out, "worker    {} (stage {}, attempt {})", claim.worker, claim.stage, claim.attempt)?;
    }
    if let Some(waits) = waits {
        writeln!(out, "waits for {waits}")?;
    }
    Ok(())
}

/// Prints a job's result.
pub async fn result(arguments: ResultArguments) -> anyhow::Result<ExitCode> {
    let tenant = &arguments.tenant.of(&arguments.pipeline)?;
    let (_, bus) = arguments.pipeline.join("baton-result").await?;
    let id = &arguments.id;
    let outcome = if arguments.wait {
        let mut follower = bus.follow(tenant).await?;
        let mut waits = Waits::new(bus.jobs().await?, tenant.clone());
        tokio::select! {
            outcome = follower.result(id) => outcome?,
            () = waits.tell(id, |news| note!("{news}")) => bail!("no more news of job {id} can come"),
        }
    } else {
        match bus.jobs().await?.result(tenant, id).await? {
            Some(outcome) => outcome,
            None => match bus.jobs().await?.get(tenant, id).await? {
                Some(stored) if stored.record.state.is_final() => {
                    bail!(
                        "job {id} of tenant {tenant} ended ({}), and its result is not kept any more",
                        word(stored.record.state)
                    )
                }
                Some(_) => bail!("job {id} of tenant {tenant} has no result yet; --wait waits for it"),
                None => bail!(
                    "nothing is known about job {id} of tenant {tenant}: it was never submitted, ingest has not seen it, or it \
                     is no longer kept; --tenant names another tenant"
                ),
            },
        }
    };
    let mut out = if arguments.raw { raw_stdout() } else { stdout() };
    print_outcome(&mut out, &outcome, arguments.json, None, false)?;
    Ok(Exit::of_jobs(outcome.status == Status::Completed))
}

/// A state as records and results write it.
pub fn word(state: State) -> &'static str {
    match state {
        State::Accepted => "accepted",
        State::Prefill => "prefill",
        State::Decode => "decode",
        State::Completed => "completed",
        State::Failed => "failed",
        State::Cancelled => "cancelled",
        State::Expired => "expired",
    }
}

/// A time as in RFC 3339.
fn time(unix_ms: u64) -> String {
    humantime::format_rfc3339_millis(UNIX_EPOCH + Duration::from_millis(unix_ms)).to_string()
}
