//! Which faults happen when, drawn before the run from its seed alone.

use std::{fmt, time::Duration};

use baton_contract::subject::Stage;
use rand::{Rng, RngExt, seq::SliceRandom};
use rand_distr::{Distribution, Exp1};

use baton_workload::stream;

const FAULTS: u64 = 100;
/// The pause between two faults is at most this many times the mean, so that a short run has its share.
const LONGEST_PAUSE: f64 = 3.0;

/// A worker: its stage, and its number within it from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    pub stage: Stage,
    pub number: usize,
}

/// Whose connections to the broker a network fault hits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    One(Target),
    /// All workers and the submitter.
    All,
}

/// What is done to the pipeline. A worker or broker that was ended is started again after `down`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fault {
    /// SIGKILL to a worker.
    Kill { target: Target, down: Duration },
    /// SIGKILL to all workers of a stage.
    KillAll { stage: Stage, down: Duration },
    /// SIGSTOP, and SIGCONT later: the worker finds out that it was away, or does not.
    Pause { target: Target, lasts: Duration },
    /// SIGTERM to a worker.
    Drain { target: Target, down: Duration },
    /// SIGTERM to the broker.
    BrokerStop { down: Duration },
    /// SIGKILL to the broker.
    BrokerKill { down: Duration },
    /// SIGSTOP and SIGCONT to the broker.
    BrokerPause { lasts: Duration },
    /// Every message takes longer.
    Delay { reach: Reach, by: Duration, lasts: Duration },
    /// Connections end, and new ones are refused.
    Cut { reach: Reach, lasts: Duration },
    /// Connections stay open and carry nothing any more.
    HalfOpen { reach: Reach },
    /// A bit flips in stored chunks.
    Damage { chunks: usize, seed: u64 },
    /// Stored chunks disappear.
    Loss { chunks: usize, seed: u64 },
    /// The store fails whatever it is asked.
    StoreError { lasts: Duration },
}

/// A fault without its particulars.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Kill(Stage),
    KillAll,
    Pause(Stage),
    Drain(Stage),
    BrokerStop,
    BrokerKill,
    BrokerPause,
    Delay,
    Cut,
    HalfOpen,
    Damage,
    Loss,
    StoreError,
}

impl Kind {
    /// Each once. Chunks can be damaged and removed where the store is a directory of this machine.
    fn deck(directory: bool) -> Vec<Self> {
        let of_workers =
            Stage::ALL.into_iter().flat_map(|stage| [Self::Kill(stage), Self::Pause(stage), Self::Drain(stage)]);
        let others = [
            Self::KillAll,
            Self::BrokerStop,
            Self::BrokerKill,
            Self::BrokerPause,
            Self::Delay,
            Self::Cut,
            Self::HalfOpen,
            Self::Damage,
            Self::Loss,
            Self::StoreError,
        ];
        let possible = |kind: &Self| directory || !matches!(kind, Self::Damage | Self::Loss);
        of_workers.chain(others).filter(possible).collect()
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kill(stage) => write!(f, "{stage} worker killed (SIGKILL)"),
            Self::KillAll => f.write_str("all workers of a stage killed"),
            Self::Pause(stage) => write!(f, "{stage} worker stopped and continued"),
            Self::Drain(stage) => write!(f, "{stage} worker drained (SIGTERM)"),
            Self::BrokerStop => f.write_str("broker restarted"),
            Self::BrokerKill => f.write_str("broker killed (SIGKILL)"),
            Self::BrokerPause => f.write_str("broker stopped and continued"),
            Self::Delay => f.write_str("connections slowed down"),
            Self::Cut => f.write_str("connections cut and refused"),
            Self::HalfOpen => f.write_str("connections half-open"),
            Self::Damage => f.write_str("stored chunks damaged"),
            Self::Loss => f.write_str("stored chunks removed"),
            Self::StoreError => f.write_str("store failing"),
        }
    }
}

/// A fault and its time since the run's start.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Planned {
    pub at: Duration,
    pub kind: Kind,
    pub fault: Fault,
}

/// Draws the faults of a run that lasts `lasts`, on average one in `mean`, with `workers` workers a stage. Every kind has
/// its turn before any has its second, in an order of the seed's. `directory` says whether the store is one.
pub fn draw(
    seed: u64,
    lasts: Duration,
    mean: Duration,
    workers: usize,
    ack_wait: Duration,
    directory: bool,
) -> Vec<Planned> {
    let mut random = stream(seed, FAULTS);
    let (mut planned, mut deck, mut at) = (Vec::new(), Vec::new(), Duration::ZERO);
    loop {
        let pause: f64 = Exp1.sample(&mut random);
        at += mean.mul_f64(pause.min(LONGEST_PAUSE));
        if at >= lasts {
            return planned;
        }
        if deck.is_empty() {
            deck = Kind::deck(directory);
            deck.shuffle(&mut random);
        }
        let Some(kind) = deck.pop() else { return planned };
        planned.push(Planned { at, kind, fault: particulars(kind, &mut random, workers, ack_wait) });
    }
}

fn particulars(kind: Kind, random: &mut impl Rng, workers: usize, ack_wait: Duration) -> Fault {
    let any_stage = Stage::ALL[random.random_range(0..Stage::ALL.len())];
    let number = random.random_range(0..workers);
    // One in three hits all.
    let reach =
        if random.random_range(0..3) == 0 { Reach::All } else { Reach::One(Target { stage: any_stage, number }) };
    // Half of the absences end before the broker gives the work to others, half after.
    let absence = ack_wait.mul_f64(random.random_range(0.1..2.0));
    let short = Duration::from_millis(random.random_range(0..1500));
    let (chunks, seed) = (random.random_range(4..=24), random.random());
    let target = |stage| Target { stage, number };
    match kind {
        Kind::Kill(stage) => Fault::Kill { target: target(stage), down: short },
        Kind::KillAll => Fault::KillAll { stage: any_stage, down: absence },
        Kind::Pause(stage) => Fault::Pause { target: target(stage), lasts: absence },
        Kind::Drain(stage) => Fault::Drain { target: target(stage), down: short },
        Kind::BrokerStop => Fault::BrokerStop { down: short },
        Kind::BrokerKill => Fault::BrokerKill { down: absence },
        Kind::BrokerPause => Fault::BrokerPause { lasts: absence },
        Kind::Delay => Fault::Delay { reach, by: Duration::from_millis(random.random_range(5..100)), lasts: absence },
        Kind::Cut => Fault::Cut { reach, lasts: absence },
        Kind::HalfOpen => Fault::HalfOpen { reach },
        Kind::Damage => Fault::Damage { chunks, seed },
        Kind::Loss => Fault::Loss { chunks, seed },
        Kind::StoreError => Fault::StoreError { lasts: absence },
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn a_seed_decides_and_no_kind_is_left_out() {
        let seconds = Duration::from_secs;
        let of = |seed| draw(seed, seconds(600), seconds(2), 3, seconds(2), true);
        assert_eq!(of(7), of(7));
        assert_ne!(of(7), of(8));
        let planned = of(7);
        assert!(planned.windows(2).all(|pair| pair[0].at <= pair[1].at));
        assert!(planned.last().unwrap().at < seconds(600) && (200..450).contains(&planned.len()), "{}", planned.len());
        let mut counts = BTreeMap::new();
        planned.iter().for_each(|planned| *counts.entry(planned.kind).or_insert(0) += 1);
        let (least, most) = (counts.values().min().unwrap(), counts.values().max().unwrap());
        assert!(counts.len() == Kind::deck(true).len() && most - least <= 1, "{counts:?}");
        let absences: Vec<_> = planned
            .iter()
            .filter_map(|planned| match planned.fault {
                Fault::Pause { lasts, .. } => Some(lasts),
                _ => None,
            })
            .collect();
        assert!(absences.iter().any(|lasts| *lasts > seconds(2)) && absences.iter().any(|lasts| *lasts < seconds(2)));
    }
}
