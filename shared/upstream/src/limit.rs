//! How many requests an instance gets at once. Pure: no clock, no network; told what comes of requests, and of the engine's queue.
//!
//! A limit that finds itself grows while it holds requests back and nothing waits inside the engine: by doubling at first, and later by
//! one, by two, by four, as long as the engine's queue stays empty. Once something waits it stands, for a few waiting requests are
//! what an engine fills its next place with at once. When more wait for some looks, it falls by as many as there are too many of ours.
//! What waits is told by the engine's metrics; where it has none, those of our requests count as waiting whose first token is overdue.
//!
//! An engine without room (429, 503) has it cut by a part, once for all requests that were put before, and nothing is put while the
//! pause lasts. When an instance can't be reached, or fails several requests in a row, one request at a time finds out whether it is
//! back, after pauses that grow; with its first sign of life the limit is what it was.

mod outage;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, VecDeque},
    mem,
    ops::RangeInclusive,
    time::Duration,
};

use baton_contract::backoff::{Backoff, Pauses};

use self::outage::Outage;
use crate::{Ended, metrics::Figures};

/// Requests at an instance of which nothing is known.
const FIRST: usize = 8;
/// Requests at an instance at most.
const MOST: usize = 1024;
/// What an engine without room leaves of a limit, in tenths.
const CUT_TENTHS: usize = 7;
/// The pauses after an engine had no room and named none.
const NO_ROOM: Backoff = Backoff::doubling(Duration::from_millis(250), Duration::from_secs(4));
/// Pauses that an engine names are taken for no less and no more.
const PAUSES: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(60);
/// After an engine had no room the limit does not grow for so long.
const QUIET: Duration = Duration::from_secs(5);
/// A first token is overdue when it takes this many times as long as the soonest, and at least [`OVERDUE`] longer.
const OVERDUE_TIMES: u32 = 2;
const OVERDUE: Duration = Duration::from_millis(100);
/// Looks of which the usual one counts: one alone may meet a burst, or the moment after one.
const LOOKS: usize = 4;
/// An instance that fails so many requests in a row is taken to fail all of them.
const FAILURES: u32 = 4;
/// A limit is not what it was, but half of it, after an outage that follows the last so soon: it may have been the cause.
const AGAIN_WITHIN: Duration = Duration::from_secs(30);

/// The limit of one instance, and what is known of it.
#[derive(Debug)]
pub(crate) struct Limit {
    fixed: bool,
    limit: usize,
    requests: BTreeMap<u64, Request>,
    next: u64,
    growth: Growth,
    /// The soonest first token.
    floor: Option<Duration>,
    /// No request is put before.
    paused_until: Duration,
    no_room: Pauses,
    /// Requests that failed since one succeeded last.
    failures: u32,
    outage: Option<Outage>,
    recovered_at: Option<Duration>,
    /// What the last check of its health said.
    healthy: Option<bool>,
    /// Whether one ever said that it is well, so that such checks can be believed.
    trusted: bool,
    seed: u64,
}

/// A request that it has.
#[derive(Debug)]
struct Request {
    at: Duration,
    begun: bool,
    /// Whether there was room for as many again when it was put.
    in_quiet: bool,
}

/// What is known since the limit changed last.
#[derive(Debug)]
struct Growth {
    /// The first request that was put since.
    since: u64,
    /// First tokens of such requests that are to come before it grows on.
    awaited: usize,
    /// By how much it grows next.
    step: usize,
    /// Whether it has met the engine's queue.
    has_met: bool,
    /// The most requests since the last look.
    peak: usize,
    /// What waited at the last looks.
    waiting: VecDeque<usize>,
    /// It does not grow before.
    not_before: Duration,
}

impl Limit {
    /// A fixed one, or one that finds itself. A `seed` spreads the pauses of several.
    pub(crate) fn new(fixed: Option<usize>, seed: u64) -> Self {
        let limit = fixed.unwrap_or(FIRST).clamp(1, MOST);
        Self {
            fixed: fixed.is_some(),
            limit,
            requests: BTreeMap::new(),
            next: 0,
            growth: Growth {
                since: 0,
                awaited: 1,
                step: limit,
                peak: 0,
                has_met: false,
                waiting: VecDeque::new(),
                not_before: Duration::ZERO,
            },
            floor: None,
            paused_until: Duration::ZERO,
            no_room: NO_ROOM.pauses(seed),
            failures: 0,
            outage: None,
            recovered_at: None,
            healthy: None,
            trusted: false,
            seed,
        }
    }

    /// Requests that it may have at once: one while it is not known to be up.
    pub(crate) fn limit(&self) -> usize {
        if self.outage.is_some() { 1 } else { self.limit }
    }

    /// Requests that it has.
    pub(crate) fn running(&self) -> usize {
        self.requests.len()
    }

    /// How many jobs are worth having for it: no more than it has while it wants to be left alone.
    pub(crate) fn room(&self, now: Duration) -> usize {
        if now < self.paused_until { self.running().min(self.limit()) } else { self.limit() }
    }

    /// Whether nothing speaks against it.
    pub(crate) fn is_working(&self) -> bool {
        self.outage.is_none()
    }

    /// Whether it answers, as far as is known.
    pub(crate) fn is_up(&self) -> bool {
        self.outage.as_ref().is_none_or(Outage::is_healed)
    }

    /// Whether it may get a request.
    pub(crate) fn is_open(&self, now: Duration) -> bool {
        now >= self.paused_until
            && match &self.outage {
                Some(outage) => outage.is_due(now),
                None => self.running() < self.limit,
            }
    }

    /// When it may get a request through nothing but time, if so.
    pub(crate) fn opens_at(&self) -> Option<Duration> {
        match &self.outage {
            Some(outage) => outage.next_try().map(|next| next.max(self.paused_until)),
            None => (self.running() < self.limit).then_some(self.paused_until),
        }
    }

    /// A request is put; returns its number.
    pub(crate) fn start(&mut self, now: Duration) -> u64 {
        let id = self.next;
        self.next += 1;
        let in_quiet = 2 * self.running() < self.limit;
        self.requests.insert(id, Request { at: now, begun: false, in_quiet });
        self.growth.peak = self.growth.peak.max(self.running());
        if let Some(outage) = &mut self.outage {
            outage.tries(id, now);
        }
        id
    }

    /// A request's first token has come.
    pub(crate) fn first_token(&mut self, id: u64, now: Duration) {
        let Some(request) = self.requests.get_mut(&id) else { return };
        if mem::replace(&mut request.begun, true) {
            return;
        }
        let (took, in_quiet) = (now.saturating_sub(request.at), request.in_quiet);
        self.floor = Some(match self.floor {
            // Requests may become longer; of those that may have waited nothing can be learned of that.
            Some(floor) if took > floor => {
                if in_quiet {
                    floor + (took - floor) / 8
                } else {
                    floor
                }
            }
            _ => took,
        });
        if id >= self.growth.since {
            self.growth.awaited = self.growth.awaited.saturating_sub(1);
        }
        self.lives(id, now);
    }

    /// A request has ended.
    pub(crate) fn end(&mut self, id: u64, ended: Ended, now: Duration) {
        if matches!(ended, Ended::Answered) {
            self.first_token(id, now);
        }
        if self.requests.remove(&id).is_none() {
            return;
        }
        match ended {
            Ended::Answered | Ended::Refused => self.lives(id, now),
            Ended::PutOff(pause) => self.put_off(id, pause, now),
            Ended::Failed => {
                self.failures += 1;
                if self.failures >= FAILURES || self.outage.is_some() {
                    self.fails(id, now);
                }
            }
            Ended::Gone => self.fails(id, now),
            Ended::Left => {
                if let Some(outage) = &mut self.outage {
                    outage.leaves(id, now);
                }
            }
        }
    }

    /// The instance was asked whether it is well.
    pub(crate) fn check(&mut self, well: bool, now: Duration) {
        let before = self.healthy.replace(well);
        self.trusted |= well;
        match (&mut self.outage, well) {
            (Some(outage), true) => outage.is_well(before == Some(false), now),
            (Some(outage), false) => outage.is_unwell(self.trusted),
            // One that works has better things to do than to say so.
            (None, false) if self.requests.is_empty() => {
                let mut outage = Outage::new(now, self.seed);
                outage.is_unwell(self.trusted);
                self.outage = Some(outage);
            }
            (None, _) => {}
        }
    }

    /// A look at the engine's queue, about twice a second: what it tells, or nothing if it has no metrics.
    pub(crate) fn look(&mut self, told: Option<Figures>, now: Duration) {
        let running = self.running();
        let peak = mem::replace(&mut self.growth.peak, running);
        // What was put under a higher limit is to be answered first.
        if self.fixed || self.outage.is_some() || peak > self.limit {
            return self.growth.waiting.clear();
        }
        let (waiting, all) = match told {
            Some(told) => (told.waiting, told.running.map_or(running, |works| works + told.waiting)),
            None => match self.overdue(now) {
                Some(waiting) => (waiting, running),
                None => return,
            },
        };
        let growth = &mut self.growth;
        growth.waiting.truncate(LOOKS - 1);
        growth.waiting.push_front(waiting);
        let looks = growth.waiting.len();
        // The lower one of those in the middle.
        let mut sorted: Vec<_> = growth.waiting.iter().copied().collect();
        let usual = *sorted.select_nth_unstable(looks.saturating_sub(2) / 2).1;
        let works = all.saturating_sub(waiting);
        let bearable = if told.is_some() { (2 + works / 4).min(16) } else { 2 + works / 3 };
        let is_empty = growth.waiting.iter().take(2).all(|waiting| 4 * waiting < bearable);
        if !is_empty {
            (growth.step, growth.has_met) = (1, true);
        }
        if usual > bearable && looks > 1 {
            let excess = usual - bearable * 3 / 4;
            let ours = (excess * running.min(all)).div_ceil(all.max(1));
            self.change(self.limit.saturating_sub(ours));
        } else if is_empty
            && (looks > 1 || !growth.has_met)
            && peak >= self.limit
            && growth.awaited == 0
            && now >= growth.not_before
        {
            let step = growth.step;
            self.change(self.limit + step);
            self.growth.step = (2 * step).min(MOST);
        }
    }

    /// Our requests that wait for their first token longer than they should, if it is known how long that takes.
    fn overdue(&self, now: Duration) -> Option<usize> {
        let floor = self.floor?;
        let patience = (OVERDUE_TIMES * floor).max(floor + OVERDUE);
        let overdue = |request: &&Request| !request.begun && now.saturating_sub(request.at) > patience;
        Some(self.requests.values().filter(overdue).count())
    }

    fn change(&mut self, limit: usize) {
        let limit = limit.clamp(1, MOST);
        let grown = limit.saturating_sub(self.limit);
        self.limit = limit;
        let growth = &mut self.growth;
        (growth.since, growth.awaited) = (self.next, (grown / 2).max(1));
        growth.waiting.clear();
    }

    /// A request has shown that the instance works.
    fn lives(&mut self, id: u64, now: Duration) {
        self.no_room.reset();
        self.failures = 0;
        let Some(outage) = self.outage.take_if(|outage| outage.ends_with(id, now)) else { return };
        let again = self.recovered_at.is_some_and(|last| outage.since().saturating_sub(last) < AGAIN_WITHIN);
        if outage.was_long() {
            self.recovered_at = Some(now);
            if again && !self.fixed {
                self.change(self.limit / 2);
            }
        }
        self.growth.since = self.next;
    }

    /// The instance has no room.
    fn put_off(&mut self, id: u64, pause: Option<Duration>, now: Duration) {
        let pause = pause.unwrap_or_else(|| self.no_room.pause()).clamp(*PAUSES.start(), *PAUSES.end());
        if let Some(outage) = &mut self.outage {
            return outage.is_put_off(id, now + pause);
        }
        self.paused_until = self.paused_until.max(now + pause);
        self.growth.not_before = self.paused_until + QUIET;
        (self.growth.step, self.growth.has_met) = (1, true);
        // The others that were put before say the same.
        if !self.fixed && id >= self.growth.since {
            let accepted = self.running().max(1);
            self.change((self.limit * CUT_TENTHS / 10).min(accepted));
        }
    }

    /// The instance can't be reached, or answers nothing of use.
    fn fails(&mut self, id: u64, now: Duration) {
        match &mut self.outage {
            Some(outage) => outage.fails(id, now),
            None => self.outage = Some(Outage::new(now, self.seed)),
        }
    }
}
