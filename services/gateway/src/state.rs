//! What every route may use.

use std::sync::Arc;

use baton_bus::{Bus, answers::Answers, clock::Clock, jobs::Jobs, stats::Watch};
use baton_contract::Name;
use baton_storage::files::Files;
use tokio::sync::OnceCell;
use tokio_util::sync::CancellationToken;

use crate::{
    auth::{Key, KeysFile},
    batches::Desk,
    budget::Budget,
    metrics::Metrics,
    sites::Sites,
    webhooks,
};

/// The pipeline as a gateway knows it from its plan.
#[derive(Clone, Debug)]
pub struct Facts {
    /// The word that all subjects stand under.
    pub root: Name,
    /// At least one.
    pub models: Vec<Name>,
    /// One of them: that of a request that names none.
    pub default_model: Name,
    /// At least one; the first is the lane of a request that names none.
    pub lanes: Vec<Name>,
}

impl Facts {
    /// The lane of a request that names none.
    pub fn default_lane(&self) -> &Name {
        // A plan has at least one; without any, the model's name is no lane and the request is refused by ingest.
        self.lanes.first().unwrap_or(&self.default_model)
    }
}

/// What every route may use. Cheap to clone.
#[derive(Clone, Debug)]
pub struct State {
    pub bus: Bus,
    /// Records and results of jobs.
    pub jobs: Jobs,
    /// Asks for jobs and waits for their answers.
    pub client: Answers,
    /// What the pipeline has.
    pub facts: Arc<Facts>,
    /// The bytes of users' files. Without a store there are no files and no batches.
    pub files: Option<Files>,
    /// What files, batches and webhooks keep on the bus.
    pub(crate) desk: Desk,
    /// How webhooks are called, if they are.
    pub(crate) webhooks: Option<Arc<webhooks::Options>>,
    /// The broker's time: deadlines and ages are by no other.
    pub(crate) clock: Clock,
    /// Room for requests and answers.
    pub(crate) budget: Budget,
    /// Where requests may come from.
    pub(crate) sites: Arc<Sites>,
    pub(crate) metrics: Metrics,
    /// The pipeline's numbers, once somebody asks for them.
    pub(crate) watch: Arc<OnceCell<Watch>>,
    /// Without keys everybody is one tenant.
    pub(crate) keys: Option<Arc<KeysFile>>,
    pub(crate) everybody: Arc<Key>,
    /// When the process began, in seconds since 1970.
    pub(crate) started: u64,
    /// Cancelled when the gateway stops: streams that have no end of their own end then.
    pub(crate) closing: CancellationToken,
}
