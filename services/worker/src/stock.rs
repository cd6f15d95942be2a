//! What a survey of the store comes to.

use baton_storage::{
    collect::{Object, Reason, Removal},
    store::{self, Store},
};
use indicatif::{BinaryBytes, ProgressBar};
use serde::Serialize;

use crate::collector::{self, Survey};

/// A number of chunks or tails.
#[derive(Default, Serialize)]
pub struct Total {
    /// How many.
    pub chunks: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl<'a> FromIterator<&'a Object> for Total {
    fn from_iter<T: IntoIterator<Item = &'a Object>>(objects: T) -> Self {
        objects
            .into_iter()
            .fold(Self::default(), |total, object| Self { chunks: total.chunks + 1, bytes: total.bytes + object.bytes })
    }
}

impl std::fmt::Display for Total {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} chunk{}, {}", self.chunks, if self.chunks == 1 { "" } else { "s" }, BinaryBytes(self.bytes))
    }
}

/// What goes, or went.
#[derive(Serialize)]
pub struct Removed {
    /// Not used for too long.
    pub age: Total,
    /// Beyond what the store may take.
    pub budget: Total,
}

impl Removed {
    /// Counts removals by their reason.
    pub fn of(removals: &[Removal]) -> Self {
        let total = |reason| {
            removals.iter().filter(|removal| removal.reason == reason).map(|removal| &removal.object).collect::<Total>()
        };
        Self { age: total(Reason::Age), budget: total(Reason::Budget) }
    }
}

impl std::fmt::Display for Removed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} for age; {} for the budget", self.age, self.budget)
    }
}

/// What a store holds.
#[derive(Serialize)]
pub struct Stock {
    /// Chunks and tails.
    pub stored: Total,
    /// Tails: each of one job.
    pub tails: Total,
    /// What all may take: `store.max_bytes`, or a share of what is free and stored in a local store.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_bytes: Option<u64>,
    /// Seconds since the last use of the chunk that was not used for longest.
    pub oldest_s: u64,
    /// Jobs that wait for decode or are in its hands.
    pub waiting_jobs: u64,
    /// Messages among the waiting ones that this release can't read.
    pub unread: u64,
    /// What those jobs name.
    pub live: Total,
    /// Chunks that they name and that are not there: they will be computed again.
    pub missing: u64,
}

impl Stock {
    /// Counts what a survey found.
    pub fn of(survey: &Survey) -> Self {
        let all = || survey.objects.iter().chain(&survey.tails);
        let live: Total = all().filter(|object| survey.waiting.live.contains(&object.id)).collect();
        let oldest = survey.objects.iter().map(|object| object.age(survey.now)).max();
        Self {
            stored: all().collect(),
            tails: survey.tails.iter().collect(),
            max_bytes: survey.max_bytes,
            oldest_s: oldest.unwrap_or_default().as_secs(),
            waiting_jobs: survey.waiting.jobs,
            unread: survey.waiting.unread,
            missing: survey.waiting.live.len() as u64 - live.chunks,
            live,
        }
    }
}

/// What a store holds, and what a collection would remove.
#[derive(Serialize)]
pub struct Stat {
    /// The store's URL.
    pub store: String,
    /// What it holds.
    #[serde(flatten)]
    pub stock: Stock,
    /// The chunks that would go.
    pub would_remove: Removed,
    /// What crashes and ended jobs left, and would go.
    pub would_remove_leftovers: u64,
}

impl Stat {
    /// Counts what a survey of the store at `url` found.
    pub fn of(url: String, survey: &Survey) -> Self {
        Self {
            store: url,
            stock: Stock::of(survey),
            would_remove: Removed::of(&survey.removals),
            would_remove_leftovers: survey.leftovers.len() as u64,
        }
    }
}

/// What a collection removed, or would remove.
#[derive(Serialize)]
pub struct Collected {
    /// Whether nothing was removed.
    pub dry_run: bool,
    /// As it was before.
    #[serde(flatten)]
    pub stock: Stock,
    /// The chunks that went, or would go.
    pub removed: Removed,
    /// Objects of no use that crashes left, and tails of jobs that ended.
    pub removed_leftovers: u64,
    /// Chunks that were to go and were used meanwhile.
    pub spared: u64,
    /// Objects that could not be removed.
    pub failed: u64,
}

/// Removes what a survey found; with `dry_run` only counts it. With it comes why the first object that could not be removed stayed.
pub async fn collect(
    store: &Store,
    survey: Survey,
    dry_run: bool,
    bar: &ProgressBar,
) -> (Collected, Option<store::Error>) {
    let stock = Stock::of(&survey);
    if dry_run {
        let (removed, removed_leftovers) = (Removed::of(&survey.removals), survey.leftovers.len() as u64);
        return (Collected { dry_run, stock, removed, removed_leftovers, spared: 0, failed: 0 }, None);
    }
    let swept = collector::sweep(store, survey, bar).await;
    let collected = Collected {
        dry_run,
        stock,
        removed: Removed::of(&swept.removed),
        removed_leftovers: swept.leftovers,
        spared: swept.spared,
        failed: swept.failed,
    };
    (collected, swept.error)
}
