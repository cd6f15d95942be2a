//! The work queues of the stages.

use baton_contract::{
    Name,
    subject::{Layout, Stage},
};

/// One work queue: all workers that serve it share its messages.
pub(crate) struct Queue {
    pub(crate) stage: Stage,
    /// Every stage but ingest has one queue a model.
    model: Option<Name>,
    pub(crate) lane: Name,
}

impl Queue {
    /// A queue of a stage that has one for each model.
    pub(crate) fn of(stage: Stage, model: &Name, lane: &Name) -> Self {
        Self { stage, model: Some(model.clone()), lane: lane.clone() }
    }

    /// The queues of a stage.
    pub(crate) fn all(stage: Stage, models: &[Name], lanes: &[Name]) -> Vec<Self> {
        let queue = |model: Option<&Name>, lane: &Name| Self { stage, model: model.cloned(), lane: lane.clone() };
        match stage {
            Stage::Ingest => lanes.iter().map(|lane| queue(None, lane)).collect(),
            Stage::Prefill | Stage::Decode => {
                let of_model = |model| lanes.iter().map(move |lane| queue(Some(model), lane));
                models.iter().flat_map(of_model).collect()
            }
        }
    }

    /// The name of the durable consumer.
    pub(crate) fn durable(&self) -> String {
        Layout::queue_consumer(self.model.as_ref(), &self.lane)
    }

    /// What the consumer takes.
    pub(crate) fn subject(&self, layout: &Layout) -> String {
        layout.queue(self.stage, self.model.as_ref(), &self.lane)
    }
}
