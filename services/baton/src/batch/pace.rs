//! How fast a batch goes.

use std::{collections::VecDeque, time::Duration};

use baton_batch::Figures;
use tokio::time::Instant;

/// The past that rates are of.
const PAST: Duration = Duration::from_secs(20);

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
