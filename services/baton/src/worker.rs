//! `baton worker`: one worker, of one stage at a time.

mod models;
mod roles;

use std::{collections::BTreeMap, io::Write, time::Duration};

use anyhow::{Context, ensure};
use baton_bus::{Bus, pull, stats, waiting};
use baton_contract::{Name, causes, subject::Stage};
use baton_engine::generation::Generator;
use baton_topology::Plan;
use clap::ValueEnum;
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;

use self::roles::Flexible;
pub use self::roles::Role;
use crate::{
    collector,
    context::{self, PipelineArguments},
    join::Found,
    output::stdout,
};

/// What a worker gets from SIGTERM until it hands back what it holds.
pub const DRAIN: Duration = Duration::from_secs(20);

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  baton worker decode --nats nats://10.0.0.1:4222 --store s3://kv/baton
  baton worker prefill --pipeline pipelines/balanced.toml --name prefill-7
  baton worker --roles prefill,decode --role decode --name worker-1

Any number of workers of a stage share its queue; add and remove them at any time. Once a worker takes jobs, it prints a \
line `ready` to its standard output. SIGTERM and Ctrl-C drain it.

With --roles it is prefill or decode, one at a time, and changes when `baton role` or a planner asks it to: it drains as for its \
end (decode hands its jobs over at once, prefill finishes what it holds), then takes jobs of the other stage. Its models stay in \
memory.")]
pub struct Arguments {
    /// The stage that it serves for as long as it lives
    #[arg(required_unless_present = "roles", conflicts_with = "roles")]
    stage: Option<StageName>,
    /// What it may be instead, one at a time
    #[arg(long, value_name = "ROLES", value_delimiter = ',')]
    roles: Vec<Role>,
    /// Which of them it is first; without it the first of the list
    #[arg(long, requires = "roles")]
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

/// What a worker is to do.
enum Assignment {
    Ingest,
    /// One of `roles`, `first` to begin with.
    Compute {
        roles: Vec<Role>,
        first: Role,
    },
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
                for role in &self.roles {
                    if !roles.contains(role) {
                        roles.push(*role);
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

impl Assignment {
    /// What the worker is called in traces, and in its name if it has none of its own.
    fn service(&self) -> &'static str {
        match self {
            Self::Ingest => "ingest",
            Self::Compute { roles, first } => match roles[..] {
                [_] => first.stage().as_str(),
                _ => "worker",
            },
        }
    }
}

pub async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let assignment = arguments.assignment()?;
    let found = arguments.pipeline.find()?;
    let service = assignment.service();
    let worker = arguments.name.unwrap_or_else(|| format!("{service}-{}", std::process::id()));
    let telemetry = context::telemetry(&found.reach.telemetry, &format!("baton-{service}"), &worker)?;
    let shutdown = CancellationToken::new();
    let asked = shutdown.clone();
    tokio::spawn(async move {
        if let Err(error) = context::asked_to_stop().await {
            tracing::error!(error = %causes(error.as_ref()), "signals can't be received; the worker stops");
        }
        asked.cancel();
    });
    let served = serve(assignment, &found, &worker, shutdown).await;
    telemetry.shutdown().await;
    served
}

async fn serve(assignment: Assignment, found: &Found, worker: &str, shutdown: CancellationToken) -> anyhow::Result<()> {
    let bus = context::reach(&found.reach.root, &found.reach.broker, worker).await?;
    let uses_store = !matches!(assignment, Assignment::Ingest);
    let plan = &found.take_part(&bus, uses_store).await?;
    let work = async {
        match assignment {
            Assignment::Ingest => ingest(plan, &bus, worker, shutdown).await,
            Assignment::Compute { roles, first } => {
                // The stages that use the store look after it, too.
                tokio::spawn(collector::keep(plan.clone(), bus.clone(), shutdown.clone()));
                Flexible { plan, worker, roles, shutdown }.serve(&bus, first).await
            }
        }
    };
    context::keeping(plan, &bus, work).await?;
    tracing::info!("the worker has drained");
    Ok(())
}

async fn ingest(plan: &Plan, bus: &Bus, worker: &str, shutdown: CancellationToken) -> anyhow::Result<()> {
    let models = ingest_models(plan).await?;
    let options = baton_ingest::Options {
        pull: pull_options(plan, Stage::Ingest, &plan.stages.ingest, &[]),
        decode_prefills: plan.stages.decode.prefill_tokens,
        waiting: waiting_options(plan),
    };
    ready(worker)?;
    let identity = stats::Identity {
        worker: worker.to_owned(),
        stage: Stage::Ingest,
        roles: vec![Stage::Ingest],
        models: models.generators.keys().cloned().collect(),
        slots: options.pull.slots,
    };
    Ok(bus.telling(identity, &shutdown, baton_ingest::run(bus.clone(), options, models, shutdown.clone())).await?)
}

fn pull_options(plan: &Plan, stage: Stage, settings: &baton_topology::Stage, models: &[Name]) -> pull::Options {
    pull::Options {
        stage,
        models: models.to_vec(),
        lanes: plan.lanes.clone(),
        slots: settings.slots,
        ack_wait: settings.ack_wait,
        max_deliver: settings.max_deliver as u64,
        drain: DRAIN,
    }
}

/// How the plan's tenants share it.
fn waiting_options(plan: &Plan) -> waiting::Options {
    let share = |tenant: &baton_topology::Tenant| waiting::Share {
        weight: tenant.weight as u64,
        max_running: tenant.max_running.map(|jobs| jobs as u64),
    };
    waiting::Options {
        lanes: plan.lanes.clone(),
        tenants: plan.tenants.iter().map(|(name, tenant)| (name.clone(), share(tenant))).collect(),
        tenant_backlog: plan.limits.tenant_backlog.map(|jobs| jobs as u64),
    }
}

/// Tells whoever started the worker that it takes jobs.
fn ready(worker: &str) -> anyhow::Result<()> {
    tracing::info!(worker, "the worker is ready");
    writeln!(stdout(), "ready").context("cannot write to standard output")
}

async fn ingest_models(plan: &Plan) -> anyhow::Result<baton_ingest::Models> {
    let mut generators = BTreeMap::new();
    for (name, model) in &plan.models {
        let model = model.clone();
        let vocabulary = spawn_blocking(move || context::vocabulary(&model)).await?;
        generators.insert(name.clone(), Generator::new(vocabulary.with_context(|| format!("model {name}"))?));
    }
    Ok(baton_ingest::Models { generators, default: plan.default_model.clone() })
}
