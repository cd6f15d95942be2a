//! Sees every token and every result of a tenant's jobs, as any client would, and keeps what an audit needs.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use baton_bus::{
    Bus,
    client::{Event, Follower},
};
use baton_contract::{
    JobId, Name,
    outcome::{Delta, Failure, Outcome, Status},
};
use tokio::{
    sync::watch,
    task::AbortHandle,
    time::{sleep, timeout},
};

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
}

impl Observed {
    pub fn delta(&mut self, job: JobId, delta: &Delta) {
        self.deltas += 1;
        let place = (delta.choice, delta.index);
        let Some(&before) = self.tokens.get(&job).and_then(|tokens| tokens.get(&place)) else {
            self.tokens.entry(job).or_default().insert(place, delta.token);
            return;
        };
        self.repeated += 1;
        if before != delta.token {
            let (choice, index, token) = (delta.choice, delta.index, delta.token);
            self.clashes.push((job, format!("token {index} of answer {choice} was first {before}, then {token}")));
        }
    }

    pub fn result(&mut self, outcome: &Outcome) {
        self.results.entry(outcome.id.clone()).or_default().push(outcome.into());
    }
}

/// Follows until it is dropped.
pub struct Witness {
    observed: Arc<Mutex<Observed>>,
    ended: watch::Receiver<usize>,
    following: AbortHandle,
}

impl Witness {
    /// Follows `jobs` of a tenant from now on.
    pub async fn start(bus: &Bus, tenant: &Name, jobs: HashSet<JobId>) -> Result<Self, baton_bus::Error> {
        let follower = bus.follow(tenant).await?;
        let observed = Arc::new(Mutex::new(Observed::default()));
        let (told, ended) = watch::channel(0);
        let following = tokio::spawn(follow(follower, jobs, observed.clone(), told)).abort_handle();
        Ok(Self { observed, ended, following })
    }

    /// How many jobs have a result.
    pub fn ended(&self) -> usize {
        *self.ended.borrow()
    }

    /// Waits until as many jobs have results, or for so long; whether they have.
    pub async fn until_ended(&mut self, jobs: usize, limit: Duration) -> bool {
        matches!(timeout(limit, self.ended.wait_for(|ended| *ended >= jobs)).await, Ok(Ok(_)))
    }

    pub fn observed(&self) -> MutexGuard<'_, Observed> {
        self.observed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        self.following.abort();
    }
}

async fn follow(
    mut follower: Follower,
    jobs: HashSet<JobId>,
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
