//! Who is in the batch and who waits, by pages of KV memory alone. It knows no model, no channel and no clock.
//!
//! Answers join in the order in which they came, and the one that joined last goes first when pages run short. So the one
//! that joined first is never disturbed and ends, then the next is the first: nobody starves.

use std::collections::{BTreeMap, VecDeque};

/// Names one answer of an engine.
pub type AnswerId = u64;

/// Steps without a failure after which one more answer may take part in them.
const STEPS_TO_GROW: u32 = 32;

pub struct Schedule {
    page_tokens: usize,
    pages: usize,
    answers: BTreeMap<AnswerId, Length>,
    /// Front joins next.
    waiting: VecDeque<AnswerId>,
    /// They have their pages, and what these hold is being brought.
    joining: VecDeque<AnswerId>,
    /// In the order in which they joined.
    running: Vec<AnswerId>,
    /// How many may be in the batch.
    limit: usize,
    /// Steps since the last failure, or since the limit was raised.
    calm: u32,
}

/// Tokens of an answer and its prompt whose KV must be kept.
struct Length {
    /// Before the next step.
    now: usize,
    /// At the last step, if the answer becomes as long as it may.
    most: usize,
}

/// An answer that the whole memory can't hold: tokens it needs, and tokens there is memory for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooLong {
    pub needed: usize,
    pub capacity: usize,
}

/// Who left the batch so that the others can go on; the first of them joins again first.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Left {
    pub preempted: Vec<AnswerId>,
    /// It was alone and couldn't go on: it is not in the schedule any more.
    pub failed: Option<AnswerId>,
}

impl Schedule {
    pub fn new(page_tokens: usize, pages: usize) -> Self {
        Self {
            page_tokens: page_tokens.max(1),
            pages,
            answers: BTreeMap::new(),
            waiting: VecDeque::new(),
            joining: VecDeque::new(),
            running: Vec::new(),
            limit: usize::MAX,
            calm: 0,
        }
    }

    /// Tokens that all pages hold.
    pub fn capacity(&self) -> usize {
        self.pages.saturating_mul(self.page_tokens)
    }

    /// Puts a new answer at the end of the queue: `now` tokens to bring before its first step, `most` at its last.
    pub fn submit(&mut self, id: AnswerId, now: usize, most: usize) -> Result<(), TooLong> {
        if now + 1 > self.capacity() {
            return Err(TooLong { needed: now + 1, capacity: self.capacity() });
        }
        self.answers.insert(id, Length { now, most: most.max(now + 1) });
        self.waiting.push_back(id);
        Ok(())
    }

    /// Those that wait, next first.
    pub fn waiting(&self) -> impl Iterator<Item = AnswerId> {
        self.waiting.iter().copied()
    }

    /// Those that take part in every step.
    pub fn running(&self) -> &[AnswerId] {
        &self.running
    }

    /// The answer whose KV is to be brought now.
    pub fn joining(&self) -> Option<AnswerId> {
        self.joining.front().copied()
    }

    /// The next waiting answer, if it and all in the batch could then grow by a page each, or by as much as they ever may. An
    /// answer whose memory is free but for that would be sent away again soon.
    pub fn candidate(&self) -> Option<AnswerId> {
        let id = *self.waiting.front()?;
        let held = self.joining.len() + self.running.len();
        if held >= self.limit {
            return None;
        }
        let soon = |id: &AnswerId| {
            let Length { now, most } = self.answers[id];
            self.pages_for((now + self.page_tokens).min(most))
        };
        let pages: usize = self.joining.iter().chain(&self.running).chain([&id]).map(soon).sum();
        (held == 0 || pages <= self.pages).then_some(id)
    }

    /// Gives the candidate its pages, if it is `ready`.
    pub fn admit(&mut self, ready: impl Fn(AnswerId) -> bool) -> Option<AnswerId> {
        let id = self.candidate().filter(|id| ready(*id))?;
        self.waiting.pop_front();
        self.joining.push_back(id);
        Some(id)
    }

    /// Notes that all KV of the answer that was joining is there.
    pub fn joined(&mut self) {
        self.running.extend(self.joining.pop_front());
    }

    /// Frees pages until every running answer can grow by a token.
    pub fn make_room(&mut self) -> Left {
        let mut left = Left::default();
        while self.pages_after(1) > self.pages {
            if self.joining.is_empty() && self.running.len() <= 1 {
                left.failed = self.running.pop();
                left.failed.iter().for_each(|id| self.remove(*id));
                break;
            }
            left.preempted.extend(self.preempt_last());
        }
        left.preempted.reverse();
        left
    }

    /// Notes that every running answer has grown by a token.
    pub fn stepped(&mut self) {
        self.advance(1);
    }

    /// Notes that every running answer has grown by so many tokens, a step each.
    pub fn advance(&mut self, steps: usize) {
        for id in &self.running {
            if let Some(length) = self.answers.get_mut(id) {
                length.now += steps;
            }
        }
        let calm = self.calm as usize + steps;
        self.limit = self.limit.saturating_add(calm / STEPS_TO_GROW as usize);
        self.calm = (calm % STEPS_TO_GROW as usize) as u32;
    }

    /// How many steps, at most `limit`, all running answers can take before anybody must leave.
    pub fn steps_with_room(&self, limit: usize) -> usize {
        let (mut holds, mut fails) = (0, limit + 1);
        while fails - holds > 1 {
            let steps = holds + (fails - holds) / 2;
            if self.pages_after(steps) <= self.pages { holds = steps } else { fails = steps }
        }
        holds
    }

    /// Notes that a step failed: half of the running answers stay, if their sequences are `intact`, and for some time no more
    /// may join than that. One that failed alone is to blame itself.
    pub fn halve(&mut self, intact: bool) -> Left {
        let mut left = Left::default();
        self.calm = 0;
        if self.running.len() <= 1 {
            self.limit = usize::MAX;
            left.failed = self.running.pop();
            left.failed.iter().for_each(|id| self.remove(*id));
            return left;
        }
        self.limit = self.running.len() / 2;
        let stay = if intact { self.limit } else { 0 };
        while self.joining.len() + self.running.len() > stay {
            left.preempted.extend(self.preempt_last());
        }
        left.preempted.reverse();
        left
    }

    /// Takes an answer out, wherever it stands.
    pub fn remove(&mut self, id: AnswerId) {
        if self.answers.remove(&id).is_some() {
            self.waiting.retain(|other| *other != id);
            self.joining.retain(|other| *other != id);
            self.running.retain(|other| *other != id);
        }
    }

    fn preempt_last(&mut self) -> Option<AnswerId> {
        let id = self.joining.pop_back().or_else(|| self.running.pop())?;
        self.waiting.push_front(id);
        Some(id)
    }

    /// Pages that all in the batch hold once every running one has grown by so many tokens.
    fn pages_after(&self, steps: usize) -> usize {
        let joining = self.joining.iter().map(|id| self.answers[id].now);
        let running = self.running.iter().map(|id| self.answers[id].now + steps);
        joining.chain(running).map(|tokens| self.pages_for(tokens)).sum()
    }

    fn pages_for(&self, tokens: usize) -> usize {
        tokens.div_ceil(self.page_tokens)
    }
}

#[cfg(test)]
mod tests;
