//! What there is of a pipeline in its broker and its store.

use std::{collections::BTreeMap, path::Path, time::Duration};

use baton_bus::{
    Bus,
    provision::{Change, settings::Full},
};
use baton_contract::{
    Name, causes,
    stats::{Snapshot, Worker},
    subject::Stage,
};
use baton_storage::seal::SealKey;
use baton_topology::{Plan, Settings, StoreUrl};
use indicatif::BinaryBytes;
use tokio::time::timeout;

use super::check::{Check, Fault};
use crate::{Error, Found, bus, change::small_messages, join, room, store as stores};

/// Workers tell of themselves every second.
const LISTEN: Duration = Duration::from_millis(2_500);

/// Adds the checks of a pipeline; returns its plan if there is one to go by.
pub(super) async fn checks(found: &Found, bus: &Bus, checks: &mut Vec<Check>) -> Option<Plan> {
    checks.push(Check::new(
        "messages",
        match small_messages(bus) {
            None => Ok(format!("of up to {} bytes", bus.max_payload())),
            Some(problem) => Err(Fault(problem)),
        },
    ));
    checks.push(Check::new("room", broker_room(bus).await));
    let settings = match kept(bus).await {
        Ok(settings) => settings,
        Err(error) => {
            checks.push(Check::new("settings", Err(error)));
            None
        }
    };
    let plan = match &settings {
        Some(settings) => found.told.adopt(settings).map_err(Fault::from),
        None => found.told.plan().map_err(Fault::from),
    };
    let mut plan = match plan {
        Ok(plan) => plan,
        Err(error) => {
            checks.push(Check::new("settings", Err(error)));
            return None;
        }
    };
    found.place_store(&mut plan);
    match &settings {
        Some(settings) => {
            checks.push(Check::new("settings", Ok(format!("those of pipeline {}", settings.pipeline))));
            checks.push(Check::new("streams", streams(&plan, bus).await));
            checks.extend(workers(&plan, bus).await);
        }
        None => checks.push(Check::new(
            "settings",
            Ok(format!("nobody has made a pipeline under root {} yet; the first worker does", plan.root)),
        )),
    }
    checks.push(Check::new("store", store(&plan, settings.as_ref()).await));
    Some(plan)
}

async fn kept(bus: &Bus) -> Result<Option<Settings>, Fault> {
    Ok(bus.settings().await?.map(|kept| join::read(&kept)).transpose()?)
}

/// The broker stores messages, and has room for more.
async fn broker_room(bus: &Bus) -> Result<String, Fault> {
    let room = bus.room().await?;
    match bus.full(room).await {
        Some(Full::Limit { used, limit }) => {
            return Err(Fault(format!(
                "JetStream holds {} of the {} that it may: raise max_file_store (or the account's limit), or keep results \
                 for a shorter time (results.keep)",
                BinaryBytes(used),
                BinaryBytes(limit)
            )));
        }
        Some(Full::Refuses { used, error }) => {
            return Err(Fault(format!(
                "the broker stores nothing now ({}): its disk or JetStream's limit is full, {} are used; free space, then \
                 restart nats-server",
                causes(&error),
                BinaryBytes(used)
            )));
        }
        None => {}
    }
    let used = BinaryBytes(room.used);
    Ok(match room.limit {
        Some(limit) => format!("JetStream holds {used} of {}", BinaryBytes(limit)),
        None => format!("JetStream holds {used}, and takes more"),
    })
}

/// All streams and buckets are there, and as the settings say.
async fn streams(plan: &Plan, bus: &Bus) -> Result<String, Fault> {
    let changes = bus.compare(&bus::retention(plan)).await?;
    let missing: Vec<_> = changes
        .iter()
        .filter_map(|change| match change {
            Change::Created { what } => Some(what.as_str()),
            Change::Changed { .. } => None,
        })
        .collect();
    if !missing.is_empty() {
        let missing = missing.join(", ");
        return Err(Fault(format!("missing: {missing}; a worker, running or started now, makes them within seconds")));
    }
    let others: Vec<_> = changes.iter().map(ToString::to_string).collect();
    if !others.is_empty() {
        let others = others.join(", ");
        return Err(Fault(format!("otherwise than the settings say, `baton provision` would change {others}")));
    }
    Ok("all there, as the settings say".into())
}

/// Each stage has workers, for every model, and all are of this release.
async fn workers(plan: &Plan, bus: &Bus) -> Vec<Check> {
    let heard = async {
        let mut watch = bus.watch_stats().await?;
        // As long as it takes to hear of all, whatever the first looks have.
        let _ = timeout(LISTEN, async {
            loop {
                watch.next().await;
            }
        })
        .await;
        Ok::<_, Fault>(watch.snapshot())
    };
    let heard = match heard.await {
        Ok(heard) => heard,
        Err(error) => return vec![Check::new("workers", Err(error))],
    };
    let mut checks: Vec<_> = Stage::ALL
        .into_iter()
        .filter(|&stage| stage != Stage::Prefill || plan.has_prefill())
        .map(|stage| Check::new(format!("workers of {stage}"), serving(plan, stage, &heard)))
        .collect();
    checks.push(Check::new("versions", versions(&heard.workers)));
    checks
}

fn serving(plan: &Plan, stage: Stage, heard: &Snapshot) -> Result<String, Fault> {
    let of_stage: Vec<_> = heard.workers.iter().filter(|worker| worker.stage == stage && !worker.draining).collect();
    if of_stage.is_empty() {
        return Err(Fault(format!("none, so jobs wait: start one with `baton worker {stage} --nats URL`")));
    }
    let passing = plan.models.iter().filter(|(_, model)| stage != Stage::Prefill || model.is_prefilled());
    let served = |name: &Name| of_stage.iter().any(|worker| worker.models.contains(name));
    let unserved: Vec<_> = passing.map(|(name, _)| name).filter(|name| !served(name)).collect();
    if !unserved.is_empty() {
        let unserved = unserved.iter().map(|model| model.as_str()).collect::<Vec<_>>().join(", ");
        return Err(Fault(format!("{}, but none of them serves {unserved}, so its jobs wait", of_stage.len())));
    }
    Ok(of_stage.len().to_string())
}

fn versions(workers: &[Worker]) -> Result<String, Fault> {
    let own = env!("CARGO_PKG_VERSION");
    let mut by_version: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for worker in workers {
        // Earlier releases don't say theirs.
        let version = if worker.version.is_empty() { "an older one" } else { &worker.version };
        by_version.entry(version).or_default().push(&worker.worker);
    }
    let others: Vec<_> = by_version
        .iter()
        .filter(|(version, _)| **version != own)
        .map(|(version, names)| format!("{version}: {}", names.join(", ")))
        .collect();
    if others.is_empty() {
        return Ok(format!("all {own}"));
    }
    Err(Fault(format!(
        "this is {own}, and workers run other releases ({}): one release back and forth works together, but finish the change",
        others.join("; ")
    )))
}

/// The store is the pipeline's, can be written to, and refuses to overwrite.
pub(super) async fn store(plan: &Plan, settings: Option<&Settings>) -> Result<String, Fault> {
    let StoreUrl::Url(url) = &plan.store.url else { return Err(Error::NoStore.into()) };
    if let Some(settings) = settings {
        stores::check_mark(plan, settings).await?;
    }
    stores::open(plan)?.probe_conditional_put().await?;
    if let Some(path) = &plan.store.key_file {
        SealKey::read(Path::new(path)).map_err(|error| Fault(format!("store.key_file {path}: {}", causes(&error))))?;
    }
    if let Some(problem) = room::shortage(room::of_store(plan)) {
        return Err(Fault(problem));
    }
    Ok(format!("{url} takes create-only puts"))
}
