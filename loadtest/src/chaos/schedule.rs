//! Which faults happen when, drawn before the run from its seed alone.

use std::time::Duration;

use baton_contract::subject::Stage;
use rand::{Rng, RngExt, seq::SliceRandom};
use rand_distr::{Distribution, Exp1};

use super::kind::{Card, Kind, Kinds, Role};
use baton_workload::stream;

const FAULTS: u64 = 100;
/// The pause between two faults is at most this many times the mean, so that a short run has its share.
const LONGEST_PAUSE: f64 = 3.0;
/// What a wrong clock is off by, as faketime says it.
const OFFSETS: [&str; 2] = ["+3h", "-25h"];

/// A process: what it is there for, and its number among those, from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    pub role: Role,
    pub number: usize,
}

/// Whose connections to the broker a network fault hits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    One(Target),
    /// All processes and the submitter.
    All,
}

/// Where jobs lie that were admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Queue {
    /// That of prefill, and where jobs wait for their turn to get there.
    Prefill,
    Decode,
}

/// What jobs can do without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cache {
    Checkpoints,
    Prefixes,
}

/// A header block that is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hostile {
    LoneReturn,
    NotUtf8,
}

/// What is done to the pipeline. A process or broker that was ended is started again after `down`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fault {
    /// SIGKILL to a process.
    Kill { target: Target, down: Duration },
    /// SIGKILL to all workers of a stage.
    KillAll { stage: Stage, down: Duration },
    /// SIGSTOP, and SIGCONT later: the process finds out that it was away, or does not.
    Pause { target: Target, lasts: Duration },
    /// SIGTERM to a process.
    Drain { target: Target, down: Duration },
    /// SIGTERM to a process, which then runs with a clock that is off, until it is started the next time.
    Clock { target: Target, by: &'static str },
    /// SIGTERM to the broker, or to one node.
    BrokerStop { node: usize, down: Duration },
    /// SIGKILL to the broker, or to one node.
    BrokerKill { node: usize, down: Duration },
    /// SIGSTOP and SIGCONT to the broker, all of its nodes.
    BrokerPause { lasts: Duration },
    /// SIGSTOP and SIGCONT to the leader of the cluster, or to the follower of a number.
    Freeze { follower: Option<usize>, lasts: Duration },
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
    /// A stage has no durable consumers any more.
    Consumers { stage: Stage },
    /// A bucket is gone that jobs can do without.
    Caches { cache: Cache },
    /// A queue of admitted jobs is empty, or its `stream` gone, and an operator reconciles.
    Purge { queue: Queue, stream: bool },
    /// Requests that were not admitted are gone.
    Requests,
    /// What is known of jobs is gone.
    Records,
    /// The broker starts with nothing.
    Wipe,
    /// Somebody publishes a request with such headers.
    Headers { hostile: Hostile },
}

/// A fault and its time since the run's start.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Planned {
    pub at: Duration,
    pub card: Card,
    pub fault: Fault,
}

/// Draws the faults of a run that lasts `lasts`, on average one in `mean`, with `workers` workers a stage. Every kind has
/// its turn before any has its second, in an order of the seed's.
pub fn draw(
    seed: u64,
    lasts: Duration,
    mean: Duration,
    workers: usize,
    ack_wait: Duration,
    kinds: &Kinds,
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
            deck = kinds.deck();
            deck.shuffle(&mut random);
        }
        let Some(card) = deck.pop() else { return planned };
        if let Some(fault) = particulars(card, &mut random, workers, ack_wait) {
            planned.push(Planned { at, card, fault });
        }
    }
}

/// One of several.
fn any<T: Copy>(random: &mut impl Rng, of: &[T]) -> T {
    of[random.random_range(0..of.len())]
}

/// Nothing for a kind that has no time.
fn particulars(card: Card, random: &mut impl Rng, workers: usize, ack_wait: Duration) -> Option<Fault> {
    let stage = any(random, &Stage::ALL);
    let number = random.random_range(0..workers);
    let target = Target { role: card.role.unwrap_or_else(|| any(random, &Role::ALL)), number };
    // One in three hits all.
    let reach = if random.random_range(0..3) == 0 { Reach::All } else { Reach::One(target) };
    // Half of the absences end before the broker gives the work to others, half after.
    let absence = ack_wait.mul_f64(random.random_range(0.1..2.0));
    let short = Duration::from_millis(random.random_range(0..1500));
    // So long that a cluster elects, or nearly so.
    let frozen = Duration::from_millis(random.random_range(1_000..8_000));
    let (chunks, seed, node) = (random.random_range(4..=24), random.random(), random.random_range(0..3));
    Some(match card.kind {
        Kind::Kill => Fault::Kill { target, down: short },
        Kind::KillAll => Fault::KillAll { stage, down: absence },
        Kind::Pause => Fault::Pause { target, lasts: absence },
        Kind::Drain => Fault::Drain { target, down: short },
        Kind::Clock => Fault::Clock { target, by: any(random, &OFFSETS) },
        Kind::BrokerStop => Fault::BrokerStop { node, down: short },
        Kind::BrokerKill => Fault::BrokerKill { node, down: absence },
        Kind::BrokerPause => Fault::BrokerPause { lasts: absence },
        Kind::FreezeLeader => Fault::Freeze { follower: None, lasts: frozen },
        Kind::FreezeFollower => Fault::Freeze { follower: Some(node), lasts: frozen },
        Kind::Delay => Fault::Delay { reach, by: Duration::from_millis(random.random_range(5..100)), lasts: absence },
        Kind::Cut => Fault::Cut { reach, lasts: absence },
        Kind::HalfOpen => Fault::HalfOpen { reach },
        Kind::Damage => Fault::Damage { chunks, seed },
        Kind::Loss => Fault::Loss { chunks, seed },
        Kind::StoreError => Fault::StoreError { lasts: absence },
        Kind::Consumers => Fault::Consumers { stage },
        Kind::Caches => Fault::Caches { cache: any(random, &[Cache::Checkpoints, Cache::Prefixes]) },
        Kind::Purge | Kind::Streams => {
            let queue = any(random, &[Queue::Prefill, Queue::Decode]);
            Fault::Purge { queue, stream: card.kind == Kind::Streams }
        }
        Kind::Requests => Fault::Requests,
        Kind::Records => Fault::Records,
        Kind::Wipe => Fault::Wipe,
        Kind::Headers => Fault::Headers { hostile: any(random, &[Hostile::LoneReturn, Hostile::NotUtf8]) },
        Kind::Copies | Kind::LargeResults => return None,
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::chaos::kind::Surroundings;

    #[test]
    fn a_seed_decides_and_no_kind_is_left_out() {
        let seconds = Duration::from_secs;
        let all = Surroundings { directory: true, cluster: true, faketime: true, sim: true };
        let kinds = Kinds::choose(&[], &[], all);
        let of = |seed| draw(seed, seconds(600), seconds(2), 3, seconds(2), &kinds);
        assert_eq!(of(7), of(7));
        assert_ne!(of(7), of(8));
        let planned = of(7);
        assert!(planned.windows(2).all(|pair| pair[0].at <= pair[1].at));
        assert!(planned.last().unwrap().at < seconds(600) && (200..450).contains(&planned.len()), "{}", planned.len());
        let mut counts = BTreeMap::new();
        planned.iter().for_each(|planned| *counts.entry(planned.card).or_insert(0) += 1);
        let (least, most) = (counts.values().min().unwrap(), counts.values().max().unwrap());
        assert!(counts.len() == kinds.deck().len() && most - least <= 1, "{counts:?}");
        let absences: Vec<_> = planned
            .iter()
            .filter_map(|planned| match planned.fault {
                Fault::Pause { lasts, .. } => Some(lasts),
                _ => None,
            })
            .collect();
        assert!(absences.iter().any(|lasts| *lasts > seconds(2)) && absences.iter().any(|lasts| *lasts < seconds(2)));
        let none = Kinds::choose(&[Kind::Copies], &[], all);
        assert_eq!(draw(7, seconds(600), seconds(2), 3, seconds(2), &none), []);
    }
}
