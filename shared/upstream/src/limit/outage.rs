//! An instance that is not known to work: when it is tried again, and what shows that it does.

use std::time::Duration;

use baton_contract::backoff::{Backoff, Pauses};

/// The pauses between tries.
const TRIES: Backoff = Backoff::doubling(Duration::from_millis(250), Duration::from_secs(2));
/// The same while checks of its health, which can be believed, say that it is not well.
const UNWELL: Duration = Duration::from_secs(30);
/// What comes of requests that were put before is believed after so long: until then it may have been on its way.
const ON_ITS_WAY: Duration = Duration::from_millis(250);

#[derive(Debug)]
pub(super) struct Outage {
    since: Duration,
    pauses: Pauses,
    /// When it may be tried.
    next: Duration,
    tried_at: Duration,
    /// The request that tries it.
    trying: Option<u64>,
    /// Whether a try or a check has failed, too.
    long: bool,
    /// Whether a check has found it well, and no try has failed since.
    healed: bool,
}

impl Outage {
    pub(super) fn new(now: Duration, seed: u64) -> Self {
        let mut pauses = TRIES.pauses(seed);
        let next = now + pauses.pause();
        Self { since: now, pauses, next, tried_at: now, trying: None, long: false, healed: false }
    }

    pub(super) fn since(&self) -> Duration {
        self.since
    }

    /// Whether it was more than requests that failed together.
    pub(super) fn was_long(&self) -> bool {
        self.long
    }

    pub(super) fn is_healed(&self) -> bool {
        self.healed
    }

    pub(super) fn is_due(&self, now: Duration) -> bool {
        self.next_try().is_some_and(|next| now >= next)
    }

    /// When it may be tried; none while a request does.
    pub(super) fn next_try(&self) -> Option<Duration> {
        self.trying.is_none().then_some(self.next)
    }

    pub(super) fn tries(&mut self, id: u64, now: Duration) {
        (self.trying, self.tried_at) = (Some(id), now);
    }

    /// Nobody waits for the answer of a request any more, which says nothing of the instance.
    pub(super) fn leaves(&mut self, id: u64, now: Duration) {
        if self.trying.take_if(|trying| *trying == id).is_some() {
            self.next = now;
        }
    }

    /// A request has failed.
    pub(super) fn fails(&mut self, id: u64, now: Duration) {
        if self.trying.take_if(|trying| *trying == id).is_some() {
            (self.long, self.healed) = (true, false);
            self.next = now + self.pauses.pause();
        }
    }

    /// It answers, but has no room before.
    pub(super) fn is_put_off(&mut self, id: u64, until: Duration) {
        if self.trying.take_if(|trying| *trying == id).is_some() {
            self.next = until;
        }
    }

    /// A check has found it well; that says something only after one that had not.
    pub(super) fn is_well(&mut self, was_unwell: bool, now: Duration) {
        if was_unwell {
            self.healed = true;
            self.pauses.reset();
            self.next = self.next.min(now);
        }
    }

    /// A check has found it unwell.
    pub(super) fn is_unwell(&mut self, trusted: bool) {
        (self.long, self.healed) = (true, false);
        if trusted {
            self.next = self.next.max(self.tried_at + UNWELL);
        }
    }

    /// Whether a request's sign of life ends it.
    pub(super) fn ends_with(&self, id: u64, now: Duration) -> bool {
        self.trying == Some(id) || now >= self.since + ON_ITS_WAY
    }
}
