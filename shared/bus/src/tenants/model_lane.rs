//! What waits in one line.

use baton_contract::{Name, job::Job};

/// The jobs of one model and lane.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct ModelLane {
    pub(crate) model: Name,
    pub(crate) lane: Name,
}

impl ModelLane {
    pub(super) fn of(job: &Job) -> Self {
        Self { model: job.model.clone(), lane: job.lane.clone() }
    }
}
