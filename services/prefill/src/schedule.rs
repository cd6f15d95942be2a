//! Which tokens of which prompts are computed next. It knows no model, no channel and no clock.
//!
//! Prompts are opened in the order in which they came, as far as there are pages for them. Of each pass the oldest open prompt
//! has half, so that it always goes on and its first token comes in time; the rest goes to those with the least left to
//! compute, so that a short prompt doesn't wait for long ones that came before it. What one can't use another gets. The
//! beginning of a prompt may come from elsewhere; until it is there, nothing of the prompt is computed.

use std::collections::{BTreeMap, VecDeque};

/// Names one prompt of an engine.
pub type PromptId = u64;

/// Passes without a failure after which a pass may be twice as large again.
const PASSES_TO_GROW: u32 = 32;

pub struct Schedule {
    options: Options,
    prompts: BTreeMap<PromptId, Prompt>,
    waiting: VecDeque<PromptId>,
    /// Oldest first.
    open: Vec<PromptId>,
    /// Tokens and prompts of a pass at most, after failures.
    tokens: usize,
    width: usize,
    /// Passes since the last failure, or since the limits were raised.
    calm: u32,
}

#[derive(Clone, Copy, Debug)]
pub struct Options {
    pub page_tokens: usize,
    pub pages: usize,
    /// Tokens of a pass.
    pub batch_tokens: usize,
    /// How many of a prompt's tokens may be computed and not yet stored.
    pub ahead: usize,
}

#[derive(Clone, Copy)]
struct Prompt {
    tokens: usize,
    /// How many of the first come from elsewhere.
    reused: usize,
    /// Those that are there, wherever they came from.
    computed: usize,
    stored: usize,
}

/// A prompt that the whole memory can't hold: tokens it has, and tokens there is memory for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooLong {
    pub needed: usize,
    pub capacity: usize,
}

/// The next tokens of a prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    pub id: PromptId,
    pub tokens: usize,
}

impl Schedule {
    pub fn new(options: Options) -> Self {
        let options = Options {
            page_tokens: options.page_tokens.max(1),
            batch_tokens: options.batch_tokens.max(1),
            ahead: options.ahead.max(1),
            ..options
        };
        Self {
            options,
            prompts: BTreeMap::new(),
            waiting: VecDeque::new(),
            open: Vec::new(),
            tokens: options.batch_tokens,
            width: usize::MAX,
            calm: 0,
        }
    }

    /// Puts a prompt at the end of the queue whose first `reused` tokens come from elsewhere.
    pub fn submit(&mut self, id: PromptId, tokens: usize, reused: usize) -> Result<(), TooLong> {
        let capacity = self.options.pages.saturating_mul(self.options.page_tokens);
        if tokens > capacity {
            return Err(TooLong { needed: tokens, capacity });
        }
        self.prompts.insert(id, Prompt { tokens, reused: reused.min(tokens), computed: 0, stored: 0 });
        self.waiting.push_back(id);
        Ok(())
    }

    /// Opens the next prompt, if there are pages for all of it.
    pub fn admit(&mut self) -> Option<PromptId> {
        let id = *self.waiting.front()?;
        let pages = |id: &PromptId| self.prompts[id].tokens.div_ceil(self.options.page_tokens);
        if self.open.iter().chain([&id]).map(pages).sum::<usize>() > self.options.pages {
            return None;
        }
        self.waiting.pop_front();
        self.open.push(id);
        Some(id)
    }

    /// The prompts that have pages, oldest first.
    pub fn open(&self) -> &[PromptId] {
        &self.open
    }

    /// What to compute now: each prompt once; nothing if all that are open wait for the store, or for what they reuse.
    pub fn next(&self) -> Vec<Share> {
        let mut ready: Vec<(Share, usize)> = Vec::new();
        for &id in &self.open {
            let Prompt { tokens, reused, computed, stored } = self.prompts[&id];
            if computed < reused {
                continue;
            }
            let remaining = tokens - computed;
            let tokens = remaining.min((stored + self.options.ahead).saturating_sub(computed));
            if tokens > 0 {
                ready.push((Share { id, tokens }, remaining));
            }
        }
        let Some((oldest, _)) = ready.first().copied() else { return Vec::new() };
        // The sort keeps the order of equals.
        ready[1..].sort_by_key(|(_, remaining)| *remaining);
        let half = oldest.tokens.min(self.tokens.div_ceil(2));
        let mut left = self.tokens - half;
        let mut shares = vec![Share { tokens: half, ..oldest }];
        for (share, _) in ready.into_iter().skip(1).take(self.width - 1) {
            let tokens = share.tokens.min(left);
            if tokens == 0 {
                break;
            }
            left -= tokens;
            shares.push(Share { tokens, ..share });
        }
        shares[0].tokens = oldest.tokens.min(half + left);
        shares
    }

    /// Notes that a prompt's next tokens were computed, or came from elsewhere.
    pub fn computed(&mut self, share: Share) {
        if let Some(prompt) = self.prompts.get_mut(&share.id) {
            prompt.computed = prompt.tokens.min(prompt.computed + share.tokens);
        }
    }

    /// Whether a part of a prompt's beginning has yet to come from elsewhere.
    pub fn lacks(&self, id: PromptId) -> bool {
        self.prompts.get(&id).is_some_and(|prompt| prompt.computed < prompt.reused)
    }

    /// Notes that no more than the first `reused` tokens of a prompt come from elsewhere.
    pub fn reuse(&mut self, id: PromptId, reused: usize) {
        if let Some(prompt) = self.prompts.get_mut(&id) {
            prompt.reused = prompt.reused.min(reused);
        }
    }

    /// Notes that so many of a prompt's tokens are in the store.
    pub fn stored(&mut self, id: PromptId, tokens: usize) {
        if let Some(prompt) = self.prompts.get_mut(&id) {
            prompt.stored = prompt.tokens.min(prompt.stored + tokens);
        }
    }

    /// Notes that nothing of a prompt is there any more, though it may be stored: all of it is computed.
    pub fn restart(&mut self, id: PromptId) {
        if let Some(prompt) = self.prompts.get_mut(&id) {
            (prompt.reused, prompt.computed) = (0, 0);
        }
    }

    /// Notes that a pass succeeded.
    pub fn passed(&mut self) {
        self.calm += 1;
        if self.calm >= PASSES_TO_GROW {
            self.calm = 0;
            self.width = self.width.saturating_mul(2);
            self.tokens = self.tokens.saturating_mul(2).min(self.options.batch_tokens);
        }
    }

    /// Notes that a pass failed: the next are of half as many prompts, and if it was one prompt, of half as many tokens. One
    /// token of one prompt is to blame itself: it leaves the schedule and is returned.
    pub fn failed(&mut self, shares: &[Share]) -> Option<PromptId> {
        self.calm = 0;
        match shares {
            [] => {}
            [Share { id, tokens: 0..=1 }] => {
                let id = *id;
                self.remove(id);
                (self.width, self.tokens) = (usize::MAX, self.options.batch_tokens);
                return Some(id);
            }
            [share] => self.tokens = share.tokens / 2,
            shares => self.width = shares.len() / 2,
        }
        None
    }

    /// Takes a prompt out, wherever it stands.
    pub fn remove(&mut self, id: PromptId) {
        if self.prompts.remove(&id).is_some() {
            self.waiting.retain(|other| *other != id);
            self.open.retain(|other| *other != id);
        }
    }
}

#[cfg(test)]
mod tests;
