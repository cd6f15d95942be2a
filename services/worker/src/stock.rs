//! What a survey of the store comes to.

use baton_storage::collect::{Object, Reason, Removal};
use indicatif::BinaryBytes;
use serde::Serialize;

use crate::collector::Survey;

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
