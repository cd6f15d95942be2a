//! The instances of a model, and which of them gets the next request.

mod look;
mod side;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use baton_contract::stats;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use self::side::{Held, Side};
use crate::{Ended, Error, Instance, Options};

/// A model that foreign engines serve. Cheap to clone; clones share what they learn.
#[derive(Clone, Debug)]
pub struct Upstream(Arc<Pool>);

#[derive(Debug)]
struct Pool {
    options: Options,
    decodes: Arc<Side>,
    prefills: Arc<Side>,
}

/// A request's place at an instance; given up when it is dropped.
#[derive(Debug)]
pub struct Place(Held);

impl Upstream {
    /// Makes clients for all instances; asks none.
    ///
    /// # Errors
    ///
    /// Files of keys and certificates that can't be used.
    pub fn new(options: Options) -> Result<Self, Error> {
        let (decodes, prefills) = Instance::all(&options)?;
        let side = |instances| Arc::new(Side::new(instances, options.max_running));
        let (decodes, prefills) = (side(decodes), side(prefills));
        Ok(Self(Arc::new(Pool { options, decodes, prefills })))
    }

    /// What it was made with.
    pub fn options(&self) -> &Options {
        &self.0.options
    }

    /// Its instances; where some only prefill, those that decode.
    pub fn instances(&self) -> &[Instance] {
        &self.0.decodes.instances
    }

    /// Those that only prefill.
    pub fn prefill_instances(&self) -> &[Instance] {
        &self.0.prefills.instances
    }

    /// How many jobs a worker may hold for this model now; it changes as the engine's load does.
    pub fn slots(&self) -> watch::Receiver<usize> {
        self.0.decodes.slots()
    }

    /// The same for jobs that are prefilled apart.
    pub fn prefill_slots(&self) -> watch::Receiver<usize> {
        self.0.prefills.slots()
    }

    /// Looks after the instances until `stop`: whether they are there, and what they tell of their queues. Those that nobody
    /// has wanted a place at, or slots of, are left alone.
    pub async fn run(&self, stop: CancellationToken) {
        let both = futures::future::join(self.0.decodes.look_after(), self.0.prefills.look_after());
        tokio::select! {
            _ = both => {}
            () = stop.cancelled() => {}
        }
    }

    /// Whether an instance is up, as far as is known.
    pub fn is_up(&self) -> bool {
        self.0.decodes.is_up()
    }

    /// The same for those that only prefill.
    pub fn is_prefill_up(&self) -> bool {
        self.0.prefills.is_up()
    }

    /// Waits for room at an instance. Requests of equal `affinity` (tenant and beginning of the prompt) go to the same one
    /// while it is not overloaded.
    pub async fn place(&self, affinity: u64) -> Place {
        Place(Side::place(&self.0.decodes, affinity).await)
    }

    /// The same at an instance that only prefills; without any of those it waits for ever.
    pub async fn place_prefill(&self, affinity: u64) -> Place {
        Place(Side::place(&self.0.prefills, affinity).await)
    }

    /// What is told of the instances that are looked after.
    pub fn stats(&self) -> Vec<stats::Upstream> {
        let sides = [&self.0.decodes, &self.0.prefills];
        sides.into_iter().flat_map(|side| side.stats(&self.0.options.name)).collect()
    }
}

impl Place {
    /// Where the request is to be put.
    pub fn instance(&self) -> &Instance {
        self.0.instance()
    }

    /// The answer's first token has come.
    pub fn first_token(&mut self) {
        self.0.first_token();
    }

    /// The prompt's KV cache came from another instance, or was to come and was computed again.
    pub fn transferred(&mut self, came: bool) {
        self.0.transferred(came);
    }

    /// The request has ended.
    pub fn end(self, ended: Ended) {
        self.0.end(ended);
    }
}
