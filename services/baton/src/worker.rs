//! `baton worker`: one worker, of one stage at a time.

use std::io::Write;

use anyhow::{Context, ensure};
use baton_contract::Role;
use baton_worker::Assignment;
use clap::{
    ValueEnum,
    builder::{PossibleValuesParser, TypedValueParser},
};

use crate::{context::PipelineArguments, output::stdout};

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  baton worker decode --nats nats://10.0.0.1:4222
  baton worker prefill --pipeline pipelines/balanced.toml --name prefill-7
  baton worker --roles prefill,decode --role decode --name worker-1

It takes over what the broker keeps of the pipeline, and is refused where it was told otherwise. Any number of workers of a stage \
share its queue; add and remove them at any time. Once a worker takes jobs, it prints a \
line `ready` to its standard output. SIGTERM and Ctrl-C drain it.

With --roles it is prefill or decode, one at a time, and changes when `baton role` or a planner asks it to: it drains as for its \
end (decode hands its jobs over at once, prefill finishes what it holds), then takes jobs of the other stage. Its models stay in \
memory.")]
pub struct Arguments {
    /// The stage that it serves for as long as it lives
    #[arg(required_unless_present = "roles", conflicts_with = "roles")]
    stage: Option<StageName>,
    /// What it may be instead, one at a time
    #[arg(long, value_name = "ROLES", value_delimiter = ',', value_parser = roles())]
    roles: Vec<Role>,
    /// Which of them it is first; without it the first of the list
    #[arg(long, requires = "roles", value_parser = roles())]
    role: Option<Role>,
    #[command(flatten)]
    pipeline: PipelineArguments,
    /// Names the worker in claims, results and traces; without it the stage (or `worker`) and the process id
    #[arg(long)]
    name: Option<String>,
}

#[derive(Clone, Copy, ValueEnum)]
enum StageName {
    Ingest,
    Prefill,
    Decode,
}

/// Reads what a computing worker can be.
pub fn roles() -> impl TypedValueParser<Value = Role> {
    PossibleValuesParser::new(Role::ALL.map(Role::as_str)).try_map(|name| name.parse())
}

impl Arguments {
    fn assignment(&self) -> anyhow::Result<Assignment> {
        let only = |role| Ok(Assignment::Compute { roles: vec![role], first: role });
        match self.stage {
            Some(StageName::Ingest) => Ok(Assignment::Ingest),
            Some(StageName::Prefill) => only(Role::Prefill),
            Some(StageName::Decode) => only(Role::Decode),
            None => {
                let mut roles: Vec<Role> = Vec::new();
                for &role in &self.roles {
                    if !roles.contains(&role) {
                        roles.push(role);
                    }
                }
                let first =
                    self.role.or(roles.first().copied()).context("expected a role after --roles, found none")?;
                ensure!(roles.contains(&first), "expected --role to be one of --roles, found {first:?}");
                Ok(Assignment::Compute { roles, first })
            }
        }
    }
}

pub async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let assignment = arguments.assignment()?;
    let found = arguments.pipeline.find()?;
    let worker = arguments.name.unwrap_or_else(|| format!("{}-{}", assignment.service(), std::process::id()));
    let ready = || writeln!(stdout(), "ready");
    Ok(baton_worker::run(&found, assignment, &worker, &ready).await?)
}
