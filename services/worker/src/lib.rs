//! A worker: one process that serves one stage at a time.
//!
//! It turns a plan into the options of ingest, prefill and decode, loads the models once ([`models`]), asks foreign engines (`upstreams`), changes between prefill
//! and decode when it is asked to ([`roles`]), and looks after the store in its turn ([`collector`]). [`alone`]
//! answers without broker and store.
//!
//! It is the only user of the stages besides the command line, and must never do a stage's work itself.
#![forbid(unsafe_code)]

pub mod alone;
pub mod collector;
mod error;
pub mod memory;
pub mod models;
mod options;
mod roles;
pub mod stock;
mod upstreams;

use std::collections::BTreeMap;

use baton_assembly::{self as assembly, Found, serving::Process};
use baton_bus::{Bus, duty::stats};
use baton_contract::{Role, subject::Stage};
use baton_model::generation::Generator;
use baton_topology::{Model, Plan};
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;

use self::roles::Flexible;
pub use self::{
    error::{Error, NotLoaded},
    roles::Ready,
};

/// What a worker is to do.
pub enum Assignment {
    /// Requests become jobs.
    Ingest,
    /// Prefill or decode, one at a time.
    Compute {
        /// What it may be, at least one.
        roles: Vec<Role>,
        /// What it is first, one of them.
        first: Role,
    },
}

impl Assignment {
    /// What the worker is called in traces, and in its name if it has none of its own.
    pub fn service(&self) -> &'static str {
        match self {
            Self::Ingest => "ingest",
            Self::Compute { roles, first } => match roles[..] {
                [_] => first.stage().as_str(),
                _ => "worker",
            },
        }
    }
}

/// Serves the pipeline until the process is asked to stop and has drained. `worker` names it in claims, results and traces.
pub async fn run(found: &Found, assignment: Assignment, worker: &str, ready: Ready<'_>) -> Result<(), Error> {
    let uses_store = |plan: &Plan| match &assignment {
        Assignment::Ingest => false,
        Assignment::Compute { roles, .. } => roles.iter().any(|&role| options::has_own(plan, role)),
    };
    let ready = || {
        tracing::info!(worker, "the worker is ready");
        ready()
    };
    Process { kind: "worker", service: assignment.service(), name: worker, uses_store: &uses_store }
        .serve(found, async |plan, bus, shutdown| {
            match &assignment {
                Assignment::Ingest => ingest(plan, bus, worker, &ready, shutdown).await?,
                Assignment::Compute { roles, first } => {
                    if uses_store(plan) {
                        // The stages that use the store look after it, too.
                        tokio::spawn(collector::keep(plan.clone(), bus.clone(), shutdown.clone()));
                    }
                    Flexible { plan, worker, roles: roles.clone(), ready: &ready, shutdown }.serve(bus, *first).await?;
                }
            }
            tracing::info!("the worker has drained");
            Ok(())
        })
        .await
}

async fn ingest(
    plan: &Plan,
    bus: &Bus,
    worker: &str,
    ready: Ready<'_>,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let models = ingest_models(plan).await?;
    let options = options::ingest(plan);
    ready()?;
    let identity = stats::Identity {
        worker: worker.to_owned(),
        stage: Stage::Ingest,
        roles: vec![Stage::Ingest],
        models: plan.models.keys().cloned().collect(),
        slots: options.pull.slots,
        upstreams: stats::Upstreams::default(),
    };
    Ok(bus.telling(identity, &shutdown, baton_ingest::run(bus.clone(), options, models, shutdown.clone())).await?)
}

async fn ingest_models(plan: &Plan) -> Result<baton_ingest::Models, Error> {
    let (mut generators, mut upstreams) = (BTreeMap::new(), BTreeMap::new());
    for (name, model) in &plan.models {
        if let Model::Upstream(upstream) = model {
            let apart = upstream.is_prefilled_apart();
            upstreams.insert(name.clone(), baton_ingest::Upstream { engine: upstream.engine, apart });
            continue;
        }
        let model = model.clone();
        let vocabulary = spawn_blocking(move || assembly::models::vocabulary(&model)).await?;
        let vocabulary = vocabulary.map_err(|source| Error::Vocabulary { model: name.clone(), source })?;
        generators.insert(name.clone(), Generator::new(vocabulary));
    }
    Ok(baton_ingest::Models { generators, upstreams, default: plan.default_model.clone() })
}
