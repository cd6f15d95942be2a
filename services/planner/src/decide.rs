//! How many workers of each role a running pipeline should have, and whether one should change its role now.
//!
//! The work of a job is estimated for each role, in seconds of one worker: from the profile if there is one, else from how busy
//! the pool was while those jobs ended. With the rate at which jobs come, that is how many workers each role needs, and the best
//! split of those that there are is the one whose fuller pool is the least full.
//!
//! A worker changes its role if the pool that needs it is full, if the best split is better by a margin that grows with what is
//! uncertain, if that has been so for some time, and if what is gained in [`HORIZON_S`] is more than the change costs. So a steady
//! load comes to rest. Pure: time is part of what is observed.

use std::collections::VecDeque;

use baton_contract::Role;
use serde::Serialize;

use crate::profile::Profile;

/// Observations fade by a factor of e in this time.
const MEMORY_S: f64 = 7.0;
/// The gain of a change is counted over this time, and a backlog should be gone by then.
const HORIZON_S: f64 = 60.0;
/// What waits for decode counts as this share of what comes at most.
const BACKLOG: f64 = 0.5;
/// The share by which the best split must be better at least.
const MARGIN: f64 = 0.1;
/// Jobs of each role that must have ended lately before anything is said about their work.
const ENOUGH_JOBS: f64 = 4.0;
/// How long the same change must have seemed right.
const PATIENCE_S: f64 = 3.0;
/// Between two changes, besides what the first one takes.
const PAUSE_S: f64 = 3.0;
/// Within this time, a change that undoes the one before needs twice the margin.
const REGRET_S: f64 = 120.0;
/// After this long without a change, the margin is multiplied by [`STRONGER`].
const CONTENT_S: f64 = 45.0;
const STRONGER: f64 = 2.0;
/// A pool is full from here on.
const FULL: f64 = 0.85;
/// And where nothing has changed for [`CONTENT_S`] from here on: chance takes a load over any bound that it is close to, now and
/// then; one that comes close to this bound has passed the other before.
const FULL_AT_REST: f64 = 1.0;
/// How full pools should be that others scale.
const TARGET: f64 = 0.8;
/// Replicas are taken away when fewer were enough for this long.
const SHRINK_S: f64 = 60.0;

/// Bounds of the number of workers of a role.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Bounds {
    /// The fewest workers.
    pub floor: usize,
    /// The most workers.
    pub ceiling: usize,
}

/// What a change of role costs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Switch {
    /// Seconds in which the worker serves neither role.
    pub drain_s: f64,
    /// Seconds of a worker's work that are done again elsewhere.
    pub lost_work_s: f64,
}

/// How to decide.
#[derive(Clone, Debug)]
pub struct Options {
    /// Seconds between two decisions.
    pub interval_s: f64,
    /// Bounds of the prefill workers.
    pub prefill: Bounds,
    /// Bounds of the decode workers.
    pub decode: Bounds,
    /// What a change costs.
    pub switch: Switch,
    /// What the workers cost, if it is known: the profile, and the answers that a decode worker holds.
    pub profile: Option<(Profile, usize)>,
}

/// One pool as it was seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Pool {
    /// Workers that serve the role, or are about to.
    pub workers: usize,
    /// The share of what they can hold that was in use, 0 to 1: of prefill the time in which they computed, of decode their
    /// slots, for a decode worker with one answer computes all the time too.
    pub busy: f64,
    /// Jobs that left the stage, a second.
    pub done_per_s: f64,
    /// Jobs that wait in the stage's queue.
    pub waiting: usize,
}

/// What was seen since the last decision.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Statistics {
    /// Seconds of any clock that goes forward.
    pub at_s: f64,
    /// Seconds that the rates are about.
    pub window_s: f64,
    /// Requests that came, a second.
    pub arrivals_per_s: f64,
    /// Prompt tokens that prefill computed, a second.
    pub prompt_tokens_per_s: f64,
    /// Tokens that were generated, a second.
    pub output_tokens_per_s: f64,
    /// The prefill pool.
    pub prefill: Pool,
    /// The decode pool.
    pub decode: Pool,
}

/// A worker should change its role.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Flip {
    /// What it becomes.
    pub to: Role,
}

/// What should be.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Decision {
    /// Prefill workers that the load wants, whoever starts them.
    pub prefill_replicas: usize,
    /// Decode workers that the load wants.
    pub decode_replicas: usize,
    /// At most one worker changes its role.
    pub flip: Option<Flip>,
    /// Why, or why not, with the figures.
    pub reason: String,
}

/// Sums of what was seen, fading.
#[derive(Clone, Copy, Debug, Default)]
struct Faded {
    busy: f64,
    jobs: f64,
    tokens: f64,
}

impl Faded {
    fn add(&mut self, keep: f64, pool: &Pool, tokens_per_s: f64, window_s: f64) {
        self.busy = self.busy * keep + pool.busy * pool.workers as f64 * window_s;
        self.jobs = self.jobs * keep + pool.done_per_s * window_s;
        self.tokens = self.tokens * keep + tokens_per_s * window_s;
    }
}

/// Remembers what is needed to decide again.
pub struct Planner {
    options: Options,
    prefill: Faded,
    decode: Faded,
    /// Arrivals and the time they came in, fading.
    arrivals: (f64, f64),
    /// What should be changed, and since when that is so.
    wanted: Option<(Role, f64)>,
    /// When the first thing was seen.
    began: Option<f64>,
    /// The last change, and when it was.
    changed: Option<(Role, f64)>,
    /// Replicas that were wanted in the last [`SHRINK_S`].
    replicas: VecDeque<(f64, usize, usize)>,
}

/// Workers that each role needs.
#[derive(Clone, Copy, Debug)]
struct Demand {
    prefill: f64,
    decode: f64,
}

impl Demand {
    /// How full the fuller pool is.
    fn fullness(self, prefill: usize, decode: usize) -> f64 {
        let full = |need: f64, workers: usize| if workers == 0 { f64::INFINITY } else { need / workers as f64 };
        full(self.prefill, prefill).max(full(self.decode, decode))
    }
}

impl Planner {
    /// Has seen nothing yet.
    pub fn new(options: Options) -> Self {
        let (prefill, decode) = (Faded::default(), Faded::default());
        let replicas = VecDeque::new();
        Self { options, prefill, decode, arrivals: (0.0, 0.0), wanted: None, began: None, changed: None, replicas }
    }

    /// Decides by what was seen since the last decision, and before.
    pub fn decide(&mut self, seen: &Statistics) -> Decision {
        self.began.get_or_insert(seen.at_s);
        let keep = (-seen.window_s / MEMORY_S).exp();
        self.prefill.add(keep, &seen.prefill, seen.prompt_tokens_per_s, seen.window_s);
        self.decode.add(keep, &seen.decode, seen.output_tokens_per_s, seen.window_s);
        let (count, time) = &mut self.arrivals;
        (*count, *time) = (*count * keep + seen.arrivals_per_s * seen.window_s, *time * keep + seen.window_s);
        let Some((prefill_s, decode_s)) = self.work() else {
            self.wanted = None;
            let reason = format!(
                "too few jobs have ended to judge their work: {:.0} in prefill, {:.0} in decode",
                self.prefill.jobs, self.decode.jobs
            );
            return self.decision(seen, None, None, reason);
        };
        let demand = self.demand(seen, prefill_s, decode_s);
        let (flip, reason) = self.flip(seen, demand);
        let works = format!("a job takes prefill {prefill_s:.3} s and decode {decode_s:.3} s of a worker; {reason}");
        self.decision(seen, Some(demand), flip, works)
    }

    /// Seconds of a worker that a job takes of prefill and of decode.
    fn work(&self) -> Option<(f64, f64)> {
        let Self { prefill, decode, .. } = self;
        if prefill.jobs < ENOUGH_JOBS || decode.jobs < ENOUGH_JOBS {
            return None;
        }
        let Some((profile, slots)) = &self.options.profile else {
            return Some((prefill.busy / prefill.jobs, decode.busy / decode.jobs));
        };
        let (prompt, output) = (prefill.tokens / prefill.jobs, decode.tokens / decode.jobs);
        let slots = (*slots).max(1);
        let step = profile.decode.step_s(slots, ((prompt + output / 2.0) * slots as f64) as usize);
        let pass = profile.prefill.pass_s([(0, prompt as usize)]) - profile.prefill.s_per_pass;
        Some((pass, output * step / slots as f64))
    }

    fn demand(&self, seen: &Statistics, prefill_s: f64, decode_s: f64) -> Demand {
        let (count, time) = self.arrivals;
        let rate = count / time.max(1e-9);
        let coming = rate + seen.prefill.waiting as f64 / HORIZON_S;
        // What waits for decode counts only where prefill can spare a worker: else a backlog that any split would have moves
        // workers to and fro. Nor does it weigh more than half of what comes: under a load that no split can bear it grows for ever.
        let spares = seen.prefill.busy * seen.prefill.workers as f64 <= FULL * (seen.prefill.workers as f64 - 1.0);
        let waits = if spares { (seen.decode.waiting as f64 / HORIZON_S).min(BACKLOG * rate) } else { 0.0 };
        Demand { prefill: coming * prefill_s, decode: (coming + waits) * decode_s }
    }

    /// Whether a worker should change its role now, and why.
    fn flip(&mut self, seen: &Statistics, demand: Demand) -> (Option<Flip>, String) {
        let (p, d) = (seen.prefill.workers, seen.decode.workers);
        let needs = format!("prefill needs {:.2} of {p} workers, decode {:.2} of {d}", demand.prefill, demand.decode);
        let Some(best) = self.best(demand, p + d) else {
            self.wanted = None;
            return (None, format!("{needs}; no split keeps the bounds"));
        };
        let (now, then) = (demand.fullness(p, d), demand.fullness(best, p + d - best));
        let to = if best > p { Role::Prefill } else { Role::Decode };
        let refused = self.refusal(seen, to, best != p, now, then);
        let same = self.wanted.filter(|(role, _)| *role == to).map_or(seen.at_s, |(_, since)| since);
        self.wanted = refused.is_none().then_some((to, same));
        if let Some(why) = refused {
            return (None, format!("{needs}; {why}"));
        }
        if seen.at_s - same < PATIENCE_S {
            return (None, format!("{needs}; {best}:{} seems better since {:.0} s", p + d - best, seen.at_s - same));
        }
        if self.changed.is_some_and(|(_, at)| seen.at_s - at < self.options.switch.drain_s + PAUSE_S) {
            return (None, format!("{needs}; the last change has not settled"));
        }
        self.wanted = None;
        self.changed = Some((to, seen.at_s));
        (
            Some(Flip { to }),
            format!("{needs}; {best}:{} has the fuller pool {then:.2} full instead of {now:.2}", p + d - best),
        )
    }

    /// Why a change should not be made.
    fn refusal(&self, seen: &Statistics, to: Role, differs: bool, now: f64, then: f64) -> Option<String> {
        let (pool, other) = match to {
            Role::Prefill => (&seen.prefill, &seen.decode),
            Role::Decode => (&seen.decode, &seen.prefill),
        };
        if !differs {
            return Some("this split is the best".to_owned());
        }
        let Options { switch, prefill, decode, .. } = &self.options;
        let (gives, takes) = match to {
            Role::Prefill => (decode, prefill),
            Role::Decode => (prefill, decode),
        };
        // Bounds come before any margin: outside of them every step back is right.
        if pool.workers < takes.floor || other.workers > gives.ceiling {
            return None;
        }
        let content = seen.at_s - self.changed.map_or(self.began.unwrap_or(seen.at_s), |(_, at)| at);
        let bound = if content > CONTENT_S { FULL_AT_REST } else { FULL };
        if now < bound && !(pool.busy >= FULL && pool.waiting > 0) {
            return Some("no pool is full".to_owned());
        }
        // A mean of n jobs is uncertain by about a share of 1 / sqrt(n).
        let jobs = self.prefill.jobs.min(self.decode.jobs);
        let mut margin = MARGIN + 0.5 / jobs.sqrt();
        let since = self.changed.map(|(role, at)| (role, seen.at_s - at));
        if since.is_some_and(|(role, ago)| role != to && ago < REGRET_S) {
            margin *= 2.0;
        } else if content > CONTENT_S {
            margin *= STRONGER;
        }
        if then > now * (1.0 - margin) {
            return Some(format!("a better split gains less than {:.0} %", margin * 100.0));
        }
        // Work of the horizon that is done sooner, in seconds of a worker.
        let workers = (pool.workers + other.workers) as f64;
        let (gain, cost) = ((now - then).min(1.0) * HORIZON_S * workers, switch.drain_s + switch.lost_work_s);
        (gain <= cost).then(|| format!("a change costs {cost:.0} s of a worker and gains {gain:.0} s"))
    }

    /// The number of prefill workers of the best split within the bounds.
    fn best(&self, demand: Demand, workers: usize) -> Option<usize> {
        let Options { prefill, decode, .. } = &self.options;
        let holds = |p: &usize| {
            let d = workers - p;
            (prefill.floor..=prefill.ceiling).contains(p) && (decode.floor..=decode.ceiling).contains(&d)
        };
        let fullness = |p: &usize| demand.fullness(*p, workers - p);
        (0..=workers).filter(holds).min_by(|a, b| fullness(a).total_cmp(&fullness(b)))
    }

    fn decision(&mut self, seen: &Statistics, demand: Option<Demand>, flip: Option<Flip>, reason: String) -> Decision {
        let Options { prefill, decode, .. } = &self.options;
        let clamp = |count: usize, bounds: &Bounds| count.max(bounds.floor).min(bounds.ceiling);
        let wanted = |need: f64| (need / TARGET).ceil().min(1e6) as usize;
        let (p, d) = match demand {
            Some(demand) => (wanted(demand.prefill), wanted(demand.decode)),
            // Nothing is known: what is there stays.
            None => (seen.prefill.workers, seen.decode.workers),
        };
        self.replicas.push_back((seen.at_s, clamp(p, prefill), clamp(d, decode)));
        while self.replicas.front().is_some_and(|(at, ..)| seen.at_s - at > SHRINK_S) {
            self.replicas.pop_front();
        }
        // The most that was wanted lately: more at once, fewer only after some time.
        let most = |count: fn(&(f64, usize, usize)) -> usize| self.replicas.iter().map(count).max().unwrap_or(0);
        let (prefill_replicas, decode_replicas) = (most(|it| it.1), most(|it| it.2));
        Decision { prefill_replicas, decode_replicas, flip, reason }
    }
}

#[cfg(test)]
mod tests;
