//! `baton role`: has a worker change its role.

use std::io::Write;

use anyhow::bail;
use baton_bus::duty::roles::Answer;
use baton_contract::Role;

use crate::{context::PipelineArguments, output::stdout, worker::roles};

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  baton role worker-3 decode
  baton role worker-3 prefill --json

The worker must have been started with --roles. It drains first: decode hands its jobs over at once, prefill finishes what it holds. \
The command ends when the worker takes jobs in its new role. A planner that runs may change it again.")]
pub struct Arguments {
    /// The worker's name, as `baton top` shows it
    worker: String,
    /// What it is to become
    #[arg(value_parser = roles())]
    role: Role,
    #[command(flatten)]
    pipeline: PipelineArguments,
    /// Print the answer as a JSON object
    #[arg(long)]
    json: bool,
}

pub async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let Arguments { worker, role, pipeline, json } = arguments;
    let (_, bus) = pipeline.join("baton-role").await?;
    let answer = bus.change_role(&worker, role.stage()).await?;
    let text = match &answer {
        _ if json => serde_json::to_string(&answer)?,
        Answer::Switched { from, to } => format!("{worker} was {from} and is {to} now"),
        Answer::Serves { role } => format!("{worker} is {role} already"),
        Answer::Refused { .. } => String::new(),
    };
    if !text.is_empty() {
        writeln!(stdout(), "{text}")?;
    }
    match answer {
        Answer::Refused { reason } => bail!("{worker} did not change its role: {reason}"),
        Answer::Switched { .. } | Answer::Serves { .. } => Ok(()),
    }
}
