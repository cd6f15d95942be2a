//! The instances of a model, and which of them gets the next request.

use std::{sync::Arc, time::Duration};

use baton_contract::stats;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio_util::sync::CancellationToken;

use crate::{Error, Instance, Options};

/// Requests at an instance while nothing is known of it.
const FIRST: usize = 8;

/// A model that foreign engines serve. Cheap to clone; clones share what they learn.
#[derive(Clone, Debug)]
pub struct Upstream(Arc<Pool>);

#[derive(Debug)]
struct Pool {
    options: Options,
    instances: Vec<Instance>,
    prefills: Vec<Instance>,
    room: Arc<Semaphore>,
    slots: watch::Sender<usize>,
}

/// A request's place at an instance; given up when it is dropped.
#[derive(Debug)]
pub struct Place {
    instance: Instance,
    _room: OwnedSemaphorePermit,
}

/// What came of a request, as far as the instance is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It was answered, with so many tokens.
    Answered {
        /// Of all answers.
        tokens: u32,
    },
    /// The engine refused it, through the request's own fault.
    Refused,
    /// The engine has no room (429, 503), and names a pause.
    PutOff(Option<Duration>),
    /// The instance can't be reached, is silent, or says what no engine says.
    Faulty,
    /// Nobody wants it any more.
    Left,
}

impl Upstream {
    /// Makes clients for all instances; asks none.
    ///
    /// # Errors
    ///
    /// Files of keys and certificates that can't be used.
    pub fn new(options: Options) -> Result<Self, Error> {
        let (instances, prefills) = Instance::all(&options)?;
        let all = options.max_running.unwrap_or(FIRST) * instances.len();
        let (room, slots) = (Arc::new(Semaphore::new(all)), watch::Sender::new(all));
        Ok(Self(Arc::new(Pool { options, instances, prefills, room, slots })))
    }

    /// What it was made with.
    pub fn options(&self) -> &Options {
        &self.0.options
    }

    /// How many jobs a worker may hold for this model now; it changes as the engine's load does.
    pub fn slots(&self) -> watch::Receiver<usize> {
        self.0.slots.subscribe()
    }

    /// Looks after the instances until `stop`: whether they are there, and what they tell of their queues.
    pub async fn run(&self, stop: CancellationToken) {
        stop.cancelled().await;
    }

    /// Waits for room at an instance. Requests of equal `affinity` (tenant and beginning of the prompt) go to the same one
    /// while it is not overloaded.
    pub async fn place(&self, affinity: u64) -> Place {
        let pool = &self.0;
        let instance = pool.instances[affinity as usize % pool.instances.len()].clone();
        match pool.room.clone().acquire_owned().await {
            Ok(room) => Place { instance, _room: room },
            // It is never closed.
            Err(_) => std::future::pending().await,
        }
    }

    /// The same at an instance that only prefills.
    pub async fn place_prefill(&self, affinity: u64) -> Place {
        let mut place = self.place(affinity).await;
        if let Some(instance) = self.0.prefills.first() {
            place.instance = instance.clone();
        }
        place
    }

    /// What is told of the instances.
    pub fn stats(&self) -> Vec<stats::Upstream> {
        Vec::new()
    }
}

impl Place {
    /// Where the request is to be put.
    pub fn instance(&self) -> &Instance {
        &self.instance
    }

    /// The answer's first token has come.
    pub fn first_token(&mut self) {}

    /// The prompt's KV cache came from another instance, or was to come and was computed again.
    pub fn transferred(&mut self, _came: bool) {}

    /// The request has ended.
    pub fn end(self, _ended: Ended) {}
}
