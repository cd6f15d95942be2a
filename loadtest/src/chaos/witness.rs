//! Sees every token and every result of a tenant's jobs, as any client would, and keeps what an audit needs.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use baton_bus::{
    Bus,
    clients::follower::{Event, Follower},
};
use baton_contract::{
    JobId, Name,
    outcome::{Delta, Failure, Outcome, Status},
};
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};
use tokio_util::task::AbortOnDropHandle;

/// How long the pipeline may take to make its streams again.
const AGAIN_WITHIN: Duration = Duration::from_secs(120);
/// How long the follower is left alone after an error. It reads on by itself once the broker is back.
const PAUSE: Duration = Duration::from_millis(100);

/// A result, as far as it matters here.
#[derive(Clone, Debug, PartialEq)]
pub struct Ended {
    pub status: Status,
    /// The tokens of each answer.
    pub answers: Vec<Vec<u32>>,
    pub error: Option<Failure>,
    /// Prompt tokens that decode had to compute again.
    pub recomputed_tokens: u32,
    /// Tokens that the last decode worker took over from another.
    pub resumed_tokens: u32,
    /// Deliveries until decode ended the job; more than one means that another worker went on with it.
    pub decode_attempt: u64,
    /// How often the broker had lost all its data before: a result that it has forgotten may come again.
    pub epoch: u32,
}

impl From<&Outcome> for Ended {
    fn from(outcome: &Outcome) -> Self {
        let several = outcome.choices.iter().map(|choice| choice.tokens.clone()).collect::<Vec<_>>();
        Self {
            status: outcome.status,
            answers: if several.is_empty() { vec![outcome.tokens.clone()] } else { several },
            error: outcome.error.clone(),
            recomputed_tokens: outcome.timings.recomputed_tokens,
            resumed_tokens: outcome.timings.resumed_tokens,
            decode_attempt: outcome.timings.decode_attempt.into(),
            epoch: 0,
        }
    }
}

/// All that was seen.
#[derive(Debug, Default)]
pub struct Observed {
    /// In the order of their stream; a job should have one.
    pub results: HashMap<JobId, Vec<Ended>>,
    /// The token at each place of each answer, by answer and place.
    pub tokens: HashMap<JobId, HashMap<(u32, u32), u32>>,
    /// Places that were told with two different tokens.
    pub clashes: Vec<(JobId, String)>,
    /// Jobs one of whose requests was refused, and so often.
    pub refused: HashMap<JobId, u64>,
    /// Tokens that were told.
    pub deltas: u64,
    /// Those of them that had been told before.
    pub repeated: u64,
    /// Jobs that had ended when their records were lost.
    pub forgotten: HashSet<JobId>,
    epoch: u32,
    /// Results that were read from their stream, and may pass by later.
    read: HashSet<JobId>,
}

impl Observed {
    pub fn delta(&mut self, job: JobId, delta: &Delta) {
        self.deltas += 1;
        let place = (delta.choice, delta.index);
        // Only pieces of a foreign engine's answer have none.
        let Some(token) = delta.token else { return };
        let Some(&before) = self.tokens.get(&job).and_then(|tokens| tokens.get(&place)) else {
            self.tokens.entry(job).or_default().insert(place, token);
            return;
        };
        self.repeated += 1;
        if before != token {
            let (choice, index) = (delta.choice, delta.index);
            self.clashes.push((job, format!("token {index} of answer {choice} was first {before}, then {token}")));
        }
    }

    /// A result that passes by.
    pub fn result(&mut self, outcome: &Outcome) {
        if !self.read.remove(&outcome.id) {
            self.note(outcome);
        }
    }

    /// A result that was read from its stream, for it had not passed by.
    pub fn read(&mut self, outcome: &Outcome) {
        self.note(outcome);
        self.read.insert(outcome.id.clone());
    }

    fn note(&mut self, outcome: &Outcome) {
        let ended = Ended { epoch: self.epoch, ..outcome.into() };
        self.results.entry(outcome.id.clone()).or_default().push(ended);
    }

    /// The records of all jobs are lost: those that have ended need none any more.
    pub fn forget(&mut self) {
        self.forgotten.extend(self.results.keys().cloned());
    }
}

/// Follows until it is dropped.
pub struct Witness {
    bus: Bus,
    tenant: Name,
    jobs: Arc<HashSet<JobId>>,
    observed: Arc<Mutex<Observed>>,
    told: watch::Sender<usize>,
    following: Mutex<Option<AbortOnDropHandle<()>>>,
}

impl Witness {
    /// Follows `jobs` of a tenant from now on.
    pub async fn start(bus: &Bus, tenant: &Name, jobs: HashSet<JobId>) -> Result<Self, baton_bus::Error> {
        let follower = bus.follow(tenant).await?;
        let (observed, told, jobs) = (Arc::new(Mutex::new(Observed::default())), watch::Sender::new(0), Arc::new(jobs));
        let following = tokio::spawn(follow(follower, jobs.clone(), observed.clone(), told.clone()));
        let (bus, tenant, following) =
            (bus.clone(), tenant.clone(), Mutex::new(Some(AbortOnDropHandle::new(following))));
        Ok(Self { bus, tenant, jobs, observed, told, following })
    }

    /// How many jobs have a result.
    pub fn ended(&self) -> usize {
        *self.told.borrow()
    }

    /// Waits until as many jobs have results, or for so long; whether they have.
    pub async fn until_ended(&self, jobs: usize, limit: Duration) -> bool {
        let mut ended = self.told.subscribe();
        matches!(timeout(limit, ended.wait_for(|ended| *ended >= jobs)).await, Ok(Ok(_)))
    }

    pub fn observed(&self) -> MutexGuard<'_, Observed> {
        self.observed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads the results of jobs that have ended and whose results have not passed by.
    pub async fn look_up(&self) -> Result<(), baton_bus::Error> {
        let unseen: Vec<_> = {
            let observed = self.observed();
            self.jobs.iter().filter(|job| !observed.results.contains_key(job)).cloned().collect()
        };
        let jobs = self.bus.jobs().await?;
        for job in &unseen {
            let Some(outcome) = jobs.result(&self.tenant, job).await? else { continue };
            let mut observed = self.observed();
            if !observed.results.contains_key(job) {
                observed.read(&outcome);
                self.told.send_replace(observed.results.len());
            }
        }
        Ok(())
    }

    /// The broker has lost its data: nothing that it had comes any more, and results may come again.
    pub fn look_away(&self) {
        drop(self.following.lock().unwrap_or_else(PoisonError::into_inner).take());
        let mut observed = self.observed();
        observed.forget();
        observed.epoch += 1;
    }

    /// Follows again, once the pipeline has made its streams.
    pub async fn look_again(&self) -> Result<(), baton_bus::Error> {
        let deadline = Instant::now() + AGAIN_WITHIN;
        let follower = loop {
            match self.bus.follow(&self.tenant).await {
                Ok(follower) => break follower,
                Err(error) if Instant::now() > deadline => return Err(error),
                Err(_) => sleep(PAUSE).await,
            }
        };
        let (jobs, observed, told) = (self.jobs.clone(), self.observed.clone(), self.told.clone());
        let following = AbortOnDropHandle::new(tokio::spawn(follow(follower, jobs, observed, told)));
        *self.following.lock().unwrap_or_else(PoisonError::into_inner) = Some(following);
        Ok(())
    }
}

async fn follow(
    mut follower: Follower,
    jobs: Arc<HashSet<JobId>>,
    observed: Arc<Mutex<Observed>>,
    told: watch::Sender<usize>,
) {
    loop {
        // All jobs at any time: what comes after a job's result is just what must not be missed.
        match follower.next(&jobs).await {
            Ok(event) => {
                let mut observed = observed.lock().unwrap_or_else(PoisonError::into_inner);
                match event {
                    Event::Delta { job, delta } => observed.delta(job, &delta),
                    Event::Refused(refusal) => *observed.refused.entry(refusal.id.clone()).or_default() += 1,
                    Event::Result(outcome) => {
                        observed.result(&outcome);
                        told.send_replace(observed.results.len());
                    }
                }
            }
            Err(_) => sleep(PAUSE).await,
        }
    }
}
