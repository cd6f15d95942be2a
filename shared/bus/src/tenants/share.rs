//! How tenants share a pipeline.

use std::collections::BTreeMap;

use baton_contract::Name;

/// How tenants share the pipeline.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The most urgent first.
    pub lanes: Vec<Name>,
    /// What is set for single tenants.
    pub tenants: BTreeMap<Name, Share>,
    /// Jobs of each tenant that may wait, of each model and lane; the stream's own limit.
    pub tenant_backlog: Option<u64>,
}

/// What one tenant has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// Jobs in a turn, at least 1.
    pub weight: u64,
    /// Jobs that may be past the waiting queue at once.
    pub max_running: Option<u64>,
}

impl Default for Share {
    fn default() -> Self {
        Self { weight: 1, max_running: None }
    }
}

impl Options {
    pub(super) fn share(&self, tenant: &Name) -> Share {
        self.tenants.get(tenant).copied().unwrap_or_default()
    }
}
