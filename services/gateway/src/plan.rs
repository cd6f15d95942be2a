//! What a pipeline's plan says to its gateway.

use std::path::Path;

use baton_contract::subject::Stage;
use baton_storage::{seal, seal::SealKey, store::Store};
use baton_topology::Plan;

use crate::{Facts, Options, batches, webhooks};

/// What is wrong with a plan's gateway.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// `gateway.webhook_allow` holds something else than addresses.
    #[error(transparent)]
    Range(#[from] webhooks::Malformed),
    /// `store.key_file` holds no key.
    #[error(transparent)]
    Seal(#[from] seal::Error),
}

impl Options {
    /// How the gateway of a plan serves. Users' files lie in `store`, which must keep what a loss of power would take.
    pub fn of(plan: &Plan, store: Store) -> Result<Self, Error> {
        let settings = &plan.gateway;
        let allow = settings.webhook_allow.iter().map(|range| range.parse()).collect::<Result<_, _>>()?;
        Ok(Self {
            listen: settings.listen,
            keys_file: settings.keys_file.as_deref().map(Path::new).map(Path::to_owned),
            open: settings.open,
            hosts: settings.hosts.clone(),
            cors_origins: settings.cors_origins.clone(),
            max_connections: settings.max_connections,
            body_memory: settings.body_memory.0,
            facts: Facts {
                root: plan.root.clone(),
                models: plan.models.keys().cloned().collect(),
                engines: plan.engines(),
                default_model: plan.default_model.clone(),
                lanes: plan.lanes.clone(),
                stages: Stage::ALL.into_iter().filter(|&stage| stage != Stage::Prefill || plan.has_prefill()).collect(),
            },
            store: Some(store),
            seal: plan.store.key_file.as_ref().map(|path| SealKey::read(path.as_ref())).transpose()?,
            batches: batches::Options {
                slots: settings.batches,
                ack_wait: settings.ack_wait,
                replicas: plan.broker.replicas,
                max_output: settings.max_output.0,
            },
            webhooks: Some(webhooks::Options { allow }),
        })
    }
}
