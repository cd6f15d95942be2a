//! Which queue free slots ask next: the most urgent lane that has messages, and now and then one behind it.
//!
//! A queue can be asked in two ways. Where there are slots enough, each idle queue keeps one waiting for its next message.
//! Where there are few, a slot that waits at an empty queue is missed at a full one; so queues are looked into, in the order of
//! their lanes, and a slot waits only when all were found empty. Pure: no broker, no clock.

#[cfg(test)]
mod tests;

use std::time::Duration;

use tokio::time::Instant;

/// Messages taken at one time at most.
const BURST: usize = 64;
/// While messages of several lanes wait, one of so many is taken from each lane but the most urgent.
const SHARE: usize = 8;
/// How long a slot waits at an empty queue.
const WAIT: Duration = Duration::from_secs(5);
/// The same where slots are few: an empty queue must not keep them from a full one.
const SHORT_WAIT: Duration = Duration::from_millis(200);
/// The same for several slots: those whose messages do not come must not be kept from other queues.
const EAGER_WAIT: Duration = Duration::from_millis(100);
/// A queue that was found empty is not looked into again any sooner, for each queue that there is: it bounds what jobs of no
/// length cost the broker to 200 looks in vain a second.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// What free slots ask next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Turn {
    pub(super) queue: usize,
    /// Messages to ask for; never more than there are free slots.
    pub(super) count: usize,
    /// How long to wait for them; none takes what is there.
    pub(super) wait: Option<Duration>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// May be asked.
    Free,
    /// Asked for what is there: the answer is on its way.
    Looking,
    /// Asked, and waiting for messages.
    Waiting,
    /// Could not be asked, and is left alone for some time.
    Resting,
}

struct Queue {
    lane: usize,
    state: State,
    /// When it was found empty.
    empty: Option<Instant>,
    /// Whether a message of any queue came since: no slot waits any more, so that it must be looked into again.
    stale: bool,
    /// Messages that it is asked for: as many as came lately, so that a busy queue takes few pulls and an idle one few slots.
    appetite: usize,
    /// The number of the turn in which it was asked last.
    asked: u64,
}

/// The queues that a worker serves, and what each lane is owed.
pub(super) struct Turns {
    queues: Vec<Queue>,
    /// For each lane, the messages of others that were taken while it waited for a slot.
    passed: Vec<usize>,
    /// Whether each idle queue can keep a slot.
    standing: bool,
    look_again: Duration,
    /// Messages that one queue is asked for at most where idle queues keep slots.
    most: usize,
    turn: u64,
}

impl Turns {
    /// For queues of these lanes, 0 being the most urgent one, shared among `slots`.
    pub(super) fn new(lanes: &[usize], slots: usize) -> Self {
        let queue = |&lane| Queue { lane, state: State::Free, empty: None, stale: false, appetite: 1, asked: 0 };
        let mut turns = Self {
            queues: lanes.iter().map(queue).collect(),
            passed: vec![0; lanes.iter().max().map_or(0, |last| last + 1)],
            standing: false,
            look_again: LOOK_AGAIN * lanes.len() as u32,
            most: 1,
            turn: 0,
        };
        turns.share(slots);
        turns
    }

    /// Shares so many slots among the queues from now on.
    pub(super) fn share(&mut self, slots: usize) {
        let count = self.queues.len();
        self.standing = count == 1 || slots >= 2 * count;
        // An idle queue keeps no more than its share of half the slots from a busy one.
        let most = if count == 1 { slots } else { slots / (2 * count) };
        self.most = most.clamp(1, BURST);
        for queue in &mut self.queues {
            queue.appetite = queue.appetite.min(self.most);
            if self.standing {
                (queue.empty, queue.stale) = (None, false);
            }
        }
    }

    /// Slots that wait at idle queues while another is busy, on top of those that it was made for.
    pub(super) fn waiting_slots(&self) -> usize {
        if self.standing { self.queues.len().saturating_sub(1) } else { 0 }
    }

    /// Whether a free slot would have something to do.
    pub(super) fn wanted(&self, now: Instant) -> bool {
        self.choose(now).is_some()
    }

    /// What `free` slots do next, at least one.
    pub(super) fn next(&mut self, free: usize, now: Instant) -> Option<Turn> {
        let (queue, due) = self.choose(now)?;
        let chosen = &self.queues[queue];
        let looks = !self.standing && self.may_have_messages(chosen, now);
        let count = match (due, looks) {
            (false, true) => BURST,
            (false, false) if self.standing => chosen.appetite,
            _ => 1,
        };
        // No more than until another lane's turn comes.
        let others = self.ready(now).filter(|&lane| lane > 0 && lane != chosen.lane);
        let until_due = others.map(|lane| (SHARE - 1).saturating_sub(self.passed[lane])).min();
        let count = count.min(until_due.unwrap_or(BURST)).min(free).max(1);
        let wait = match (looks, self.standing) {
            (true, _) => None,
            (false, false) => Some(SHORT_WAIT),
            (false, true) if count == 1 => Some(WAIT),
            (false, true) => Some(EAGER_WAIT),
        };
        self.turn += 1;
        let chosen = &mut self.queues[queue];
        chosen.asked = self.turn;
        chosen.state = if looks { State::Looking } else { State::Waiting };
        Some(Turn { queue, count, wait })
    }

    /// A turn is over: so many of its messages came.
    pub(super) fn ended(&mut self, turn: Turn, taken: usize, now: Instant) {
        for queue in self.queues.iter_mut().filter(|_| taken > 0) {
            queue.stale = true;
        }
        let queue = &mut self.queues[turn.queue];
        let (lane, full) = (queue.lane, taken >= turn.count);
        queue.state = State::Free;
        queue.appetite = if full { (2 * queue.appetite).min(self.most) } else { taken.clamp(1, self.most) };
        (queue.empty, queue.stale) = if full || self.standing { (None, false) } else { (Some(now), false) };

        let mut waiting = vec![false; self.passed.len()];
        self.ready(now).for_each(|lane| waiting[lane] = true);
        for (other, passed) in self.passed.iter_mut().enumerate() {
            if other != lane && waiting[other] {
                *passed += taken;
            }
        }
        self.passed[lane] = self.passed[lane].saturating_sub((SHARE - 1) * taken);
        // Who has no message is owed nothing.
        if !full && (self.standing || !waiting[lane]) {
            self.passed[lane] = 0;
        }
    }

    /// A queue could not be asked: it is left alone until [`Turns::rested`].
    pub(super) fn failed(&mut self, queue: usize) {
        self.queues[queue].state = State::Resting;
    }

    pub(super) fn rested(&mut self, queue: usize) {
        self.queues[queue].state = State::Free;
    }

    /// A queue that may be asked, and whether it is passed over too long.
    fn choose(&self, now: Instant) -> Option<(usize, bool)> {
        let looking = || self.queues.iter().filter(|queue| queue.state == State::Looking).map(|queue| queue.lane);
        let is_due = |&lane: &usize| lane > 0 && self.passed[lane] >= SHARE - 1;
        let due = self.ready(now).filter(is_due).max_by_key(|&lane| (self.passed[lane], usize::MAX - lane));
        let candidate: &dyn Fn(&Queue) -> bool = match due.or(self.ready(now).min()) {
            // What a more urgent queue answers comes first.
            Some(lane) if due.is_none() && looking().any(|other| other < lane) => return None,
            Some(lane) => &move |queue| queue.lane == lane && self.is_ready(queue, now),
            None if looking().next().is_some() => return None,
            None => &|queue| queue.state == State::Free,
        };
        // Queues of one lane take turns, and so do empty ones.
        let candidates = self.queues.iter().enumerate().filter(|(_, queue)| candidate(queue));
        candidates.min_by_key(|(_, queue)| queue.asked).map(|(index, _)| (index, due.is_some()))
    }

    /// The lanes of the queues that may be asked, and may have messages.
    fn ready(&self, now: Instant) -> impl Iterator<Item = usize> {
        self.queues.iter().filter(move |queue| self.is_ready(queue, now)).map(|queue| queue.lane)
    }

    fn is_ready(&self, queue: &Queue, now: Instant) -> bool {
        queue.state == State::Free && self.may_have_messages(queue, now)
    }

    fn may_have_messages(&self, queue: &Queue, now: Instant) -> bool {
        queue.empty.is_none_or(|since| queue.stale && now.duration_since(since) >= self.look_again)
    }
}
