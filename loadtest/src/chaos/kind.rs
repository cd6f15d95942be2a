//! The kinds of faults, and which of them a run has.

use std::fmt;

use baton_contract::subject::Stage;
use clap::ValueEnum;
use serde::Serialize;

/// A kind of fault, by the name that options know it by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A worker or gateway is killed (SIGKILL) and started again
    Kill,
    /// All workers of a stage are killed and started again
    KillAll,
    /// A worker or gateway is stopped (SIGSTOP) and continued
    Pause,
    /// A worker or gateway is drained (SIGTERM) and started again
    Drain,
    /// A worker or gateway is started again with a clock that is hours ahead or behind (needs faketime)
    Clock,
    /// The broker, or one node of the cluster, is restarted
    BrokerStop,
    /// The broker, or one node of the cluster, is killed and started again
    BrokerKill,
    /// The broker, or the whole cluster, is stopped (SIGSTOP) and continued
    BrokerPause,
    /// The cluster's leader is frozen for some seconds (with --cluster)
    FreezeLeader,
    /// A node that is not the leader is frozen for some seconds (with --cluster)
    FreezeFollower,
    /// Connections are slow
    Delay,
    /// Connections are cut, and new ones refused
    Cut,
    /// Connections stay open and carry nothing any more
    HalfOpen,
    /// Bits of stored chunks flip
    Damage,
    /// Stored chunks disappear
    Loss,
    /// The store fails whatever it is asked
    StoreError,
    /// The durable consumers of a stage are deleted
    Consumers,
    /// The bucket of checkpoints or of claims on prefixes is deleted
    Caches,
    /// A queue of admitted jobs is purged, and `baton reconcile` run
    Purge,
    /// The stream of such a queue is deleted, and `baton reconcile` run
    Streams,
    /// The queue of requests is purged; those without a result are sent again
    Requests,
    /// The bucket of job records is deleted; requests without a result are sent again
    Records,
    /// The broker loses all its data; requests without a result are sent again
    Wipe,
    /// A message with a header that is no header: a lone carriage return, or bytes that are no UTF-8
    Headers,
    /// Each request is sent up to 8 times over the bus or under one Idempotency-Key, some 60 times while a stage has no workers
    Copies,
    /// The broker takes no message above 1 MB, and some results have more (with the sim engine)
    LargeResults,
}

/// What there is to disturb in a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Surroundings {
    /// The store is a directory of this machine, whose files can be damaged and removed.
    pub directory: bool,
    /// The broker has three nodes.
    pub cluster: bool,
    /// Processes can be started with a wrong clock.
    pub faketime: bool,
    /// The engine is the simulated one.
    pub sim: bool,
}

impl Kind {
    /// Why it cannot happen here, if so.
    fn obstacle(self, surroundings: Surroundings) -> Option<&'static str> {
        let Surroundings { directory, cluster, faketime, sim } = surroundings;
        match self {
            Self::Damage | Self::Loss if !directory => Some("the store is no directory"),
            Self::FreezeLeader | Self::FreezeFollower if !cluster => Some("the broker is no cluster (--cluster)"),
            Self::Clock if !faketime => Some("faketime is not installed"),
            Self::LargeResults if !sim => Some("the engine is not the simulated one"),
            _ => None,
        }
    }

    /// Whether it lasts for the whole run and is not one of those that happen at their times.
    fn lasts(self) -> bool {
        matches!(self, Self::Copies | Self::LargeResults)
    }
}

/// The kinds of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kinds {
    chosen: Vec<Kind>,
    /// Kinds that were asked for and can't happen, and why.
    pub left_out: Vec<LeftOut>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LeftOut {
    pub fault: Kind,
    pub why: &'static str,
}

impl Kinds {
    /// Those in `only`, or all if there are none, but for those in `without`.
    pub fn choose(only: &[Kind], without: &[Kind], surroundings: Surroundings) -> Self {
        let mut kinds = Self::default();
        let wanted = |kind: &Kind| (only.is_empty() || only.contains(kind)) && !without.contains(kind);
        for &fault in Kind::value_variants().iter().filter(|kind| wanted(kind)) {
            match fault.obstacle(surroundings) {
                None => kinds.chosen.push(fault),
                Some(why) => kinds.left_out.push(LeftOut { fault, why }),
            }
        }
        kinds
    }

    pub fn has(&self, kind: Kind) -> bool {
        self.chosen.contains(&kind)
    }

    /// Those that happen at their times, each with whatever it is done to, once.
    pub fn deck(&self) -> Vec<Card> {
        let of_kind = |kind: &Kind| {
            let roles = match kind {
                Kind::Kill | Kind::Pause | Kind::Drain => Role::ALL.map(Some).to_vec(),
                _ => vec![None],
            };
            let kind = *kind;
            roles.into_iter().map(move |role| Card { kind, role })
        };
        self.chosen.iter().filter(|kind| !kind.lasts()).flat_map(of_kind).collect()
    }
}

/// What a process of the pipeline is there for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    Stage(Stage),
    Gateway,
}

impl Role {
    pub const ALL: [Self; 4] =
        [Self::Stage(Stage::Ingest), Self::Stage(Stage::Prefill), Self::Stage(Stage::Decode), Self::Gateway];

    /// Its place among all.
    pub fn index(self) -> usize {
        match self {
            Self::Stage(stage) => stage as usize,
            Self::Gateway => Stage::ALL.len(),
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stage(stage) => write!(f, "{stage} worker"),
            Self::Gateway => f.write_str("gateway"),
        }
    }
}

/// A kind of fault and the kind of process that it is done to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Card {
    pub kind: Kind,
    pub role: Option<Role>,
}

impl Card {
    pub fn of(kind: Kind) -> Self {
        Self { kind, role: None }
    }
}

impl fmt::Display for Card {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(role) = self.role {
            write!(f, "{role} ")?;
        }
        f.write_str(match self.kind {
            Kind::Kill => "killed (SIGKILL)",
            Kind::KillAll => "all workers of a stage killed",
            Kind::Pause => "stopped and continued",
            Kind::Drain => "drained (SIGTERM)",
            Kind::Clock => "clock hours ahead or behind",
            Kind::BrokerStop => "broker restarted",
            Kind::BrokerKill => "broker killed (SIGKILL)",
            Kind::BrokerPause => "broker stopped and continued",
            Kind::FreezeLeader => "cluster's leader frozen",
            Kind::FreezeFollower => "cluster's follower frozen",
            Kind::Delay => "connections slowed down",
            Kind::Cut => "connections cut and refused",
            Kind::HalfOpen => "connections half-open",
            Kind::Damage => "stored chunks damaged",
            Kind::Loss => "stored chunks removed",
            Kind::StoreError => "store failing",
            Kind::Consumers => "a stage's consumers deleted",
            Kind::Caches => "a bucket of checkpoints or prefixes deleted",
            Kind::Purge => "a queue purged, reconciled",
            Kind::Streams => "a queue's stream deleted, reconciled",
            Kind::Requests => "requests purged, sent again",
            Kind::Records => "job records deleted, requests sent again",
            Kind::Wipe => "broker's data lost, requests sent again",
            Kind::Headers => "hostile headers published",
            Kind::Copies => "requests copied",
            Kind::LargeResults => "results above the payload limit",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_chosen_and_what_cannot_happen_is_told() {
        let all = Surroundings { directory: true, cluster: true, faketime: true, sim: true };
        let kinds = Kinds::choose(&[], &[Kind::Wipe], all);
        assert!(kinds.has(Kind::Headers) && !kinds.has(Kind::Wipe) && kinds.left_out.is_empty());
        let none = Surroundings { directory: false, cluster: false, faketime: false, sim: false };
        let kinds = Kinds::choose(&[Kind::Kill, Kind::Copies, Kind::Clock], &[], none);
        assert_eq!(kinds.left_out.iter().map(|left_out| left_out.fault).collect::<Vec<_>>(), [Kind::Clock]);
        let deck: Vec<String> = kinds.deck().iter().map(Card::to_string).collect();
        assert_eq!(
            deck,
            ["ingest worker", "prefill worker", "decode worker", "gateway"]
                .map(|role| format!("{role} killed (SIGKILL)"))
        );
        assert!(kinds.has(Kind::Copies) && !kinds.has(Kind::Pause));
    }
}
