//! The cores that the workers of one machine share with each other's threads, the broker and the client.

use super::world::{Nanos, seconds};

/// Seconds of other work that a free core may be behind before it is more than a core can do.
const BEHIND_S: f64 = 0.01;
/// Threads that other work is spread over at most, beyond those on free cores: one, and another for every [`BEHIND_S`] of it.
const THREADS: f64 = 4.0;

/// A machine's cores. Engines compute on some; the free ones do what else there is to do. What these can't do takes turns with the
/// engines, as with a fair scheduler, and holds them up.
pub(super) struct Machine {
    cores: usize,
    engines: Vec<Engine>,
    /// Cores that engines compute on.
    busy: usize,
    /// Seconds of processor time that were asked for and not given, at the time `at`.
    backlog_s: f64,
    at: Nanos,
}

#[derive(Clone, Copy, Default)]
struct Engine {
    /// Cores that it computes on now.
    threads: usize,
    /// Seconds that were taken from it since its pass or step began.
    held_up_s: f64,
    /// When it ended the last one.
    rested: Nanos,
}

impl Machine {
    pub(super) fn new(cores: usize, workers: usize) -> Self {
        Self { cores: cores.max(1), engines: vec![Engine::default(); workers], busy: 0, backlog_s: 0.0, at: 0 }
    }

    /// An engine begins a pass or a step; returns the seconds that it is held up for. What held up the one before shows now,
    /// unless the engine has paused for as long since.
    pub(super) fn computes(&mut self, now: Nanos, worker: usize, threads: usize) -> f64 {
        self.drain(now);
        let engine = &mut self.engines[worker];
        self.busy += threads - engine.threads;
        engine.threads = threads;
        let paused_s = seconds(now - engine.rested);
        (std::mem::take(&mut engine.held_up_s) - paused_s).max(0.0)
    }

    /// An engine has ended a pass or a step.
    pub(super) fn rests(&mut self, now: Nanos, worker: usize) {
        self.drain(now);
        let engine = &mut self.engines[worker];
        engine.rested = now;
        self.busy -= std::mem::take(&mut engine.threads);
    }

    /// Something takes processor time from now on, whatever else begins or ends now.
    pub(super) fn spend(&mut self, now: Nanos, cpu_s: f64) {
        self.drain(now);
        self.backlog_s += cpu_s;
    }

    fn free(&self) -> usize {
        self.cores.saturating_sub(self.busy)
    }

    /// What was asked for has had its turns until now: free cores do it and hold nobody up; of more than these can do, or without
    /// any, there are more threads than cores, which all get the same share.
    fn drain(&mut self, now: Nanos) {
        let (free, cores) = (self.free() as f64, self.cores.max(self.busy) as f64);
        let passed_s = seconds(now - self.at);
        self.at = now;
        let more = (1.0 + self.backlog_s / BEHIND_S).min(THREADS);
        let share = cores / (cores + more);
        let rate = (free + more) * share;
        let crowded_s = ((self.backlog_s - BEHIND_S * free).max(0.0) / rate).min(passed_s);
        let computing = self.engines.iter_mut().filter(|engine| engine.threads > 0);
        computing.for_each(|engine| engine.held_up_s += crowded_s * (1.0 - share));
        self.backlog_s = (self.backlog_s - rate * crowded_s - free * (passed_s - crowded_s)).max(0.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Nanos = 1_000_000_000;

    #[test]
    fn engines_that_fill_all_cores_share_what_else_is_done() {
        let mut machine = Machine::new(2, 2);
        assert_eq!((machine.computes(0, 0, 1), machine.computes(0, 1, 1)), (0.0, 0.0));
        machine.spend(0, 0.2);
        machine.rests(SECOND, 0);
        assert!((machine.computes(SECOND, 0, 1) - 0.1).abs() < 1e-9);
        // The other pauses for as long as it was held up, and so isn't.
        machine.rests(SECOND, 1);
        assert_eq!(machine.computes(SECOND + SECOND / 9, 1, 1), 0.0);
    }

    #[test]
    fn a_free_core_does_as_much_as_a_core_can() {
        let mut machine = Machine::new(2, 1);
        machine.computes(0, 0, 1);
        machine.spend(0, 0.01);
        machine.rests(SECOND, 0);
        assert_eq!(machine.computes(SECOND, 0, 1), 0.0);
        // Two seconds of work in one: six threads on two cores, one of them the engine's.
        machine.spend(SECOND, 2.0 + BEHIND_S);
        machine.rests(2 * SECOND, 0);
        assert!((machine.computes(2 * SECOND, 0, 1) - 2.0 / 3.0).abs() < 1e-9);
    }
}
