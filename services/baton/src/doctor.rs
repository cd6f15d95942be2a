//! `baton doctor`: does everything work that the pipeline needs?

use std::{io::Write as _, process::ExitCode};

use baton_assembly::{
    checks::{self, Check, Fault},
    models::device,
};
use baton_topology::{Model, Plan};

use crate::{context::PipelineArguments, output::stdout};

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  baton doctor
  baton doctor --nats nats://10.0.0.1:4222
  baton doctor --json | jq -r 'select(.ok | not) | .detail'

It looks at the broker and the room in it, at the pipeline's settings, streams and workers, at the store as workers use it, and \
loads the models. Each foreign engine is asked for its models, for its queue, and for a token. Where no embedded pipeline runs \
it looks whether one could. With --json each line is an object: check, ok, detail.

Exit code: 0 if every check passed, 1 otherwise.")]
pub struct Arguments {
    #[command(flatten)]
    pipeline: PipelineArguments,
    /// Print the checks as JSON
    #[arg(long)]
    json: bool,
}

pub async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let (mut checks, plan) = match arguments.pipeline.find() {
        Ok(found) => checks::running(&found).await,
        // A broker that is named is looked for; an embedded one that doesn't run may be about to.
        Err(_) => {
            let plan = arguments.pipeline.plan()?;
            (checks::idle(arguments.pipeline.told()?, &plan).await, Some(plan))
        }
    };
    if let Some(plan) = &plan {
        checks.extend(models(plan).await);
        checks.extend(checks::engines(plan).await);
    }
    for check in &checks {
        if arguments.json {
            writeln!(stdout(), "{}", serde_json::to_string(check)?)?;
        } else {
            writeln!(stdout(), "{check}")?;
        }
    }
    Ok(if checks.iter().all(|check| check.ok) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn models(plan: &Plan) -> Vec<Check> {
    let device = device(plan.stages.decode.compute.device);
    let mut checks = Vec::new();
    let own = plan.models.iter().filter(|(_, model)| !matches!(model, Model::Upstream(_)));
    for (name, model) in own {
        let found = baton_worker::models::try_out(model, device).await;
        checks.push(Check::new(format!("model {name}"), found.map_err(Fault::from)));
    }
    checks
}
