//! `baton cancel`: ends jobs that nobody wants any more.

use std::{io::Write, process::ExitCode};

use baton_bus::stage::cancel::Answer;
use baton_contract::{JobId, record::State};
use serde_json::json;

use crate::{
    context::{PipelineArguments, TenantArguments},
    exit::Exit,
    jobs,
    output::{note, stdout},
};

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  baton cancel report-7
  baton cancel report-7 report-8 --tenant acme --json
  baton jobs --status open --lane batch --json | jq -r .id | xargs baton cancel
  baton result report-7 --wait                what there was of its answer

A job that runs ends within a step, with what it has generated as its answer; one that waits ends when a worker of its stage \
comes to it. Its one result has the status `cancelled`. With --json each line is an object: id, answer (`cancelling`, \
`ended` or `unknown`) and state, the one that the job is in now.

Exit code: 0 if each of the jobs will end as cancelled or has; 1 if one had ended otherwise, or nobody knows it.")]
pub struct Arguments {
    /// The jobs, by id
    #[arg(required = true, value_name = "ID")]
    ids: Vec<JobId>,
    #[command(flatten)]
    pipeline: PipelineArguments,
    #[command(flatten)]
    tenant: TenantArguments,
    /// Print one JSON object per job
    #[arg(long)]
    json: bool,
}

/// Asks for each job in turn, and goes on after one that can't be cancelled.
pub async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let tenant = arguments.tenant.of(&arguments.pipeline)?;
    let (_, bus) = arguments.pipeline.join("baton-cancel").await?;
    let mut all = true;
    for id in &arguments.ids {
        let (answer, state, cancelled) = match bus.cancel(&tenant, id).await? {
            Answer::Cancelling { state } => ("cancelling", Some(state), true),
            Answer::Ended { state } => ("ended", Some(state), state == State::Cancelled),
            Answer::Unknown => ("unknown", None, false),
        };
        all &= cancelled;
        let mut out = stdout();
        if arguments.json {
            writeln!(out, "{}", json!({ "id": id, "answer": answer, "state": state }))?;
        }
        match state.map(jobs::word) {
            None => note!(
                "error: nothing is known about job {id} of tenant {tenant}: it was never submitted, or its result is no \
                 longer kept; --tenant names another tenant"
            ),
            Some(_) if arguments.json => {}
            Some(state) if answer == "ended" => writeln!(out, "job {id} has ended already: {state}")?,
            Some(state) => writeln!(out, "job {id} is being cancelled; its state was {state}")?,
        }
    }
    Ok(if all { Exit::Success } else { Exit::Failure }.into())
}
