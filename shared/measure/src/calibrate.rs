//! What a model, the store and the bus cost on this machine, as a profile for `baton plan`.

mod beside;
mod bus;
mod engine;
pub mod foreign;
mod store;

use std::ffi::OsString;

use baton_model::{
    model::{self, Compute},
    source::Source,
    threads::ComputeThreads,
};
use baton_planner::profile::{Bus, Decode, Fit, Host, Kv, Prefill, Profile};
use baton_storage::codec::Codec;
use tokio::task::spawn_blocking;

use self::beside::Beside;
pub use self::beside::keep_company;
use crate::{engine::Engine, error::Error, progress::Steps};

/// What is measured, and how.
#[derive(Clone, Debug)]
pub struct Options {
    /// The profile's name for the model.
    pub name: String,
    /// Where the model lies.
    pub source: Source,
    /// What computes it.
    pub engine: Engine,
    /// How it computes.
    pub compute: Compute,
    /// Bytes for the KV caches that are measured with; sizes that don't fit are left out.
    pub kv_memory: u64,
    /// How chunks are packed.
    pub codec: Codec,
    /// Tokens of a chunk.
    pub chunk_tokens: usize,
    /// URL of the object store; without it a directory of its own.
    pub store: Option<String>,
    /// How often every size is measured.
    pub repeat: usize,
    /// Other engines that compute at the same time, as workers that share this machine do.
    pub neighbours: Neighbours,
}

/// Other engines, which this program runs as processes of its own.
#[derive(Clone, Debug, Default)]
pub struct Neighbours {
    /// How many; with any, one more stands for the worker's own while messages and chunks are measured.
    pub count: u16,
    /// The arguments that make this program one of them: it is to call [`keep_company`].
    pub arguments: Vec<OsString>,
}

/// What each part of the measurement found.
struct Found {
    engine: engine::Measured,
    bus: bus::Measured,
    store: store::Measured,
    /// Seconds that the sim engine takes by its settings, for a prompt's token and for a step.
    sim: (f64, f64),
}

/// Measures the engine, then the bus and the store, and makes a profile of it.
///
/// # Errors
///
/// If a part can't be started or fails, too few sizes fit the memory, or no coefficients explain the times.
pub async fn run(options: Options, mut steps: Steps) -> Result<Profile, Error> {
    let (source, sim) = without_times(options.source.clone());
    let (engine, beside, mut steps) = {
        let options = options.clone();
        steps.doing("loading the model");
        spawn_blocking(move || engine(&options, &source, steps)).await??
    };
    steps.doing("the bus");
    let bus = bus::measure(beside.processes()).await?;
    steps.doing("the store");
    let Options { store, codec, repeat, .. } = &options;
    let store = store::measure(store.as_deref(), engine.shape, *codec, &engine.blocks, *repeat).await?;
    drop(beside);
    Ok(Found { engine, bus, store, sim }.profile(&options))
}

/// Measures the engine as that of a worker with one model, its neighbours beside it; leaves these at work.
fn engine(options: &Options, source: &Source, mut steps: Steps) -> Result<(engine::Measured, Beside, Steps), Error> {
    let Options { engine, compute, kv_memory, chunk_tokens, repeat, neighbours, .. } = options;
    let own = model::Options { compute: *compute, kv_bytes: *kv_memory, ..model::Options::default() };
    let mut model = engine.load(source, own)?;
    ComputeThreads::of_one_in(1)?.run(move || {
        let mut beside = Beside::start(neighbours)?;
        let sizes = engine::Sizes { kv_bytes: *kv_memory, chunk_tokens: *chunk_tokens, repeat: *repeat };
        let measured = engine::measure(model.as_mut(), sizes, &mut beside, &mut steps)?;
        beside.all()?;
        Ok((measured, beside, steps))
    })
}

/// The sim engine's times, for a prompt's token and for a step, are known: what it takes besides is measured.
fn without_times(source: Source) -> (Source, (f64, f64)) {
    match source {
        Source::Sim(sim) => {
            let times = (sim.prefill_s_per_token, sim.decode_s_per_step);
            let still = baton_model::sim::Options { prefill_s_per_token: 0.0, decode_s_per_step: 0.0, ..sim };
            (Source::Sim(still), times)
        }
        source => (source, (0.0, 0.0)),
    }
}

impl Found {
    fn profile(self, options: &Options) -> Profile {
        let Self { engine: engine::Measured { prefill, decode, transfer, kv, .. }, bus, store, sim } = self;
        let [s_per_pass, s_per_prompt, s_per_token, s_per_token_context] = prefill.coefficients;
        let [s_per_step, s_per_sequence, s_per_context_token] = decode.coefficients;
        let (sim_token_s, sim_step_s) = sim;
        let device = &options.engine.device;
        Profile {
            name: match options.neighbours.count {
                0 => format!("{} on {device}", options.name),
                others => format!("{} on {device}, beside {others}", options.name),
            },
            kv: Kv { stored_bytes_per_token: store.bytes_per_token, ..kv },
            prefill: Prefill {
                s_per_pass,
                s_per_prompt,
                s_per_token: s_per_token + sim_token_s,
                s_per_token_context,
                ..Prefill::default()
            },
            decode: Decode {
                s_per_step: s_per_step + sim_step_s,
                s_per_sequence,
                s_per_context_token,
                ..Decode::default()
            },
            transfer,
            store: store.costs,
            bus: Bus { hop_s: bus.hop_s, ingest_s: 0.0 },
            host: bus.cpu_s.map(|[cpu_s_per_job, cpu_s_per_step, cpu_s_per_token]| Host {
                cpu_s_per_job,
                cpu_s_per_step,
                cpu_s_per_token,
                ..store.host
            }),
            fit: Some(Fit {
                prefill_mean_error: prefill.mean_error,
                prefill_max_error: prefill.max_error,
                decode_mean_error: decode.mean_error,
                decode_max_error: decode.max_error,
                store_mean_error: store.mean_error,
                store_max_error: store.max_error,
            }),
        }
    }
}
