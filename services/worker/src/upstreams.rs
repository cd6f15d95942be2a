//! The foreign engines that a computing worker asks, whatever its role: one client for each model, which goes on learning how many
//! requests they answer fastest with when the role changes.

use std::sync::Arc;

use baton_assembly::upstreams;
use baton_bus::duty::stats;
use baton_contract::{Name, Role};
use baton_topology::{Model, Plan};
use baton_upstream::Upstream;
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use crate::{Error, options::compute};

/// The clients of a worker's foreign models.
pub(crate) struct Upstreams {
    all: Vec<(Name, Upstream)>,
    _watches: Vec<AbortOnDropHandle<()>>,
}

impl Upstreams {
    /// Makes a client for each foreign model of some roles, and looks after the engines until `stop`.
    pub(crate) fn open(plan: &Plan, roles: &[Role], stop: &CancellationToken) -> Result<Self, Error> {
        let mut all = Vec::new();
        for (name, model) in &plan.models {
            let is_served = roles.iter().any(|&role| compute(role, plan).models.contains(name));
            if let Model::Upstream(upstream) = model
                && is_served
            {
                all.push((name.clone(), upstreams::open(name, upstream)?));
            }
        }
        let watch = |upstream: Upstream| {
            let stop = stop.clone();
            AbortOnDropHandle::new(tokio::spawn(async move { upstream.run(stop).await }))
        };
        let watches = all.iter().map(|(_, upstream)| watch(upstream.clone())).collect();
        Ok(Self { all, _watches: watches })
    }

    /// Those that a role has something to ask of.
    pub(crate) fn of(&self, plan: &Plan, role: Role) -> Vec<(Name, Upstream)> {
        let asks = |name: &Name| match role {
            Role::Prefill => plan.models.get(name).is_some_and(Model::is_prefilled),
            Role::Decode => true,
        };
        let served = |(name, _): &&(Name, Upstream)| compute(role, plan).models.contains(name) && asks(name);
        self.all.iter().filter(served).cloned().collect()
    }

    /// What is told of them.
    pub(crate) fn stats(&self) -> stats::Upstreams {
        let all: Vec<Upstream> = self.all.iter().map(|(_, upstream)| upstream.clone()).collect();
        stats::Upstreams(Arc::new(move || all.iter().flat_map(Upstream::stats).collect()))
    }
}
