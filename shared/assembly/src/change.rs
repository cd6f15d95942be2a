//! Making a pipeline in its broker, or changing it. Nothing else changes what stands.

use baton_bus::{Bus, connection::conflict, provision::Change};
use baton_contract::{envelope, subject::Stage};
use baton_topology::{BrokerUrl, Difference, Plan, Settings, StoreUrl};

use crate::{
    Error, Found, bus,
    join::{self, RACES, anywhere, written},
    store,
};

/// What a change did, or would do.
pub struct Outcome {
    /// The plan with every URL known.
    pub plan: Plan,
    /// Whether the pipeline had no settings before.
    pub new: bool,
    /// What is different in the pipeline's settings.
    pub settings: Vec<Difference>,
    /// What is different in the broker's streams, buckets and consumers.
    pub broker: Vec<Change>,
}

impl Outcome {
    /// Whether all was as wanted.
    pub fn is_nothing(&self) -> bool {
        !self.new && self.settings.is_empty() && self.broker.is_empty()
    }

    /// One line for each change.
    pub fn lines(&self) -> Vec<String> {
        let new = self.new.then(|| "settings: created".to_owned());
        let or_none = |value: &Option<String>| value.clone().unwrap_or_else(|| "nothing".into());
        let setting = |it: &Difference| format!("{}: from {} to {}", it.key, or_none(&it.kept), or_none(&it.wanted));
        let settings = self.settings.iter().map(setting);
        new.into_iter().chain(settings).chain(self.broker.iter().map(ToString::to_string)).collect()
    }
}

/// Brings broker and settings to what file and flags say, or only says what that would change.
pub async fn change(found: &Found, bus: &Bus, check: bool) -> Result<Outcome, Error> {
    let attempt = || try_to_change(found, bus, check);
    conflict::until_unbeaten(RACES, || Error::SettingsRace, attempt).await
}

/// None if somebody else changed the settings meanwhile.
async fn try_to_change(found: &Found, bus: &Bus, check: bool) -> Result<Option<Outcome>, Error> {
    let kept = bus.settings().await?;
    let settings = match &kept {
        None => None,
        Some(kept) => match join::read(kept) {
            Ok(settings) => Some(settings),
            // They can't be read, and a file says everything.
            Err(_) if found.told.file.is_some() => None,
            Err(error) => return Err(error),
        },
    };
    let plan = wanted(found, bus, settings.as_ref()).await?;
    let stored = anywhere(&plan)?;
    let mut next = match &settings {
        Some(settings) => settings.changed(&stored),
        None => Settings::of(&stored, uuid::Uuid::now_v7().to_string()),
    };
    let differences = settings.as_ref().map(|settings| settings.differences(&stored)).unwrap_or_default();
    let new = settings.is_none();
    if check {
        let broker = compared(&plan, bus).await?;
        return Ok(Some(Outcome { plan, new, settings: differences, broker }));
    }
    store::mark(&plan, &next).await?;
    next.marked = true;
    let value = written(&next)?;
    let Some(kept) = kept else {
        if !bus.settle(&value, plan.broker.replicas).await? {
            return Ok(None);
        }
        let broker = applied(&plan, bus).await?;
        return Ok(Some(Outcome { plan, new, settings: differences, broker }));
    };
    let broker = applied(&plan, bus).await?;
    let holds = settings.as_ref() == Some(&next) || bus.resettle(&kept, &value).await?;
    Ok(holds.then_some(Outcome { plan, new, settings: differences, broker }))
}

/// The plan of file and flags, with a place for the store.
async fn wanted(found: &Found, bus: &Bus, settings: Option<&Settings>) -> Result<Plan, Error> {
    let mut plan = match settings {
        Some(settings) => found.told.change(settings)?,
        None => match bus.standing_retention().await? {
            Some(standing) => found.told.change(&Settings::standing(&join::of_streams(&standing)))?,
            None => found.told.plan()?,
        },
    };
    // Baton's own folder may have been moved, and the store with it.
    let says = found.told.says("store.url")?;
    if let (StoreUrl::Url(url), Some(home), false) = (&plan.store.url, &found.embedded, says)
        && url.strip_prefix("file://").is_some_and(|path| !std::path::Path::new(path).is_dir())
    {
        plan.store.url = StoreUrl::Url(home.store_url());
    }
    found.place_store(&mut plan);
    if let (StoreUrl::Embedded, Some(url)) = (&plan.store.url, settings.and_then(Settings::store_url)) {
        plan.store.url = StoreUrl::Url(url);
    }
    if plan.store.url == StoreUrl::Embedded {
        return Err(Error::NoStore);
    }
    debug_assert!(plan.broker.url != BrokerUrl::Embedded);
    Ok(plan)
}

async fn applied(plan: &Plan, bus: &Bus) -> Result<Vec<Change>, Error> {
    let mut changes = bus.apply(&bus::retention(plan)).await?;
    for (stage, settings) in stages(plan) {
        let models: Vec<_> = plan.models.keys().cloned().collect();
        changes.extend(bus.apply_ack_wait(stage, &models, &plan.lanes, settings.ack_wait).await?);
    }
    Ok(changes)
}

async fn compared(plan: &Plan, bus: &Bus) -> Result<Vec<Change>, Error> {
    let mut changes = bus.compare(&bus::retention(plan)).await?;
    // Consumers of streams that are missing are missing, too.
    if changes.iter().any(|change| matches!(change, Change::Created { .. })) {
        return Ok(changes);
    }
    for (stage, settings) in stages(plan) {
        let models: Vec<_> = plan.models.keys().cloned().collect();
        changes.extend(bus.compare_ack_wait(stage, &models, &plan.lanes, settings.ack_wait).await?);
    }
    Ok(changes)
}

fn stages(plan: &Plan) -> [(Stage, &baton_topology::Stage); 3] {
    let stages = &plan.stages;
    [
        (Stage::Ingest, &stages.ingest),
        (Stage::Prefill, &stages.prefill.compute.stage),
        (Stage::Decode, &stages.decode.compute.stage),
    ]
}

/// What is wrong with the broker's largest message, if it is too small.
pub fn small_messages(bus: &Bus) -> Option<String> {
    let (has, wants) = (bus.max_payload(), envelope::MAX_BYTES);
    (has < wants).then(|| {
        format!(
            "the broker takes messages of {has} bytes, and requests and results may have {wants}: set max_payload: 8MB in \
             nats-server's configuration"
        )
    })
}
