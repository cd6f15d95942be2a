//! `baton worker`: one worker of one stage.

use std::{collections::BTreeMap, io::Write, time::Duration};

use anyhow::Context;
use baton_bus::pull;
use baton_contract::{Name, kv, subject::Stage};
use baton_engine::{
    generation::Generator,
    model::{self, Model},
};
use baton_storage::{
    cache::{self, Cache},
    codec::Codec,
    kv::KvStore,
    seal::SealKey,
};
use baton_topology::{Compute, Mode, Plan};
use clap::ValueEnum;
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;

use crate::{
    collector,
    context::{self, PipelineArguments},
    memory,
};

/// What a worker gets from SIGTERM until it hands back what it holds.
pub const DRAIN: Duration = Duration::from_secs(20);

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  baton worker decode --nats nats://10.0.0.1:4222 --store s3://kv/baton
  baton worker prefill --pipeline pipelines/balanced.toml --name prefill-7

Any number of workers of a stage share its queue; add and remove them at any time. Once a worker takes jobs, it prints a \
line `ready` to its standard output. SIGTERM and Ctrl-C drain it.")]
pub struct Arguments {
    stage: StageName,
    #[command(flatten)]
    pipeline: PipelineArguments,
    /// Names the worker in claims, results and traces; without it the stage and the process id
    #[arg(long)]
    name: Option<String>,
}

#[derive(Clone, Copy, ValueEnum)]
enum StageName {
    Ingest,
    Prefill,
    Decode,
}

impl From<StageName> for Stage {
    fn from(name: StageName) -> Self {
        match name {
            StageName::Ingest => Self::Ingest,
            StageName::Prefill => Self::Prefill,
            StageName::Decode => Self::Decode,
        }
    }
}

pub async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let stage = Stage::from(arguments.stage);
    let plan = arguments.pipeline.running_plan()?;
    let worker = arguments.name.unwrap_or_else(|| format!("{stage}-{}", std::process::id()));
    let telemetry = context::telemetry(&plan, &format!("baton-{stage}"), &worker, &plan.telemetry.log)?;
    let shutdown = CancellationToken::new();
    let asked = shutdown.clone();
    tokio::spawn(async move {
        if let Err(error) = context::asked_to_stop().await {
            tracing::error!(%error, "signals can't be received; the worker stops");
        }
        asked.cancel();
    });
    let served = serve(stage, &plan, &worker, shutdown).await;
    telemetry.shutdown().await;
    served
}

async fn serve(stage: Stage, plan: &Plan, worker: &str, shutdown: CancellationToken) -> anyhow::Result<()> {
    let bus = context::connect(plan, worker).await?;
    bus.provision(&context::retention(plan)).await?;
    // The stages that use the store look after it, too.
    if stage != Stage::Ingest {
        tokio::spawn(collector::keep(plan.clone(), bus.clone(), shutdown.clone()));
    }
    match stage {
        Stage::Ingest => {
            let models = ingest_models(plan).await?;
            let options = baton_ingest::Options {
                pull: pull_options(plan, stage, &plan.stages.ingest, &[]),
                decode_prefills: plan.stages.decode.prefill_tokens,
            };
            ready(worker)?;
            baton_ingest::run(bus, options, models, shutdown).await?;
        }
        Stage::Prefill => {
            let stages = &plan.stages.prefill;
            let settings = &stages.compute;
            baton_engine::use_threads(settings.threads)?;
            let cache = open_cache(plan)?;
            let mut served = Vec::new();
            for name in &settings.models {
                let model = load(plan, settings, name).await?;
                let store = kv_store(plan, model.spec().kv, &cache)?;
                let generator = Generator::new(context::vocabulary(&plan.models[name])?);
                served.push(baton_prefill::Served { name: name.clone(), model, generator, store });
            }
            let options = baton_prefill::Options {
                pull: pull_options(plan, stage, &settings.stage, &settings.models),
                chunk_tokens: plan.store.chunk_tokens,
                batch_tokens: stages.batch_tokens,
                decode_prefills: plan.stages.decode.prefill_tokens,
                worker: worker.to_owned(),
            };
            ready(worker)?;
            baton_prefill::run(bus, options, served, shutdown).await?;
        }
        Stage::Decode => {
            let settings = &plan.stages.decode.compute;
            baton_engine::use_threads(settings.threads)?;
            let cache = open_cache(plan)?;
            let mut served = Vec::new();
            for name in &settings.models {
                let model = load(plan, settings, name).await?;
                let store = kv_store(plan, model.spec().kv, &cache)?;
                let generator = Generator::new(context::vocabulary(&plan.models[name])?);
                served.push(baton_decode::Served { name: name.clone(), model, generator, store });
            }
            let pull = pull_options(plan, stage, &settings.stage, &settings.models);
            ready(worker)?;
            let checkpoint = Duration::from_millis(plan.stages.decode.checkpoint_ms as u64);
            let options = baton_decode::Options { pull, worker: worker.to_owned(), checkpoint };
            baton_decode::run(bus, options, served, shutdown).await?;
        }
    }
    tracing::info!("the worker has drained");
    Ok(())
}

fn pull_options(plan: &Plan, stage: Stage, settings: &baton_topology::Stage, models: &[Name]) -> pull::Options {
    pull::Options {
        stage,
        models: models.to_vec(),
        lanes: plan.lanes.clone(),
        slots: settings.slots,
        ack_wait: settings.ack_wait,
        max_deliver: settings.max_deliver as u64,
        drain: DRAIN,
    }
}

/// Tells whoever started the worker that it takes jobs.
fn ready(worker: &str) -> anyhow::Result<()> {
    tracing::info!(worker, "the worker is ready");
    writeln!(std::io::stdout(), "ready").context("cannot write to standard output")
}

async fn ingest_models(plan: &Plan) -> anyhow::Result<baton_ingest::Models> {
    let mut generators = BTreeMap::new();
    for (name, model) in &plan.models {
        let model = model.clone();
        let vocabulary = spawn_blocking(move || context::vocabulary(&model)).await?;
        generators.insert(name.clone(), Generator::new(vocabulary.with_context(|| format!("model {name}"))?));
    }
    Ok(baton_ingest::Models { generators, default: plan.default_model.clone() })
}

async fn load(plan: &Plan, settings: &Compute, name: &Name) -> anyhow::Result<Box<dyn Model>> {
    let model = plan.models[name].clone();
    let options = model::Options {
        device: context::device(settings.device).to_owned(),
        compute: match plan.compute {
            Mode::Fast => model::Compute::Fast,
            Mode::Exact => model::Compute::Exact,
        },
        kv_bytes: kv_bytes(settings)?,
    };
    let load = move || Ok(baton_engine::source::load(&context::source(&model)?, &options)?);
    let loaded: anyhow::Result<_> = spawn_blocking(load).await?;
    loaded.with_context(|| format!("cannot load model {name}"))
}

/// What the KV caches of one of the worker's models may take: its models share evenly.
fn kv_bytes(settings: &Compute) -> anyhow::Result<u64> {
    let all = match settings.kv_memory {
        Some(bytes) => bytes.0,
        None => {
            let machine = memory::of_this_process().context("say how much KV caches may take: kv_memory = \"2GiB\"")?;
            (machine as f64 * settings.memory_fraction) as u64
        }
    };
    let bytes = all / settings.models.len().max(1) as u64;
    tracing::info!(mib = bytes >> 20, "memory for each model's KV caches");
    Ok(bytes)
}

/// What a worker keeps of the store, for all its models together.
fn open_cache(plan: &Plan) -> anyhow::Result<Cache> {
    let settings = &plan.store;
    let disk = settings.cache_path.as_ref().zip(settings.cache_disk).map(|(path, bytes)| (path.into(), bytes.0));
    let memory = settings.cache_memory.map_or(0, |bytes| bytes.0);
    Ok(Cache::open(cache::Options { memory, disk })?)
}

fn kv_store(plan: &Plan, shape: kv::Shape, cache: &Cache) -> anyhow::Result<KvStore> {
    let codec = match plan.store.codec {
        baton_topology::Codec::Lossless => Codec::Lossless,
        baton_topology::Codec::Near => Codec::Near,
        baton_topology::Codec::Balanced => Codec::Balanced,
        baton_topology::Codec::Raw => Codec::Raw,
    };
    let key = plan.store.key_file.as_ref().map(|path| SealKey::read(path.as_ref())).transpose()?;
    Ok(KvStore::new(context::open_store(plan)?, shape, codec).with_key(key).with_cache(cache.clone()))
}
