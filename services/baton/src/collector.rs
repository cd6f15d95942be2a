//! Collection of the object store: by hand (`baton kv gc`), and now and then by a worker whose turn it is.

use std::{collections::HashSet, time::Duration, time::SystemTime};

use anyhow::Context;
use baton_bus::{Bus, turn::Turn};
use baton_contract::{envelope::DecodeTask, subject::Stage};
use baton_storage::{
    ChunkId, Store,
    collect::{self, Census, Leftover, Object, Options, Removal, Swept, TOUCH_EVERY},
};
use baton_topology::Plan;
use futures::TryStreamExt;
use indicatif::ProgressBar;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::context;

/// The name of the chore among those that one worker does for all.
const CHORE: &str = "gc";
/// What is younger than this stays, whatever else is said: long enough for prefill, which no message to decode protects yet.
const GRACE: Duration = Duration::from_secs(3_600);

/// What a store holds, and what of it can go.
pub struct Survey {
    pub objects: Vec<Object>,
    /// Jobs that wait for decode or are in its hands.
    pub jobs: u64,
    /// The chunks that they name.
    pub live: HashSet<ChunkId>,
    pub removals: Vec<Removal>,
    pub leftovers: Vec<Leftover>,
    pub now: SystemTime,
}

/// How the plan wants its store kept.
pub fn options(plan: &Plan) -> Options {
    let prefill = &plan.stages.prefill.compute.stage;
    let all_tries = prefill.ack_wait.saturating_mul(u32::try_from(prefill.max_deliver).unwrap_or(u32::MAX));
    Options {
        max_age: plan.store.max_age,
        max_bytes: plan.store.max_bytes.map(|bytes| bytes.0),
        grace: GRACE.max(TOUCH_EVERY + all_tries),
    }
}

impl Survey {
    /// Lists the store, then reads which chunks the waiting jobs name: a job that comes after that names chunks that were
    /// put or touched within the grace period.
    pub async fn take(store: &Store, bus: &Bus, options: &Options, bar: &ProgressBar) -> anyhow::Result<Self> {
        bar.set_message("listing the store");
        let Census { objects, mut leftovers } = Census::take(store, || bar.inc(1)).await?;
        bar.reset();
        bar.set_message("reading the waiting jobs");
        let (jobs, live) = live(bus, bar).await?;
        let now = store.now().await?;
        let removals = collect::plan(&objects, &live, now, options);
        leftovers.retain(|leftover| leftover.is_older_than(options.grace, now));
        Ok(Self { objects, jobs, live, removals, leftovers, now })
    }
}

/// How many jobs wait, and the chunks that they name.
async fn live(bus: &Bus, bar: &ProgressBar) -> anyhow::Result<(u64, HashSet<ChunkId>)> {
    let mut waiting = bus.waiting::<DecodeTask>(Stage::Decode).await?;
    bar.set_length(waiting.count);
    let (mut jobs, mut live) = (0, HashSet::new());
    let unknown = "cannot tell which chunks the waiting jobs need, so none may be removed";
    while let Some(task) = waiting.tasks.try_next().await.context(unknown)? {
        bar.inc(1);
        jobs += 1;
        live.extend(task.pieces.iter().map(|piece| ChunkId(piece.id)));
    }
    Ok((jobs, live))
}

/// Removes what a survey found, unless it was used meanwhile.
pub async fn sweep(store: &Store, survey: Survey, bar: &ProgressBar) -> Swept {
    bar.reset();
    bar.set_message("removing");
    bar.set_length((survey.removals.len() + survey.leftovers.len()) as u64);
    collect::sweep(store, survey.removals, survey.leftovers, || bar.inc(1)).await
}

/// Collects whenever it is this worker's turn, until `shutdown`. All workers that have the store take part; one does it.
pub async fn keep(plan: Plan, bus: Bus, shutdown: CancellationToken) {
    let turns = async {
        loop {
            let pause = in_turn(&plan, &bus).await.unwrap_or_else(|error| {
                tracing::warn!(error = format!("{error:#}"), "unused KV chunks were not removed; it is tried again");
                plan.store.gc_interval
            });
            sleep(pause).await;
        }
    };
    tokio::select! {
        () = turns => {}
        () = shutdown.cancelled() => {}
    }
}

/// Returns how long there is nothing to do.
async fn in_turn(plan: &Plan, bus: &Bus) -> anyhow::Result<Duration> {
    let every = plan.store.gc_interval;
    if let Turn::In(wait) = bus.jobs().await?.turn(CHORE, every).await? {
        return Ok(wait);
    }
    let (store, hidden) = (context::open_store(plan)?, ProgressBar::hidden());
    let survey = Survey::take(&store, bus, &options(plan), &hidden).await?;
    let (chunks, live) = (survey.objects.len(), survey.live.len());
    let swept = sweep(&store, survey, &hidden).await;
    let bytes: u64 = swept.removed.iter().map(|removal| removal.object.bytes).sum();
    let (removed, leftovers, spared) = (swept.removed.len(), swept.leftovers, swept.spared);
    tracing::info!(chunks, live, removed, bytes, leftovers, spared, "unused KV chunks were removed");
    match swept.error {
        None => Ok(every),
        Some(error) => Err(error).context(format!("{} objects could not be removed", swept.failed)),
    }
}
