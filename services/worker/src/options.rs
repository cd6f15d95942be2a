//! How a plan becomes the options of each stage.

use std::time::Duration;

use baton_assembly::signals;
use baton_bus::{stage::pull, tenants};
use baton_contract::{Name, Role, subject::Stage};
use baton_topology::{Compute, Model, Plan, Upstream};
use tokio::sync::watch;

/// Jobs of one model that a worker may have at foreign engines, however many these take.
const MOST_FOREIGN: usize = 65_536;

/// What a role of computing workers has.
pub(crate) fn compute(role: Role, plan: &Plan) -> &Compute {
    match role {
        Role::Prefill => &plan.stages.prefill.compute,
        Role::Decode => &plan.stages.decode.compute,
    }
}

/// Those of a role's models that the worker computes itself.
pub(crate) fn own(plan: &Plan, role: Role) -> Vec<Name> {
    let own = |name: &&Name| plan.models.get(name).is_some_and(|model| model.is_own());
    compute(role, plan).models.iter().filter(own).cloned().collect()
}

/// Whether there are any.
pub(crate) fn has_own(plan: &Plan, role: Role) -> bool {
    !own(plan, role).is_empty()
}

/// How a stage takes the jobs of a foreign model, as many at once as there is `room` for.
pub(crate) fn pull_foreign(plan: &Plan, role: Role, model: &Name, room: watch::Receiver<usize>) -> pull::Options {
    let pull = pull(plan, role.stage(), &compute(role, plan).stage, std::slice::from_ref(model));
    pull::Options { slots: MOST_FOREIGN, room: Some(room), ..pull }
}

pub(crate) fn ingest(plan: &Plan) -> baton_ingest::Options {
    baton_ingest::Options {
        pull: pull(plan, Stage::Ingest, &plan.stages.ingest, &[]),
        decode_prefills: plan.stages.decode.prefill_tokens,
        waiting: waiting(plan),
    }
}

pub(crate) fn prefill(plan: &Plan, pull: pull::Options, worker: String) -> baton_prefill::Options {
    baton_prefill::Options {
        pull,
        chunk_tokens: plan.store.chunk_tokens,
        batch_tokens: plan.stages.prefill.batch_tokens,
        decode_prefills: plan.stages.decode.prefill_tokens,
        worker,
    }
}

pub(crate) fn decode(plan: &Plan, pull: pull::Options, worker: String) -> baton_decode::Options {
    let checkpoint = Duration::from_millis(plan.stages.decode.checkpoint_ms as u64);
    baton_decode::Options { pull, worker, checkpoint }
}

/// The foreign models whose jobs `own` ones answer, too.
pub(crate) fn fallbacks(plan: &Plan, own: &[Name]) -> Vec<baton_decode::Fallback> {
    let fallback = |(model, foreign): (&Name, &Model)| match foreign {
        Model::Upstream(Upstream { fallback: Some(fallback), .. }) if own.contains(&fallback.model) => {
            let (model, own, after) = (model.clone(), fallback.model.clone(), fallback.after);
            Some(baton_decode::Fallback { model, own, after })
        }
        _ => None,
    };
    plan.models.iter().filter_map(fallback).collect()
}

/// How a stage takes its jobs.
pub(crate) fn pull(plan: &Plan, stage: Stage, settings: &baton_topology::Stage, models: &[Name]) -> pull::Options {
    pull::Options {
        stage,
        models: models.to_vec(),
        lanes: plan.lanes.clone(),
        slots: settings.slots,
        room: None,
        ack_wait: settings.ack_wait,
        max_deliver: settings.max_deliver as u64,
        drain: signals::DRAIN,
    }
}

/// How the plan's tenants share it.
fn waiting(plan: &Plan) -> tenants::Options {
    let share = |tenant: &baton_topology::Tenant| tenants::Share {
        weight: tenant.weight as u64,
        max_running: tenant.max_running.map(|jobs| jobs as u64),
    };
    tenants::Options {
        lanes: plan.lanes.clone(),
        tenants: plan.tenants.iter().map(|(name, tenant)| (name.clone(), share(tenant))).collect(),
        tenant_backlog: plan.limits.tenant_backlog.map(|jobs| jobs as u64),
    }
}
