//! Joining a pipeline: a process takes over what the broker keeps of it, and is refused where it was told otherwise. A process that
//! serves a pipeline creates what is missing of it. Nothing here changes what stands.

use std::{fs, path::PathBuf};

use baton_bus::{
    Bus,
    connection::conflict,
    provision::{electing, settings::Kept},
};
use baton_contract::causes;
use baton_provision::home::PipelineHome;
use baton_storage::store::Error as StoreError;
use baton_topology::{BrokerUrl, Model, Plan, Reach, Settings, Standing, StoreUrl, Told};

use crate::{
    Error, bus,
    store::{check_mark, mark},
};

/// How often settings that others keep changing are read again.
pub(crate) const RACES: usize = 8;

/// Whether a process uses the store of a plan.
type UsesStore<'a> = &'a (dyn Fn(&Plan) -> bool + Sync);

/// A pipeline whose broker is known.
pub struct Found {
    /// What this process was given.
    pub told: Told,
    /// How the broker is reached.
    pub reach: Reach,
    /// Baton's own folder for it, if its broker is `baton up`'s own.
    pub embedded: Option<PipelineHome>,
}

impl Found {
    /// Looks for the pipeline's broker: the one that is named, or the one that `baton up` runs on this machine.
    pub fn find(mut told: Told) -> Result<Self, Error> {
        let mut reach = told.reach()?;
        let mut embedded = None;
        if reach.broker.url == BrokerUrl::Embedded {
            let home = PipelineHome::new(&reach.root)?;
            let running = home.running()?;
            if told.file.is_none() {
                told.machine = Some(fs::read_to_string(home.plan_file()).map_err(Error::RunningPlan)?);
            }
            told.overrides.push(format!("broker.url={}", running.nats_url));
            reach = told.reach()?;
            embedded = Some(home);
        }
        Ok(Self { told, reach, embedded })
    }

    /// The plan and the broker of the pipeline, for a command that looks at it or uses it.
    pub async fn join(&self, name: &str) -> Result<(Plan, Bus), Error> {
        let bus = bus::reach(&self.reach.root, &self.reach.broker, name).await?;
        let plan = self.look(&bus).await?;
        Ok((plan, bus))
    }

    /// What holds for a command, which makes nothing.
    pub async fn look(&self, bus: &Bus) -> Result<Plan, Error> {
        let kept = bus.settings().await.unwrap_or_else(|error| {
            // A tenant's account need not be let near them.
            tracing::debug!(error = causes(&error), "the pipeline's settings can't be read");
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
    pub async fn take_part(&self, bus: &Bus, uses_store: UsesStore<'_>) -> Result<Plan, Error> {
        let attempt = || self.try_to_take_part(bus, uses_store);
        electing::patiently("joining the pipeline", attempt, |error| {
            // The broker's word, that is, and no refusal.
            matches!(error, Error::Bus(baton_bus::Error::Read { .. } | baton_bus::Error::NotProvisioned { .. }))
        })
        .await
    }

    async fn try_to_take_part(&self, bus: &Bus, uses_store: UsesStore<'_>) -> Result<Plan, Error> {
        bus.check().await?;
        let attempt = || async {
            match bus.settings().await? {
                Some(kept) => self.adopt(bus, &kept, uses_store).await,
                None => self.begin(bus, uses_store).await,
            }
        };
        let plan = conflict::until_unbeaten(RACES, || Error::SettingsRace, attempt).await?;
        bus.provision(&bus::retention(&plan)).await?;
        // A cluster has created what nobody leads yet.
        bus.ready().await?;
        Ok(plan)
    }

    /// Takes over the settings of a pipeline. None if they changed meanwhile.
    async fn adopt(&self, bus: &Bus, kept: &Kept, uses_store: UsesStore<'_>) -> Result<Option<Plan>, Error> {
        let settings = read(kept)?;
        let mut plan = self.told.adopt(&settings)?;
        self.place_store(&mut plan);
        if !uses_store(&plan) {
            return Ok(Some(plan));
        }
        if plan.store.url == StoreUrl::Embedded {
            return Err(Error::NoStore);
        }
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
        Ok(bus.resettle(kept, &written(&next)?).await?.then_some(plan))
    }

    /// Makes a pipeline that has no settings yet. None if somebody else did meanwhile.
    async fn begin(&self, bus: &Bus, uses_store: UsesStore<'_>) -> Result<Option<Plan>, Error> {
        let mut plan = match bus.standing_retention().await? {
            // Made by a release that kept no settings: what its streams tell holds.
            Some(standing) => self.told.adopt(&Settings::standing(&of_streams(&standing)))?,
            None => self.told.plan()?,
        };
        self.place_store(&mut plan);
        let mut settings = Settings::of(&anywhere(&plan)?, uuid::Uuid::now_v7().to_string());
        let uses_store = uses_store(&plan);
        match (&plan.store.url, uses_store) {
            (StoreUrl::Embedded, true) => return Err(Error::NoStore),
            (StoreUrl::Embedded, false) => {}
            (StoreUrl::Url(_), _) => match mark(&plan, &settings).await {
                Ok(()) => settings.marked = true,
                Err(error) if uses_store => pass_over(error)?,
                // Ingest needs no store, and may have no credentials for it.
                Err(error) => tracing::warn!(error = %causes(&error), "the store got no mark of the pipeline"),
            },
        }
        let first = bus.settle(&written(&settings)?, plan.broker.replicas).await?;
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
pub fn read(kept: &Kept) -> Result<Settings, Error> {
    serde_json::from_value(kept.value.clone()).map_err(Error::Settings)
}

/// The settings as the broker keeps them.
pub(crate) fn written(settings: &Settings) -> Result<serde_json::Value, Error> {
    serde_json::to_value(settings).map_err(Error::SettingsUnwritten)
}

/// What an older release's streams tell of its settings.
pub fn of_streams(standing: &baton_bus::provision::settings::Standing) -> Standing {
    Standing {
        replicas: standing.replicas,
        results: Some(standing.results),
        backlog_messages: standing.backlog,
        tenant_backlog: standing.backlog_of_tenant,
    }
}

/// The plan with no path that depends on the folder in which a command runs.
pub fn anywhere(plan: &Plan) -> Result<Plan, Error> {
    let mut plan = plan.clone();
    for model in plan.models.values_mut() {
        match model {
            Model::File(path) => make_absolute(path)?,
            Model::Upstream(upstream) => {
                [&mut upstream.api_key_file, &mut upstream.ca_file]
                    .into_iter()
                    .flatten()
                    .try_for_each(make_absolute)?;
            }
            Model::Default | Model::Hub(_) | Model::Sim(_) => {}
        }
    }
    Ok(plan)
}

fn make_absolute(path: &mut String) -> Result<(), Error> {
    let given = PathBuf::from(&*path);
    let absolute = std::path::absolute(&given).map_err(|source| Error::UnknownPlace { path: given, source })?;
    *path = absolute.into_os_string().into_string().map_err(|path| Error::NotUtf8 { path: path.into() })?;
    Ok(())
}

/// Lets a fault of a remote store pass: it may be over soon, and until then jobs wait and say why.
fn pass_over(error: Error) -> Result<(), Error> {
    match &error {
        Error::Store(StoreError::Operation { url, .. }) if !url.starts_with("file://") => {
            tracing::warn!(error = %causes(&error), "the store could not be looked at; until it can, jobs wait");
            Ok(())
        }
        _ => Err(error),
    }
}
