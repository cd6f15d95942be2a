//! What a run of a batch has come to: counts, and how fast they grow.

use std::{collections::VecDeque, time::Duration};

use baton_contract::outcome::Outcome;
use serde::Serialize;
use tokio::time::Instant;

/// The past that rates are of.
const PAST: Duration = Duration::from_secs(20);

/// What this run has done so far.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Figures {
    /// Lines of the input that were read.
    pub lines: u64,
    /// Answers that earlier runs wrote, errors among them.
    pub answered_before: u64,
    /// Errors among those.
    pub failed_before: u64,
    /// Jobs that completed.
    pub completed: u64,
    /// Lines that became errors.
    pub failed: u64,
    /// Jobs that had ended before this run asked.
    pub collected: u64,
    /// Requests that were published.
    pub sent: u64,
    /// Of the jobs that ended in this run.
    pub prompt_tokens: u64,
    /// Those of them whose KV cache was there.
    pub cached_tokens: u64,
    pub completion_tokens: u64,
    /// Bytes of KV cache, before packing, that were there and not computed; as large a token as those that were.
    pub kv_saved_bytes: u64,
    #[serde(skip)]
    pub kv_raw_bytes: u64,
    /// Lines that have their answer already.
    #[serde(skip)]
    pub skipped: u64,
}

impl Figures {
    /// Counts a job's end; `stored` if its result was there before.
    pub fn count(&mut self, outcome: &Outcome, stored: bool) {
        if stored {
            self.collected += 1;
            return;
        }
        let usage = &outcome.usage;
        self.prompt_tokens += u64::from(usage.prompt_tokens);
        self.cached_tokens += u64::from(usage.cached_tokens);
        self.completion_tokens += u64::from(usage.completion_tokens);
        self.kv_raw_bytes += outcome.timings.kv_raw_bytes;
        let computed = self.prompt_tokens - self.cached_tokens.min(self.prompt_tokens);
        let a_token = if computed == 0 { 0.0 } else { self.kv_raw_bytes as f64 / computed as f64 };
        self.kv_saved_bytes = (a_token * self.cached_tokens as f64) as u64;
    }

    /// Lines that are done with, of those read.
    pub fn done(&self) -> u64 {
        self.skipped + self.completed + self.failed
    }
}

/// How fast things went lately, per second.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Pace {
    /// Lines that became answers or errors.
    pub lines: f64,
    pub prompt_tokens: f64,
    pub completion_tokens: f64,
}

/// The last looks at the figures.
#[derive(Debug, Default)]
pub struct Paces {
    looks: VecDeque<(Instant, u64, u64, u64)>,
}

impl Paces {
    /// The pace from the oldest look of the last seconds to now.
    pub fn look(&mut self, figures: &Figures, now: Instant) -> Pace {
        let lines = figures.completed + figures.failed - figures.collected.min(figures.completed);
        let look = (now, lines, figures.prompt_tokens, figures.completion_tokens);
        while self.looks.len() > 1 && self.looks.front().is_some_and(|first| now - first.0 > PAST) {
            self.looks.pop_front();
        }
        self.looks.push_back(look);
        let first = self.looks.front().copied().unwrap_or(look);
        let seconds = (now - first.0).as_secs_f64();
        if seconds < 0.05 {
            return Pace::default();
        }
        let per_second = |now: u64, then: u64| now.saturating_sub(then) as f64 / seconds;
        Pace {
            lines: per_second(lines, first.1),
            prompt_tokens: per_second(look.2, first.2),
            completion_tokens: per_second(look.3, first.3),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pace_is_of_the_last_seconds() {
        let (mut paces, start) = (Paces::default(), Instant::now());
        let at = |completed, prompt_tokens| Figures { completed, prompt_tokens, ..Figures::default() };
        assert_eq!(paces.look(&at(0, 0), start), Pace::default());
        let early = paces.look(&at(10, 4_000), start + Duration::from_secs(10));
        assert_eq!((early.lines, early.prompt_tokens), (1.0, 400.0));
        paces.look(&at(10, 4_000), start + Duration::from_secs(30));
        let late = paces.look(&at(50, 5_000), start + Duration::from_secs(50));
        assert_eq!((late.lines, late.prompt_tokens), (2.0, 50.0), "of the last 20 s");
    }
}
