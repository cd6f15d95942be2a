//! Joining a pipeline: a process takes over what the broker keeps of it, and is refused where it was told otherwise. A process that
//! serves a pipeline creates what is missing of it. Nothing here changes what stands.

use std::path::Path;

use anyhow::{Context, bail, ensure};
use baton_bus::{Bus, electing, settings::Kept};
use baton_contract::causes;
use baton_storage::store::{self, Store};
use baton_topology::{BrokerUrl, Model, Plan, Reach, Settings, Standing, StoreUrl, Told};

use crate::context::{self, NO_STORE, PipelineArguments, PipelineHome};

/// How often settings that others keep changing are read again.
const RACES: usize = 8;

/// A pipeline whose broker is known.
pub struct Found {
    pub told: Told,
    pub reach: Reach,
    /// Baton's own folder for it, if its broker is `baton up`'s own.
    pub embedded: Option<PipelineHome>,
}

impl PipelineArguments {
    /// Looks for the pipeline's broker: the one that is named, or the one that `baton up` runs on this machine.
    pub fn find(&self) -> anyhow::Result<Found> {
        let mut told = self.told()?;
        let mut reach = told.reach()?;
        let mut embedded = None;
        if reach.broker.url == BrokerUrl::Embedded {
            let home = PipelineHome::new(&reach.root)?;
            let running = home.running()?;
            if told.file.is_none() {
                told.machine = Some(std::fs::read_to_string(home.plan_file()).context("cannot read the running plan")?);
            }
            told.overrides.push(format!("broker.url={}", running.nats_url));
            reach = told.reach()?;
            embedded = Some(home);
        }
        Ok(Found { told, reach, embedded })
    }

    /// The plan and the broker of a pipeline, for a command that looks at it or uses it.
    pub async fn join(&self, name: &str) -> anyhow::Result<(Plan, Bus)> {
        let found = self.find()?;
        let bus = context::reach(&found.reach.root, &found.reach.broker, name).await?;
        let plan = found.look(&bus).await?;
        Ok((plan, bus))
    }
}

impl Found {
    /// What holds for a command, which makes nothing.
    pub async fn look(&self, bus: &Bus) -> anyhow::Result<Plan> {
        let kept = bus.settings().await.unwrap_or_else(|error| {
            // A tenant's account need not be let near them.
            tracing::debug!(error = baton_contract::causes(&error), "the pipeline's settings can't be read");
            None
        });
        let mut plan = match kept {
            Some(kept) => self.told.adopt(&read(&kept)?)?,
            None => self.told.plan()?,
        };
        self.place_store(&mut plan);
        Ok(plan)
    }

    /// What holds for a process that serves the pipeline. Makes what is missing of it. A process that uses the store must find the
    /// pipeline's mark in it.
    pub async fn take_part(&self, bus: &Bus, uses_store: bool) -> anyhow::Result<Plan> {
        let attempt = || self.try_to_take_part(bus, uses_store);
        electing::patiently("joining the pipeline", attempt, |error| {
            // The broker's word, that is, and no refusal.
            matches!(
                error.downcast_ref(),
                Some(baton_bus::Error::Read { .. } | baton_bus::Error::NotProvisioned { .. })
            )
        })
        .await
    }

    async fn try_to_take_part(&self, bus: &Bus, uses_store: bool) -> anyhow::Result<Plan> {
        bus.check().await?;
        for _ in 0..RACES {
            let plan = match bus.settings().await? {
                Some(kept) => self.adopt(bus, &kept, uses_store).await?,
                None => self.begin(bus, uses_store).await?,
            };
            // Otherwise somebody else was faster: what that one wrote holds.
            if let Some(plan) = plan {
                bus.provision(&context::retention(&plan)).await?;
                // A cluster has created what nobody leads yet.
                bus.ready().await?;
                return Ok(plan);
            }
        }
        bail!("the pipeline's settings kept changing; try again")
    }

    /// Takes over the settings of a pipeline. None if they changed meanwhile.
    async fn adopt(&self, bus: &Bus, kept: &Kept, uses_store: bool) -> anyhow::Result<Option<Plan>> {
        let settings = read(kept)?;
        let mut plan = self.told.adopt(&settings)?;
        self.place_store(&mut plan);
        if !uses_store {
            return Ok(Some(plan));
        }
        ensure!(plan.store.url != StoreUrl::Embedded, NO_STORE);
        if settings.store_url().is_some() {
            if let Err(error) = check_mark(&plan, &settings).await {
                pass_over(error)?;
            }
            return Ok(Some(plan));
        }
        // Ingest was first, which needs none.
        if let Err(error) = mark(&plan, &settings).await {
            pass_over(error)?;
            return Ok(Some(plan));
        }
        let next = settings.with_store(&anywhere(&plan)?);
        Ok(bus.resettle(kept, &serde_json::to_value(next)?).await?.then_some(plan))
    }

    /// Makes a pipeline that has no settings yet. None if somebody else did meanwhile.
    async fn begin(&self, bus: &Bus, uses_store: bool) -> anyhow::Result<Option<Plan>> {
        let mut plan = match bus.standing_retention().await? {
            // Made by a release that kept no settings: what its streams tell holds.
            Some(standing) => self.told.adopt(&Settings::standing(&of_streams(&standing)))?,
            None => self.told.plan()?,
        };
        self.place_store(&mut plan);
        let mut settings = Settings::of(&anywhere(&plan)?, uuid::Uuid::now_v7().to_string());
        match (&plan.store.url, uses_store) {
            (StoreUrl::Embedded, true) => bail!(NO_STORE),
            (StoreUrl::Embedded, false) => {}
            (StoreUrl::Url(_), _) => match mark(&plan, &settings).await {
                Ok(()) => settings.marked = true,
                Err(error) if uses_store => pass_over(error)?,
                // Ingest needs no store, and may have no credentials for it.
                Err(error) => tracing::warn!(error = %causes(error.as_ref()), "the store got no mark of the pipeline"),
            },
        }
        let first = bus.settle(&serde_json::to_value(&settings)?, plan.broker.replicas).await?;
        if first {
            tracing::info!(pipeline = settings.pipeline, "the pipeline's settings were kept for all its processes");
        }
        Ok(first.then_some(plan))
    }

    /// The embedded store has its place beside the embedded broker, and nowhere else.
    pub fn place_store(&self, plan: &mut Plan) {
        if let (StoreUrl::Embedded, Some(home)) = (&plan.store.url, &self.embedded) {
            plan.store.url = StoreUrl::Url(home.store_url());
        }
    }
}

/// The settings that the broker keeps.
pub fn read(kept: &Kept) -> anyhow::Result<Settings> {
    serde_json::from_value(kept.value.clone())
        .context("the pipeline's settings can't be read; `baton provision FILE` writes them anew")
}

/// What an older release's streams tell of its settings.
pub fn of_streams(standing: &baton_bus::settings::Standing) -> Standing {
    Standing {
        replicas: standing.replicas,
        results: Some(standing.results),
        backlog_messages: standing.backlog,
        tenant_backlog: standing.backlog_of_tenant,
    }
}

/// The plan with no path that depends on the folder in which a command runs.
pub fn anywhere(plan: &Plan) -> anyhow::Result<Plan> {
    let mut plan = plan.clone();
    for model in plan.models.values_mut() {
        if let Model::File(path) = model {
            let absolute = std::path::absolute(&*path).with_context(|| format!("cannot tell where {path} is"))?;
            *path = absolute.to_str().with_context(|| format!("{path} is no UTF-8"))?.to_owned();
        }
    }
    Ok(plan)
}

/// Lets a fault of a remote store pass: it may be over soon, and until then jobs wait and say why.
fn pass_over(error: anyhow::Error) -> anyhow::Result<()> {
    match error.downcast_ref() {
        Some(store::Error::Operation { url, .. }) if !url.starts_with("file://") => {
            tracing::warn!(error = %causes(error.as_ref()), "the store could not be looked at; until it can, jobs wait");
            Ok(())
        }
        _ => Err(error),
    }
}

/// Puts the pipeline's mark into its store.
pub async fn mark(plan: &Plan, settings: &Settings) -> anyhow::Result<()> {
    durable(plan)?.put_pipeline_mark(&settings.pipeline).await?;
    Ok(())
}

/// Whether the store is the pipeline's: a folder of the same name may be another one on another machine.
pub async fn check_mark(plan: &Plan, settings: &Settings) -> anyhow::Result<()> {
    let StoreUrl::Url(url) = &plan.store.url else { bail!(NO_STORE) };
    if let Some(path) = url.strip_prefix("file://").filter(|_| settings.marked) {
        // Opening it would make it.
        ensure!(Path::new(path).is_dir(), "{}", other_store(url));
    }
    let store = context::open_store(plan)?;
    ensure!(!settings.marked || store.has_pipeline_mark(&settings.pipeline).await?, "{}", other_store(url));
    Ok(())
}

fn other_store(url: &str) -> String {
    let why = match url.starts_with("file://") {
        true => {
            "a folder of that name on another machine is another store: run all workers on one machine, or give the pipeline a \
                 store that all of them reach (`baton provision --store s3://bucket/prefix`, or `baton up` with --store)"
        }
        false => "it may be another bucket, or another server's",
    };
    format!(
        "the store {url}, as this process sees it, has no mark of the pipeline, so other workers would not find what it puts \
         there; {why}. If it is the same and was emptied, `baton provision` marks it again"
    )
}

fn durable(plan: &Plan) -> anyhow::Result<Store> {
    let mut plan = plan.clone();
    plan.store.sync = true;
    context::open_store(&plan)
}
