//! The cores that the workers of one machine share with each other's threads, the broker and the client.

use super::time::{Nanos, seconds};

/// Seconds of other work that a free core may be behind before it is more than a core can do.
const BEHIND_S: f64 = 0.01;
/// Threads that other work is spread over at most, beyond those on free cores: one, and another for every [`BEHIND_S`] of it.
const THREADS: f64 = 4.0;
/// What an engine loses by a turn of other work, by the turn's time: also what its caches forget, and the time in which it waits for
/// one core while another is free. With SmolLM2 on two cores, other work of 18.6 % of a core took 20.0 % from the engines in
/// waits and 3.8 % in computing for longer.
pub(super) const LOSS: f64 = 1.3;
/// Seconds for which an engine is not held up, but by so much longer the next time.
const SHORT_S: f64 = 1e-4;

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
    /// Seconds that were taken from it and are not made up for.
    held_up_s: f64,
}

impl Machine {
    pub(super) fn new(cores: usize, workers: usize) -> Self {
        Self { cores: cores.max(1), engines: vec![Engine::default(); workers], busy: 0, backlog_s: 0.0, at: 0 }
    }

    /// An engine begins a pass or a step.
    pub(super) fn computes(&mut self, now: Nanos, worker: usize, threads: usize) {
        self.drain(now);
        debug_assert_eq!(self.engines[worker].threads, 0);
        self.engines[worker].threads = threads;
        self.busy += threads;
    }

    /// An engine would have ended a pass or a step by now; returns the seconds for which it is held up, if it is.
    pub(super) fn ends(&mut self, now: Nanos, worker: usize) -> Option<f64> {
        self.drain(now);
        let engine = &mut self.engines[worker];
        if engine.held_up_s > SHORT_S {
            return Some(std::mem::take(&mut engine.held_up_s));
        }
        self.busy -= std::mem::take(&mut engine.threads);
        None
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
        let lost_s = crowded_s * (LOSS * (1.0 - share)).min(1.0);
        computing.for_each(|engine| engine.held_up_s += lost_s);
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
        (0..2).for_each(|engine| machine.computes(0, engine, 1));
        machine.spend(0, 0.2);
        for engine in 0..2 {
            assert!((machine.ends(SECOND, engine).unwrap() - LOSS * 0.1).abs() < 1e-9);
        }
        // What is made up for holds up no more.
        assert!((0..2).all(|engine| machine.ends(2 * SECOND, engine).is_none()));
    }

    #[test]
    fn a_free_core_does_as_much_as_a_core_can() {
        let mut machine = Machine::new(2, 1);
        machine.computes(0, 0, 1);
        machine.spend(0, 0.01);
        assert_eq!(machine.ends(SECOND, 0), None);
        // Two seconds of work in one: six threads on two cores, one of them the engine's.
        machine.computes(SECOND, 0, 1);
        machine.spend(SECOND, 2.0 + BEHIND_S);
        assert!((machine.ends(2 * SECOND, 0).unwrap() - LOSS * 2.0 / 3.0).abs() < 1e-9);
    }
}
