//! The load's way over the bus: one subscription to all live tokens of the tenant, one to its results.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use baton_bus::{Bus, clients::follower};
use baton_contract::{
    JobId, Name, causes,
    outcome::{Outcome, Status},
};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep_until},
};
use uuid::Uuid;

use super::event::{Event, What};
use crate::{
    Error, Options,
    record::Stages,
    workload::{Maker, Planned},
};

/// How long the follower is left alone after an error. It reads on by itself once the broker is back.
const PAUSE: Duration = Duration::from_millis(100);

pub(crate) struct Session {
    bus: Bus,
    tenant: Name,
    lane: Name,
    /// Ids are the run's own: a second run with the same seed must not meet the results of the first.
    run: String,
    follower: follower::Follower,
    follow_from: Instant,
    pending: HashSet<JobId>,
    places: HashMap<JobId, usize>,
    submissions: JoinSet<Submitted>,
    ready: VecDeque<Event>,
}

/// A submission that the broker has answered.
struct Submitted {
    index: usize,
    sent: Instant,
    result: Result<u64, String>,
}

impl Session {
    pub(super) async fn open(bus: &Bus, options: &Options) -> Result<Self, Error> {
        let run = Uuid::now_v7().simple().to_string();
        // Whatever follows in an id holds if this does.
        JobId::new(&format!("{run}-{}", usize::MAX))?;
        Ok(Self {
            bus: bus.clone(),
            tenant: options.tenant.clone(),
            lane: options.lane.clone(),
            run,
            // Before the first request, so that no token is missed.
            follower: bus.follow(&options.tenant).await?,
            follow_from: Instant::now(),
            pending: HashSet::new(),
            places: HashMap::new(),
            submissions: JoinSet::new(),
            ready: VecDeque::new(),
        })
    }

    pub(super) fn send(&mut self, index: usize, planned: Planned, maker: &Maker) {
        let id: Arc<str> = format!("{}-{index}", self.run).into();
        if let Ok(job) = JobId::new(&id) {
            self.pending.insert(job.clone());
            self.places.insert(job, index);
        }
        let (bus, maker) = (self.bus.clone(), maker.clone());
        let (tenant, lane) = (self.tenant.clone(), self.lane.clone());
        self.submissions.spawn(async move {
            let body = serde_json::to_vec(&maker.make(&planned, Some(&id)));
            let sent = Instant::now();
            let result = match body {
                Ok(body) => bus.submit(&tenant, &lane, body).await.map_err(|error| causes(&error)),
                Err(error) => Err(causes(&error)),
            };
            Submitted { index, sent, result }
        });
    }

    pub(super) async fn next(&mut self) -> Event {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return event;
            }
            let (follower, pending, from) = (&mut self.follower, &self.pending, self.follow_from);
            let heard = async {
                sleep_until(from).await;
                follower.next(pending).await
            };
            tokio::select! {
                biased;
                Some(Ok(submitted)) = self.submissions.join_next() => self.submitted(submitted),
                heard = heard, if !pending.is_empty() => match heard {
                    // Other answers to the same prompt would not be what the reader of the first one sees.
                    Ok(follower::Event::Delta { job, delta }) if delta.choice == 0 && !delta.restart => {
                        let what = What::Token { position: delta.index };
                        self.ready.extend(self.places.get(&job).map(|index| Event { index: *index, at: Instant::now(), what }));
                    }
                    Ok(follower::Event::Result(outcome)) => self.ended(&outcome),
                    // Every id is new.
                    Ok(follower::Event::Delta { .. } | follower::Event::Refused(_)) => {}
                    // A run must outlive a broker that is away for a while: how a pipeline takes it may be what is
                    // measured. If it never comes back, the requests end as lost.
                    Err(_) => self.follow_from = Instant::now() + PAUSE,
                },
                else => std::future::pending().await,
            }
        }
    }

    pub(super) async fn rest(&mut self) -> Option<Event> {
        if self.ready.is_empty()
            && let Some(Ok(submitted)) = self.submissions.join_next().await
        {
            self.submitted(submitted);
        }
        self.ready.pop_front()
    }

    pub(super) fn forget(&mut self, index: usize) {
        if let Ok(job) = JobId::new(&format!("{}-{index}", self.run)) {
            self.pending.remove(&job);
            self.places.remove(&job);
        }
    }

    fn submitted(&mut self, Submitted { index, sent, result }: Submitted) {
        self.ready.push_back(Event { index, at: sent, what: What::Sent });
        if let Err(message) = result {
            self.forget(index);
            let what = What::Failed { kind: "submit".into(), message };
            self.ready.push_back(Event { index, at: Instant::now(), what });
        }
    }

    fn ended(&mut self, outcome: &Outcome) {
        let Some(index) = self.places.remove(&outcome.id) else { return };
        self.pending.remove(&outcome.id);
        let what = match (outcome.status, &outcome.error) {
            (Status::Completed, _) => What::Completed {
                prompt_tokens: outcome.usage.prompt_tokens,
                output_tokens: outcome.usage.completion_tokens,
                cached_tokens: outcome.usage.cached_tokens,
                stages: Some(Stages::of(&outcome.timings)),
            },
            (_, Some(failure)) => What::Failed { kind: word(failure.code), message: failure.message.clone() },
            (status, None) => What::Failed { kind: word(status), message: "the result names no error".into() },
        };
        self.ready.push_back(Event { index, at: Instant::now(), what });
    }
}

/// A code or status as it is written in JSON.
fn word(value: impl serde::Serialize) -> String {
    serde_json::to_value(value).ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
}
