//! What a pipeline's plan says to the planner and to the simulation.

use baton_contract::Name;
use baton_topology::{Compute, Device, Model, Plan, Upstream};

use crate::{
    decide::{self, Bounds, Switch},
    profile::Profile,
    search::Split,
    simulate::{self, Flow, Pool, Slo},
};

/// Seconds of a worker's work that a change of role has done again: chunks are fetched anew, batches fill up again.
const LOST_WORK_S: f64 = 1.0;

/// Why a plan's splits are not simulated.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A profile lacks what is needed to share cores.
    #[error("--cores needs what a profile says under [host]: measure one with `baton calibrate`, on Linux")]
    NoHost,
    /// A model that computes has no costs of its own.
    #[error("model {model} needs a profile: measure one with `baton calibrate`, and name it with --profile")]
    NoProfile {
        /// The model.
        model: Name,
    },
    /// Engines that wait for each other's cores are not simulated.
    #[error(
        "the engines of {split} compute on {needed} cores, and --cores is {cores}: compare fewer workers, or give them fewer \
         threads, as in --set stages.prefill.threads=1 --set stages.decode.threads=1"
    )]
    Cores {
        /// The split.
        split: Split,
        /// Cores that it computes on.
        needed: usize,
        /// Cores that there are.
        cores: usize,
    },
}

/// The profile of a model: the one that is named, or the one that a model of the sim engine needs no file for.
pub fn profile(name: &Name, model: &Model, named: Option<Profile>) -> Result<Profile, Error> {
    match (named, model) {
        (Some(profile), _) => Ok(profile),
        (None, Model::Sim(sim)) => {
            let bytes = (sim.layers * sim.kv_width * 4) as f64;
            Ok(Profile::sim(sim.prefill_s_per_token, sim.decode_s_per_step, bytes))
        }
        (None, _) => Err(Error::NoProfile { model: name.clone() }),
    }
}

/// The splits of so many workers that are compared for a model: pools of 1 to so many instances where foreign engines prefill and
/// decode alike.
pub fn splits(model: &Model, workers: usize) -> Vec<Split> {
    match model {
        Model::Upstream(upstream) if upstream.prefill_urls.is_empty() => {
            (1..=workers).map(|decode| Split { prefill: 0, decode }).collect()
        }
        _ => Split::of(workers),
    }
}

/// A simulated planner that may change the roles of any workers.
pub fn at_will() -> decide::Options {
    let bounds = Bounds { floor: 1, ceiling: 256 };
    decide::Options {
        interval_s: 1.0,
        prefill: bounds,
        decode: bounds,
        switch: Switch { drain_s: 1.0, lost_work_s: LOST_WORK_S },
        profile: None,
    }
}

/// How the planner of a running pipeline decides, with the profile that the plan names.
pub fn decided(plan: &Plan, profile: Option<Profile>) -> decide::Options {
    let settings = &plan.planner;
    let bounds = |bounds: baton_topology::Bounds| Bounds { floor: bounds.floor, ceiling: bounds.ceiling };
    decide::Options {
        interval_s: settings.interval.as_secs_f64(),
        prefill: bounds(settings.prefill),
        decode: bounds(settings.decode),
        switch: Switch { drain_s: settings.drain.as_secs_f64(), lost_work_s: LOST_WORK_S },
        profile: profile.map(|profile| (profile, plan.stages.decode.compute.stage.slots)),
    }
}

/// What is simulated of a plan with the profiles of prefill and decode, but for the numbers of workers and the load. A profile's
/// slots, batch_tokens and kv_tokens win over the plan's; `kv_bytes` says what a worker's KV caches may take.
pub fn simulated<E>(
    plan: &Plan,
    (prefill, decode): (Profile, Profile),
    kv_bytes: impl Fn(&Compute) -> Result<u64, E>,
    cores: Option<usize>,
) -> Result<simulate::Options, E> {
    let stages = &plan.stages;
    let batch_tokens = prefill.prefill.batch_tokens.unwrap_or(stages.prefill.batch_tokens);
    let pool = |settings: &Compute, slots: Option<usize>, kv_tokens: Option<usize>, profile: Profile| {
        let kv_tokens = match kv_tokens {
            Some(tokens) => tokens,
            None => profile.tokens_in(kv_bytes(settings)? / settings.models.len().max(1) as u64),
        };
        let slots = slots.unwrap_or(settings.stage.slots);
        Ok(Pool { workers: 1, slots, kv_tokens, threads: threads(settings, cores), profile })
    };
    let (slots, kv_tokens) = (prefill.prefill.slots, prefill.prefill.kv_tokens);
    let prefill = pool(&stages.prefill.compute, slots, kv_tokens, prefill)?;
    let (slots, kv_tokens) = (decode.decode.slots, decode.decode.kv_tokens);
    let decode = pool(&stages.decode.compute, slots, kv_tokens, decode)?;
    Ok(simulate::Options {
        prefill,
        decode,
        ingest_workers: stages.ingest.replicas.max(1),
        batch_tokens,
        chunk_tokens: plan.store.chunk_tokens,
        block_tokens: plan.store.chunk_tokens,
        store_bytes: plan.store.max_bytes.map(|bytes| bytes.0),
        decode_prefills: stages.decode.prefill_tokens,
        flow: Flow::Planned,
        slo: Slo { ttft_s: None, itl_s: None },
        planner: None,
        cores,
    })
}

impl simulate::Options {
    /// The same for a model that foreign engines serve: where each instance prefills and decodes, decode computes all prompts.
    pub fn of_foreign(self, upstream: &Upstream) -> Self {
        match upstream.prefill_urls.is_empty() {
            true => Self { decode_prefills: usize::MAX, ..self },
            false => Self { decode_prefills: 0, ..self },
        }
    }
}

fn threads(settings: &Compute, cores: Option<usize>) -> usize {
    match (settings.device, settings.threads) {
        (Device::Cuda | Device::Wgpu, _) => 0,
        // Those that the pipeline leaves open are all there are.
        (Device::Flex, 0) => cores.unwrap_or(1),
        (Device::Flex, threads) => threads,
    }
}

impl simulate::Options {
    /// Checks that the engines of each split have cores of their own.
    pub fn fit_cores(&self, splits: &[Split], cores: usize) -> Result<(), Error> {
        if [&self.prefill, &self.decode].iter().any(|pool| pool.profile.host.is_none()) {
            return Err(Error::NoHost);
        }
        let most = self.prefill.threads.max(self.decode.threads);
        let threads = |split: &Split| match self.planner {
            // A worker that changes its role brings its cores.
            Some(_) => (split.prefill + split.decode) * most,
            None => split.prefill * self.prefill.threads + split.decode * self.decode.threads,
        };
        match splits.iter().find(|split| threads(split) > cores) {
            Some(split) => Err(Error::Cores { split: *split, needed: threads(split), cores }),
            None => Ok(()),
        }
    }
}
