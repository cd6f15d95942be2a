//! `baton cancel`: ends a job that nobody wants any more.

use std::process::ExitCode;

use anyhow::bail;
use baton_bus::cancel::Answer;
use baton_contract::{JobId, Name, record::State};
use serde_json::json;

use crate::context::{self, PipelineArguments};

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  baton cancel report-7
  baton cancel report-7 --tenant acme --json
  baton result report-7 --wait                what there was of its answer

A job that runs ends within a step, with what it has generated as its answer; one that waits ends when a worker of its stage \
comes to it. Its one result has the status `cancelled`. With --json: {\"id\", \"answer\": \"cancelling\" or \"ended\", \
\"state\"}, the state being the one that the job is in now.

Exit status: 0 if the job will end as cancelled or has; 1 if it had ended otherwise, or nobody knows it.")]
pub struct Arguments {
    id: JobId,
    #[command(flatten)]
    pipeline: PipelineArguments,
    /// Tenant that submitted it
    #[arg(long, default_value = "default")]
    tenant: Name,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let plan = arguments.pipeline.running_plan()?;
    let bus = context::connect(&plan, "baton-cancel").await?;
    let (id, tenant) = (&arguments.id, &arguments.tenant);
    let (answer, state, cancelled) = match bus.cancel(tenant, id).await? {
        Answer::Cancelling { state } => ("cancelling", state, true),
        Answer::Ended { state } => ("ended", state, state == State::Cancelled),
        Answer::Unknown => bail!(
            "nothing is known about job {id} of tenant {tenant}: it was never submitted, or its result is no longer kept; \
             --tenant names another tenant"
        ),
    };
    let state = json!(state);
    if arguments.json {
        println!("{}", json!({ "id": id, "answer": answer, "state": state }));
    } else {
        let state = state.as_str().unwrap_or_default();
        match answer {
            "ended" => println!("job {id} has ended already: {state}"),
            _ => println!("job {id} is being cancelled; its state was {state}"),
        }
    }
    Ok(if cancelled { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
