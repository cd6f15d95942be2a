//! The planner of a running pipeline: looks at it every second, tells what it thinks, and has workers change their role, one at
//! a time. Any number of planners may run; one acts, and another takes over when it is not heard of any more.
//!
//! The only part of this crate that does I/O.

use std::{collections::BTreeMap, pin::Pin, time::Duration};

use baton_bus::{
    Bus,
    duty::{lease::Lease, roles::Answer},
    unix_ms,
};
use baton_contract::{
    Role, causes,
    stats::{Planning, RoleChange, Snapshot},
    subject::Stage,
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::{
    decide::{self, Decision, Planner, Statistics},
    observe::{Observer, candidate},
};

/// The name of the duty that one planner has.
const DUTY: &str = "planner";
/// Looks come every second; one that comes this much too soon counts all the same.
const EARLY: Duration = Duration::from_millis(500);

/// How a planner works.
#[derive(Clone, Debug)]
pub struct Options {
    /// How it decides, and how often; not more often than once a second.
    pub decide: decide::Options,
    /// Names it in what it tells.
    pub name: String,
    /// It changes nothing, and tells nobody but the log.
    pub dry_run: bool,
}

type Change = Pin<Box<dyn Future<Output = Result<Answer, baton_bus::Error>> + Send>>;

struct Service {
    bus: Bus,
    options: Options,
    started: Instant,
    observer: Observer,
    planner: Planner,
    /// The role change that is under way.
    changing: Option<(RoleChange, Role)>,
    last: Option<RoleChange>,
    changes: u64,
    /// The replicas that were wanted last, by role.
    wanted: Option<(usize, usize)>,
    decided: Option<Instant>,
}

/// Plans until `shutdown`. Calls `ready` once it watches the pipeline.
pub async fn run(
    bus: Bus,
    options: Options,
    ready: impl FnOnce(),
    shutdown: CancellationToken,
) -> Result<(), baton_bus::Error> {
    let mut watch = bus.watch_stats().await?;
    let mut lease = bus.jobs().await?.lease(DUTY);
    let planner = Planner::new(options.decide.clone());
    let mut service = Service {
        bus,
        options,
        started: Instant::now(),
        observer: Observer::default(),
        planner,
        changing: None,
        last: None,
        changes: 0,
        wanted: None,
        decided: None,
    };
    ready();
    let mut change: Option<Change> = None;
    loop {
        tokio::select! {
            () = shutdown.cancelled() => break,
            answer = under_way(&mut change), if change.is_some() => {
                change = None;
                service.settle(answer);
            }
            snapshot = watch.next() => {
                if service.acts(&mut lease).await
                    && let Some(to_do) = service.look(&snapshot).await
                {
                    change = Some(to_do);
                }
            }
        }
    }
    // A change that is under way goes on without us: the worker has been asked.
    lease.release().await;
    Ok(())
}

async fn under_way(change: &mut Option<Change>) -> Result<Answer, baton_bus::Error> {
    match change {
        Some(change) => change.await,
        None => std::future::pending().await,
    }
}

impl Service {
    /// Whether this planner is the one that acts.
    async fn acts(&mut self, lease: &mut Lease) -> bool {
        if self.options.dry_run {
            return true;
        }
        let held = lease.hold().await.unwrap_or_else(|error| {
            tracing::warn!(error = %causes(&error), "it is not known who plans, so this planner waits");
            false
        });
        if !held {
            // What it remembers would be old when it comes to act.
            self.observer = Observer::default();
            self.planner = Planner::new(self.options.decide.clone());
        }
        held
    }

    /// Decides if it is time to; returns a change to be made, which has begun.
    async fn look(&mut self, snapshot: &Snapshot) -> Option<Change> {
        let interval = Duration::from_secs_f64(self.options.decide.interval_s.max(1.0));
        if self.decided.is_some_and(|at| at.elapsed() + EARLY < interval) {
            return None;
        }
        self.decided = Some(Instant::now());
        let changing = self.changing.as_ref().map(|(change, to)| (change.worker.as_str(), *to));
        let seen = self.observer.observe(snapshot, self.started.elapsed().as_secs_f64(), changing)?;
        let decision = self.planner.decide(&seen);
        self.log(&seen, &decision);
        let begun = decision.flip.and_then(|flip| self.begin(snapshot, flip.to, &decision.reason));
        if !self.options.dry_run {
            self.bus.tell_planning(&self.planning(&seen, decision)).await;
        }
        begun
    }

    fn log(&mut self, seen: &Statistics, decision: &Decision) {
        let Decision { prefill_replicas: prefill, decode_replicas: decode, reason, flip } = decision;
        let wanted = Some((*prefill, *decode));
        let changed = wanted != self.wanted || flip.is_some();
        self.wanted = wanted;
        let (prefill_waiting, decode_waiting) = (seen.prefill.waiting, seen.decode.waiting);
        let to = flip.map(|flip| flip.to.stage().as_str());
        if changed || self.options.dry_run {
            tracing::info!(prefill, decode, to, prefill_waiting, decode_waiting, reason, "decided");
        } else {
            tracing::debug!(prefill, decode, prefill_waiting, decode_waiting, reason, "decided");
        }
    }

    /// Asks a worker to change its role, unless one is at it already.
    fn begin(&mut self, snapshot: &Snapshot, to: Role, reason: &str) -> Option<Change> {
        if self.options.dry_run || self.changing.is_some() {
            return None;
        }
        let Some(worker) = candidate(snapshot, to).map(|worker| worker.worker.clone()) else {
            // Where roles are fixed, others start and stop workers by what is told.
            tracing::debug!(to = %to.stage(), "no worker may take the role");
            return None;
        };
        tracing::info!(worker, to = %to.stage(), reason, "a worker was asked to change its role");
        let change = RoleChange { worker: worker.clone(), to: to.stage(), at_ms: unix_ms(), reason: reason.to_owned() };
        self.changing = Some((change, to));
        let bus = self.bus.clone();
        Some(Box::pin(async move { bus.change_role(&worker, to.stage()).await }))
    }

    fn settle(&mut self, answer: Result<Answer, baton_bus::Error>) {
        let Some((change, _)) = self.changing.take() else { return };
        let (worker, to) = (change.worker.clone(), change.to);
        match answer {
            Ok(Answer::Switched { .. }) => {
                let took_ms = unix_ms().saturating_sub(change.at_ms);
                tracing::info!(worker, %to, took_ms, "a worker changed its role");
                self.changes += 1;
                self.last = Some(change);
            }
            Ok(Answer::Serves { .. }) => tracing::info!(worker, %to, "a worker had that role already"),
            Ok(Answer::Refused { reason }) => {
                tracing::warn!(worker, %to, reason, "a worker refused to change its role")
            }
            Err(error) => tracing::warn!(worker, %to, error = %causes(&error), "a worker did not change its role"),
        }
    }

    fn planning(&self, seen: &Statistics, decision: Decision) -> Planning {
        let by_stage = |prefill: usize, decode: usize| {
            BTreeMap::from([(Stage::Prefill, prefill as u64), (Stage::Decode, decode as u64)])
        };
        Planning {
            planner: self.options.name.clone(),
            at_ms: unix_ms(),
            desired: by_stage(decision.prefill_replicas, decision.decode_replicas),
            present: by_stage(seen.prefill.workers, seen.decode.workers),
            reason: decision.reason,
            changes: self.changes,
            changing: self.changing.as_ref().map(|(change, _)| change.clone()),
            last: self.last.clone(),
        }
    }
}
