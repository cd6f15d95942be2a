//! What a computing worker loads once, whatever it computes then.

use std::time::Duration;

use baton_assembly::{models, store};
use baton_contract::{Name, kv};
use baton_model::{
    generation::Generator,
    loan::Lender,
    model::{self, Model, Step},
};
use baton_storage::{
    cache::{self, Cache},
    kv::KvStore,
    seal::SealKey,
};
use baton_topology::{Compute, Mode, Plan};
use tokio::task::spawn_blocking;

use crate::error::{Error, NotLoaded};

/// How long a stage that has drained may take to let go of a model.
const LET_GO: Duration = Duration::from_secs(30);

/// The models of a worker, each in memory once.
pub struct Models(Vec<Loaded>);

struct Loaded {
    name: Name,
    lender: Lender,
    generator: Generator,
    store: KvStore,
}

/// One model for as long as a stage runs it.
pub struct Lent {
    pub name: Name,
    pub model: Box<dyn Model>,
    pub generator: Generator,
    pub store: KvStore,
}

impl Models {
    /// Loads the models of these names, with `kv_bytes` for the KV caches of all of them together.
    pub async fn load(plan: &Plan, settings: &Compute, names: &[Name], kv_bytes: u64) -> Result<Self, Error> {
        if names.is_empty() {
            return Ok(Self(Vec::new()));
        }
        let each = kv_bytes / names.len() as u64;
        tracing::info!(mib = each >> 20, "memory for each model's KV caches");
        let cache = open_cache(plan)?;
        let mut loaded = Vec::new();
        for name in names {
            let model = load(plan, settings, name, each).await?;
            let store = kv_store(plan, model.spec().kv, &cache)?;
            let generator = Generator::new(models::vocabulary(&plan.models[name])?);
            loaded.push(Loaded { name: name.clone(), lender: Lender::new(model), generator, store });
        }
        Ok(Self(loaded))
    }

    /// Lends them all to a stage, after the one before has let go of them.
    pub async fn lend(self) -> Result<(Self, Vec<Lent>), Error> {
        let lending = spawn_blocking(move || {
            let Self(mut loaded) = self;
            let lend = |one: &mut Loaded| {
                let model = one.lender.lend(LET_GO)?;
                Some(Lent { name: one.name.clone(), model, generator: one.generator.clone(), store: one.store.clone() })
            };
            let lent: Option<Vec<Lent>> = loaded.iter_mut().map(lend).collect();
            (Self(loaded), lent)
        });
        let (models, lent) = lending.await?;
        Ok((models, lent.ok_or(Error::NotLetGo { within: LET_GO })?))
    }
}

/// Loads a model on a device and computes one token; says what it is.
pub async fn try_out(model: &baton_topology::Model, device: &'static str) -> Result<String, Error> {
    let model = model.clone();
    let computed = spawn_blocking(move || {
        let options = model::Options { device: device.to_owned(), ..model::Options::default() };
        let mut model = open(&model, &options)?;
        let sequence = model.open();
        model.forward(&[Step { sequence, tokens: &[0], logits: 1 }])?;
        let spec = model.spec();
        Ok(format!("{} loads on {device}: {} layers, context {}", spec.name, spec.kv.layers, spec.context))
    });
    computed.await?
}

async fn load(plan: &Plan, settings: &Compute, name: &Name, kv_bytes: u64) -> Result<Box<dyn Model>, Error> {
    let model = plan.models[name].clone();
    let options = model::Options {
        device: models::device(settings.device).to_owned(),
        compute: match plan.compute {
            Mode::Fast => model::Compute::Fast,
            Mode::Exact => model::Compute::Exact,
        },
        kv_bytes,
    };
    let loaded = spawn_blocking(move || open(&model, &options)).await?;
    loaded.map_err(|source| Error::Load { model: name.clone(), source: source.into() })
}

/// Brings a model if it is missing, and loads it. Blocks.
fn open(model: &baton_topology::Model, options: &model::Options) -> Result<Box<dyn Model>, NotLoaded> {
    Ok(baton_engine::load(&models::source(model)?, options)?)
}

/// What a worker keeps of the store, for all its models together.
fn open_cache(plan: &Plan) -> Result<Cache, Error> {
    let settings = &plan.store;
    let disk = settings.cache_path.as_ref().zip(settings.cache_disk).map(|(path, bytes)| (path.into(), bytes.0));
    let memory = settings.cache_memory.map_or(0, |bytes| bytes.0);
    Ok(Cache::open(cache::Options { memory, disk })?)
}

fn kv_store(plan: &Plan, shape: kv::Shape, cache: &Cache) -> Result<KvStore, Error> {
    let key = plan.store.key_file.as_ref().map(|path| SealKey::read(path.as_ref())).transpose()?;
    Ok(KvStore::new(store::open(plan)?, shape, store::codec(plan)).with_key(key).with_cache(cache.clone()))
}
