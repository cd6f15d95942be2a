//! How a plan becomes the options of each stage.

use std::time::Duration;

use baton_assembly::signals;
use baton_bus::{stage::pull, tenants};
use baton_contract::{Name, subject::Stage};
use baton_topology::Plan;

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
