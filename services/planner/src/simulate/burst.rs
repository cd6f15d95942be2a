//! Steps of a batch in which nobody joins and nobody leaves: their times are a sum, not events.

use super::time::{Nanos, nanos};
use crate::profile::Decode;

/// Steps in a row of the same sequences, each of which grows by a token a step.
#[derive(Clone, Copy, Debug)]
pub(super) struct Burst {
    /// When the first step begins.
    pub(super) begins: Nanos,
    pub(super) steps: usize,
    /// Seconds of the first step, and by how much each takes longer than the one before.
    first_s: f64,
    more_s: f64,
}

impl Burst {
    /// Of `sequences` sequences that hold `context` tokens together.
    pub(super) fn new(cost: &Decode, begins: Nanos, steps: usize, sequences: usize, context: usize) -> Self {
        let first_s = cost.step_s(sequences, context);
        Self { begins, steps, first_s, more_s: cost.s_per_context_token * sequences as f64 }
    }

    /// Seconds of a step, counted from 0.
    pub(super) fn step_s(&self, step: usize) -> f64 {
        self.first_s + self.more_s * step as f64
    }

    /// When `steps` steps have been taken.
    pub(super) fn after(&self, steps: usize) -> Nanos {
        let steps = steps as f64;
        self.begins + nanos(self.first_s * steps + self.more_s * steps * (steps - 1.0) / 2.0)
    }

    /// Ends the burst with the step that is being taken at `now`; true if that is sooner.
    pub(super) fn cut(&mut self, now: Nanos) -> bool {
        let (mut before, mut at_or_after) = (0, self.steps);
        while at_or_after - before > 1 {
            let steps = before + (at_or_after - before) / 2;
            if self.after(steps) < now { before = steps } else { at_or_after = steps }
        }
        let sooner = at_or_after < self.steps;
        self.steps = at_or_after;
        sooner
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_burst_ends_with_the_step_under_way() {
        let cost = crate::profile::Profile::read(crate::H100_8B).unwrap().decode;
        let burst = Burst::new(&cost, 5_000, 1000, 32, 64_000);
        let sum: f64 = (0..1000).map(|step| burst.step_s(step)).sum();
        assert!((burst.after(1000) - 5_000).abs_diff(nanos(sum)) < 10);
        for now in [0, 5_000, 5_001, burst.after(1), burst.after(1) + 1, burst.after(700) - 1, burst.after(1000) - 1] {
            let mut cut = burst;
            cut.cut(now);
            assert!(cut.after(cut.steps) >= now && cut.steps >= 1, "{now}");
            assert!(cut.steps == 1 || cut.after(cut.steps - 1) < now, "{now}");
        }
    }
}
