use proptest::prelude::*;
use rand::{RngExt, SeedableRng};

use super::*;

/// Two pools in a row under a steady load, without details: what is seen of them in each second.
struct Load {
    /// Seconds of a worker that a job takes.
    prefill_s: f64,
    decode_s: f64,
    arrivals_per_s: f64,
    /// By how much what is seen may be off, as a share.
    noise: f64,
    random: rand::rngs::StdRng,
    waiting: (f64, f64),
    at_s: f64,
}

impl Load {
    fn new(prefill_s: f64, decode_s: f64, arrivals_per_s: f64, noise: f64) -> Self {
        let random = rand::rngs::StdRng::seed_from_u64(3);
        Self { prefill_s, decode_s, arrivals_per_s, noise, random, waiting: (0.0, 0.0), at_s: 0.0 }
    }

    /// What is seen of a second with so many workers.
    fn second(&mut self, prefill: usize, decode: usize) -> Statistics {
        let mut noisy = |value: f64| value * (1.0 + self.noise * (self.random.random::<f64>() * 2.0 - 1.0));
        self.at_s += 1.0;
        let pool = |waiting: &mut f64, came: f64, work_s: f64, workers: usize, jobs: f64| {
            let done = (*waiting + came).min(workers as f64 / work_s);
            *waiting += came - done;
            let busy = (done * work_s / workers as f64).min(1.0);
            (done, Pool { workers, busy, done_per_s: jobs * done, waiting: *waiting as usize })
        };
        let (first, second) = (noisy(1.0), noisy(1.0));
        let arrivals = noisy(self.arrivals_per_s);
        let (done, prefill) = pool(&mut self.waiting.0, arrivals, self.prefill_s, prefill, first);
        let (_, decode) = pool(&mut self.waiting.1, done, self.decode_s, decode, second);
        Statistics {
            at_s: self.at_s,
            window_s: 1.0,
            arrivals_per_s: arrivals,
            prompt_tokens_per_s: 0.0,
            output_tokens_per_s: 0.0,
            prefill,
            decode,
        }
    }

    fn capacity(&self, prefill: usize, decode: usize) -> f64 {
        (prefill as f64 / self.prefill_s).min(decode as f64 / self.decode_s)
    }
}

fn options(workers: usize) -> Options {
    let bounds = Bounds { floor: 1, ceiling: workers - 1 };
    Options {
        interval_s: 1.0,
        prefill: bounds,
        decode: bounds,
        switch: Switch { drain_s: 2.0, lost_work_s: 1.0 },
        profile: None,
    }
}

/// Runs for so many seconds; returns the number of prefill workers at the end, and when changes were made.
fn run(
    planner: &mut Planner,
    load: &mut Load,
    workers: usize,
    mut prefill: usize,
    seconds: usize,
) -> (usize, Vec<f64>) {
    let mut changes = Vec::new();
    for _ in 0..seconds {
        let seen = load.second(prefill, workers - prefill);
        if let Some(Flip { to }) = planner.decide(&seen).flip {
            changes.push(seen.at_s);
            prefill = if to == Role::Prefill { prefill + 1 } else { prefill - 1 };
        }
    }
    (prefill, changes)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn a_steady_load_comes_to_rest_within_one_worker_of_the_best_split(
        (prefill_s, decode_s) in (0.02..0.5f64, 0.02..0.5f64),
        workers in 2usize..10,
        start in 0.0..1.0f64,
        load in 0.2..3.0f64,
        noise in 0.0..0.15f64,
    ) {
        let start = 1 + (start * (workers - 1) as f64) as usize;
        let mut steady = Load::new(prefill_s, decode_s, 0.0, noise);
        let best = (1..workers).max_by(|&a, &b| {
            steady.capacity(a, workers - a).total_cmp(&steady.capacity(b, workers - b))
        }).unwrap();
        let most = steady.capacity(best, workers - best);
        steady.arrivals_per_s = most * load;
        let mut planner = Planner::new(options(workers));
        let (end, changes) = run(&mut planner, &mut steady, workers, start.min(workers - 1), 300);
        // Each change takes PATIENCE_S + drain_s + PAUSE_S at most.
        prop_assert!(changes.iter().all(|at| *at <= 60.0), "{changes:?}, {start} to {end}");
        // Under a load that fills the best split it is found; under less, what is taken has room for the load.
        let found = end.abs_diff(best) <= 1 || steady.capacity(end, workers - end) > 0.85 * most.min(steady.arrivals_per_s);
        prop_assert!(found, "{end} instead of {best}, {changes:?}");
    }

    #[test]
    fn floors_and_ceilings_are_kept(
        (prefill_s, decode_s) in (0.01..0.5f64, 0.01..0.5f64),
        (floor_p, floor_d) in (1usize..4, 1usize..4),
        start in 1usize..8,
        arrivals in 1.0..200.0f64,
    ) {
        let workers = 8;
        let bounds = |floor, other: usize| Bounds { floor, ceiling: workers - other };
        let limits = Options { prefill: bounds(floor_p, floor_d), decode: bounds(floor_d, floor_p), ..options(workers) };
        let mut planner = Planner::new(limits);
        let mut load = Load::new(prefill_s, decode_s, arrivals, 0.1);
        let mut prefill = start;
        for _ in 0..120 {
            let seen = load.second(prefill, workers - prefill);
            let decision = planner.decide(&seen);
            prop_assert!((1..=workers).contains(&decision.prefill_replicas) && (1..=workers).contains(&decision.decode_replicas));
            prop_assert!(decision.prefill_replicas >= floor_p && decision.decode_replicas >= floor_d);
            let inside = |p: usize| p >= floor_p && workers - p >= floor_d;
            if let Some(Flip { to }) = decision.flip {
                let next = if to == Role::Prefill { prefill + 1 } else { prefill - 1 };
                prop_assert!(inside(next) || !inside(prefill), "{prefill} to {next}: {}", decision.reason);
                prefill = next;
            }
        }
    }
}

#[test]
fn a_change_that_costs_more_than_it_gains_is_not_made() {
    let changes = |lost_work_s| {
        let switch = Switch { drain_s: 2.0, lost_work_s };
        let mut planner = Planner::new(Options { switch, ..options(6) });
        run(&mut planner, &mut Load::new(0.1, 0.2, 1000.0, 0.0), 6, 5, 60).1.len()
    };
    assert!(changes(1.0) >= 2);
    assert_eq!(changes(10_000.0), 0);
}

#[test]
fn a_shift_of_the_load_is_followed_within_half_a_minute() {
    let mut planner = Planner::new(options(6));
    let (before, _) = run(&mut planner, &mut Load::new(0.2, 0.1, 100.0, 0.05), 6, 3, 120);
    assert_eq!(before, 4);
    let mut shifted = Load { at_s: 120.0, ..Load::new(0.1, 0.2, 100.0, 0.05) };
    let (after, changes) = run(&mut planner, &mut shifted, 6, before, 120);
    assert_eq!(after, 2, "{changes:?}");
    assert!(changes.iter().all(|at| *at <= 150.0), "{changes:?}");
}

#[test]
fn replicas_follow_the_load_up_at_once_and_down_after_a_minute() {
    let mut planner = Planner::new(Options { prefill: Bounds { floor: 1, ceiling: 50 }, ..options(40) });
    let mut wanted = |load: &mut Load, seconds: usize| {
        let decisions: Vec<Decision> = (0..seconds).map(|_| planner.decide(&load.second(10, 10))).collect();
        decisions.iter().map(|it| (it.prefill_replicas, it.decode_replicas)).collect::<Vec<_>>()
    };
    // 10 jobs a second of 0.5 and 0.2 seconds, at 80 %.
    let first = wanted(&mut Load::new(0.5, 0.2, 10.0, 0.0), 60);
    assert_eq!(first[59], (7, 3));
    let more = wanted(&mut Load { at_s: 60.0, ..Load::new(0.5, 0.2, 16.0, 0.0) }, 60);
    assert_eq!(more[59], (10, 4));
    let fewer = wanted(&mut Load { at_s: 120.0, ..Load::new(0.5, 0.2, 4.0, 0.0) }, 120);
    assert_eq!((fewer[30], fewer[119]), ((10, 4), (3, 2)));
}

#[test]
fn nothing_is_said_about_work_that_was_not_seen() {
    let mut planner = Planner::new(options(6));
    let decision = planner.decide(&Load::new(0.1, 0.2, 0.0, 0.0).second(2, 4));
    assert_eq!((decision.prefill_replicas, decision.decode_replicas, decision.flip), (2, 4, None));
    assert!(decision.reason.starts_with("too few jobs have ended"), "{}", decision.reason);
}
