//! The plan's object store, and the mark that tells whether it is the pipeline's.

use std::path::Path;

use baton_storage::{Codec, store::Store};
use baton_topology::{self as topology, Plan, Settings, StoreUrl};

use crate::Error;

/// Opens the plan's object store, whose URL must be known.
pub fn open(plan: &Plan) -> Result<Store, Error> {
    open_with(plan, plan.store.sync)
}

/// Opens the plan's object store for what can't be computed again: each put survives a loss of power.
pub fn open_durable(plan: &Plan) -> Result<Store, Error> {
    open_with(plan, true)
}

fn open_with(plan: &Plan, sync: bool) -> Result<Store, Error> {
    let StoreUrl::Url(url) = &plan.store.url else { return Err(Error::NoStore) };
    Ok(if sync { Store::open(url)? } else { Store::open_unsynced(url)? })
}

/// How the plan's KV chunks are packed.
pub fn codec(plan: &Plan) -> Codec {
    match plan.store.codec {
        topology::Codec::Lossless => Codec::Lossless,
        topology::Codec::Near => Codec::Near,
        topology::Codec::Balanced => Codec::Balanced,
        topology::Codec::Raw => Codec::Raw,
    }
}

/// Puts the pipeline's mark into its store.
pub async fn mark(plan: &Plan, settings: &Settings) -> Result<(), Error> {
    Ok(open_durable(plan)?.put_pipeline_mark(&settings.pipeline).await?)
}

/// Whether the store is the pipeline's: a folder with its name may be another one on another machine.
pub async fn check_mark(plan: &Plan, settings: &Settings) -> Result<(), Error> {
    let StoreUrl::Url(url) = &plan.store.url else { return Err(Error::NoStore) };
    let other = || Error::OtherStore { url: url.clone() };
    if let Some(path) = url.strip_prefix("file://").filter(|_| settings.marked) {
        // Opening it would make it.
        Path::new(path).is_dir().then_some(()).ok_or_else(other)?;
    }
    let store = open(plan)?;
    if settings.marked && !store.has_pipeline_mark(&settings.pipeline).await? {
        return Err(other());
    }
    Ok(())
}
