//! Collection of the object store: on request (`baton kv gc`), and now and then by a worker whose turn it is.

use std::{collections::HashSet, time::Duration, time::SystemTime};

use baton_assembly::{join, store};
use baton_bus::{Bus, duty::chore::Turn, inspect::queue_peek::Read};
use baton_contract::{causes, envelope::DecodeTask, subject::Stage};
use baton_storage::{
    ChunkId, Store,
    collect::{self, Census, Leftover, Object, Options, Removal, Swept, TOUCH_EVERY},
};
use baton_topology::Plan;
use futures::TryStreamExt;
use indicatif::ProgressBar;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::Error;

/// The name of the chore among those that one worker does for all.
const CHORE: &str = "gc";
/// What is younger than this stays, whatever else is said: long enough for prefill, which no message to decode protects yet.
const GRACE: Duration = Duration::from_secs(3_600);

/// What a local store's chunks may take of what is free there and what they take already, where no `max_bytes` is set: the
/// broker and others want some, too.
const SHARE: f64 = 0.8;

/// What a store holds, and what of it can go.
pub struct Survey {
    /// The chunks.
    pub objects: Vec<Object>,
    /// The ends of prompts, each of one job.
    pub tails: Vec<Object>,
    /// What waiting jobs need.
    pub waiting: Waiting,
    /// The chunks that can go.
    pub removals: Vec<Removal>,
    /// What crashed workers and ended jobs left, which can go.
    pub leftovers: Vec<Leftover>,
    /// What all of it may take.
    pub max_bytes: Option<u64>,
    /// The store's time.
    pub now: SystemTime,
}

/// Jobs that wait for decode or are in its hands.
#[derive(Default)]
pub struct Waiting {
    /// How many of their messages were read.
    pub jobs: u64,
    /// The chunks that they name.
    pub live: HashSet<ChunkId>,
    /// Messages of another release, or garbage: nobody knows which chunks they name.
    pub unread: u64,
    /// When the broker stored the oldest of those, in milliseconds since 1970.
    oldest_unread_ms: Option<u64>,
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
    pub async fn take(store: &Store, bus: &Bus, options: &Options, bar: &ProgressBar) -> Result<Self, Error> {
        bar.set_message("listing the store");
        let Census { objects, tails, mut leftovers } = Census::take(store, || bar.inc(1)).await?;
        bar.reset();
        bar.set_message("reading the waiting jobs");
        let waiting = Waiting::read(bus, bar).await?;
        let now = store.now().await?;
        let oldest_unread = match waiting.oldest_unread_ms {
            Some(stored_ms) => Some(Duration::from_millis(bus.clock().now_ms().await?.saturating_sub(stored_ms))),
            None => None,
        };
        let kept = Options { grace: spared(options.grace, oldest_unread), ..*options };
        let bytes = |objects: &[Object]| objects.iter().map(|object| object.bytes).sum::<u64>();
        let (of_chunks, of_tails) = (bytes(&objects), bytes(&tails));
        let room = || store.free_bytes().map(|free| ((free + of_chunks + of_tails) as f64 * SHARE) as u64);
        let max_bytes = options.max_bytes.or_else(room);
        let of_chunks = Options { max_bytes: max_bytes.map(|most| most.saturating_sub(of_tails)), ..kept };
        let removals = collect::plan(&objects, &waiting.live, now, &of_chunks);
        // A tail that no waiting job names is of a job that has ended, and whose worker did not remove it.
        leftovers.extend(tails.iter().filter(|tail| !waiting.live.contains(&tail.id)).map(Leftover::tail));
        leftovers.retain(|leftover| leftover.is_older_than(kept.grace, now));
        Ok(Self { objects, tails, waiting, removals, leftovers, max_bytes, now })
    }
}

/// What is younger than this stays, if the oldest message that can't be read is so old. Whatever it names was put, or used and
/// touched, within the grace period before it was stored; so all that was used since stays, and the rest may go.
fn spared(grace: Duration, oldest_unread: Option<Duration>) -> Duration {
    oldest_unread.map_or(grace, |age| grace.max(GRACE).saturating_add(age))
}

impl Waiting {
    async fn read(bus: &Bus, bar: &ProgressBar) -> Result<Self, Error> {
        let mut queue = bus.waiting::<DecodeTask>(Stage::Decode).await?;
        bar.set_length(queue.count);
        let mut waiting = Self::default();
        while let Some(read) = queue.tasks.try_next().await.map_err(Error::UnknownChunks)? {
            bar.inc(1);
            match read {
                Read::Task(task) => {
                    waiting.jobs += 1;
                    waiting.live.extend(task.pieces.iter().map(|piece| ChunkId(piece.id)));
                }
                Read::Unread(message) => {
                    tracing::debug!(
                        sequence = message.sequence,
                        error = causes(&message.error),
                        "a message was not read"
                    );
                    waiting.unread += 1;
                    let oldest = waiting.oldest_unread_ms.get_or_insert(message.stored_ms);
                    *oldest = message.stored_ms.min(*oldest);
                }
            }
        }
        Ok(waiting)
    }
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
                tracing::warn!(error = %causes(&error), "unused KV chunks were not removed; it is tried again");
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
async fn in_turn(plan: &Plan, bus: &Bus) -> Result<Duration, Error> {
    let every = plan.store.gc_interval;
    if let Turn::In(wait) = bus.jobs().await?.turn(CHORE, every).await? {
        return Ok(wait);
    }
    if let Some(kept) = bus.settings().await? {
        // A bucket may forget what is old.
        store::mark(plan, &join::read(&kept)?).await?;
    }
    let (store, hidden) = (store::open(plan)?, ProgressBar::hidden());
    let survey = Survey::take(&store, bus, &options(plan), &hidden).await?;
    let (chunks, tails) = (survey.objects.len(), survey.tails.len());
    let (live, unread) = (survey.waiting.live.len(), survey.waiting.unread);
    let swept = sweep(&store, survey, &hidden).await;
    let bytes: u64 = swept.removed.iter().map(|removal| removal.object.bytes).sum();
    let (removed, leftovers, spared) = (swept.removed.len(), swept.leftovers, swept.spared);
    tracing::info!(chunks, tails, live, unread, removed, bytes, leftovers, spared, "unused KV chunks were removed");
    match swept.error {
        None => Ok(every),
        Some(source) => Err(Error::NotRemoved { failed: swept.failed, source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_message_of_another_release_may_name_stays() {
        let (hour, day) = (Duration::from_secs(3_600), Duration::from_secs(86_400));
        assert_eq!(spared(hour, None), hour);
        assert_eq!(spared(2 * hour, Some(day)), day + 2 * hour);
        // Whoever asks for less must not lose what nobody can tell.
        assert_eq!(spared(Duration::ZERO, Some(day)), day + GRACE);
        const { assert!(GRACE.as_secs() > TOUCH_EVERY.as_secs()) };
    }
}
