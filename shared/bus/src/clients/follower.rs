//! A client's view of its jobs: their tokens and results as they come.

use std::collections::{HashSet, VecDeque};

use async_nats::{
    Subscriber,
    jetstream::consumer::{
        DeliverPolicy,
        push::{self, OrderedErrorKind},
    },
};
use baton_contract::{
    JobId, Name, causes,
    outcome::{Delta, Outcome, Refusal},
    subject::Layout,
};
use futures::{StreamExt, TryStreamExt, stream};

use crate::{Bus, Error, stage::jobs::Jobs};

/// Results that are looked up at a time.
const LOOK_UPS: usize = 32;

impl Bus {
    /// Begins to follow jobs of a tenant: tokens and results from now on. Tokens pass by once; results are read from
    /// their stream in order, also across lost connections.
    pub async fn follow(&self, tenant: &Name) -> Result<Follower, Error> {
        let failed = |message: String| Error::Read { what: format!("the jobs of tenant {tenant}"), message };
        let jobs = self.jobs().await?;
        let results = self.results_of(vec![self.layout.results(tenant), self.layout.refusals(tenant)]).await?;
        let subject = self.layout.all_tokens(tenant);
        let tokens = self.client.subscribe(subject).await.map_err(|error| failed(causes(&error)))?;
        self.flush().await?;
        Ok(Follower { jobs, tenant: tenant.clone(), results, tokens, found: VecDeque::new() })
    }

    /// A tenant's results from now on, whichever jobs they are of, without their live tokens.
    pub async fn results(&self, tenant: &Name) -> Result<Results, Error> {
        self.results_of(vec![self.layout.results(tenant)]).await
    }

    /// The results of all tenants from now on.
    pub async fn all_results(&self) -> Result<Results, Error> {
        self.results_of(vec![self.layout.all_results()]).await
    }

    async fn results_of(&self, subjects: Vec<String>) -> Result<Results, Error> {
        let failed = |message: String| Error::Read { what: subjects.join(" and "), message };
        let stream = self.jetstream.get_stream(self.layout.result_stream()).await;
        let stream = stream.map_err(|error| failed(causes(&error)))?;
        let before = stream.cached_info().state.last_sequence;
        let config = push::OrderedConfig {
            deliver_subject: self.client.new_inbox(),
            filter_subjects: subjects.clone(),
            deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: before + 1 },
            ..Default::default()
        };
        let consumer = stream.create_consumer(config).await.map_err(|error| failed(causes(&error)))?;
        let messages = consumer.messages().await.map_err(|error| failed(causes(&error)))?;
        Ok(Results { bus: self.clone(), messages, before, told: None })
    }
}

/// Tokens and results of a tenant's jobs as they come.
pub struct Follower {
    jobs: Jobs,
    tenant: Name,
    results: Results,
    tokens: Subscriber,
    /// Results that were there before.
    found: VecDeque<Ended>,
}

/// What a follower hears of a job.
#[derive(Debug)]
pub enum Event {
    /// A token.
    Delta {
        /// The job that it is of.
        job: JobId,
        /// The token.
        delta: Delta,
    },
    /// The result, which is a job's last event.
    Result(Box<Outcome>),
    /// A request under a job's id was refused; whose it was tells its digest. The job itself goes on.
    Refused(Box<Refusal>),
}

/// What a stream of results says of a request.
enum Ended {
    Result(Box<Outcome>),
    Refused(Box<Refusal>),
}

impl Ended {
    fn read(message: &async_nats::Message) -> serde_json::Result<Self> {
        Ok(match Layout::is_refusal(&message.subject) {
            true => Self::Refused(serde_json::from_slice(&message.payload)?),
            false => Self::Result(serde_json::from_slice(&message.payload)?),
        })
    }
}

impl Follower {
    /// Looks for results that jobs have already; [`Follower::next`] tells them first. To be called once for jobs that may
    /// have ended before they were followed.
    pub async fn look_up(&mut self, jobs: impl IntoIterator<Item = &JobId>) -> Result<(), Error> {
        let (store, tenant) = (&self.jobs, &self.tenant);
        let found: Vec<Option<Outcome>> = stream::iter(jobs.into_iter().cloned())
            .map(|job| async move { store.result(tenant, &job).await })
            .buffer_unordered(LOOK_UPS)
            .try_collect()
            .await?;
        self.found.extend(found.into_iter().flatten().map(|outcome| Ended::Result(Box::new(outcome))));
        Ok(())
    }

    /// The next token, result or refusal of one of the `pending` jobs. A job's result comes after its tokens and ends its
    /// events; the caller removes it from `pending`. So does a refusal, if the refused request was the caller's.
    pub async fn next(&mut self, pending: &HashSet<JobId>) -> Result<Event, Error> {
        loop {
            match self.found.pop_front() {
                Some(Ended::Result(outcome)) if pending.contains(&outcome.id) => return Ok(Event::Result(outcome)),
                Some(Ended::Refused(refusal)) if pending.contains(&refusal.id) => return Ok(Event::Refused(refusal)),
                Some(_) => continue,
                None => {}
            }
            tokio::select! {
                biased;
                Some(message) = self.tokens.next() => {
                    let job = message.subject.as_str().rsplit('.').next().and_then(|job| JobId::new(job).ok());
                    let delta = serde_json::from_slice(&message.payload).ok();
                    if let (Some(job), Some(delta)) = (job, delta)
                        && pending.contains(&job)
                    {
                        return Ok(Event::Delta { job, delta });
                    }
                }
                ended = self.results.ended() => self.found.push_back(ended?),
            }
        }
    }

    /// Waits for one job's result, which may be there already.
    pub async fn result(&mut self, job: &JobId) -> Result<Outcome, Error> {
        self.look_up([job]).await?;
        let pending = HashSet::from([job.clone()]);
        loop {
            if let Event::Result(outcome) = self.next(&pending).await? {
                return Ok(*outcome);
            }
        }
    }

    /// The next result of any job of the tenant, for whoever collects them all.
    pub async fn next_result(&mut self) -> Result<Outcome, Error> {
        while let Some(ended) = self.found.pop_front() {
            if let Ended::Result(outcome) = ended {
                return Ok(*outcome);
            }
        }
        self.results.next().await
    }
}

/// A tenant's results after a place in their stream.
pub struct Results {
    bus: Bus,
    messages: push::Ordered,
    /// What was told last and not handed out yet: reading the whole of a large result may be given up and begun again.
    told: Option<Box<Outcome>>,
    /// Results up to this sequence are older: a consumer that was lost before its first message starts from the beginning.
    before: u64,
}

impl Results {
    /// The next result, waited for, also across lost connections.
    pub async fn next(&mut self) -> Result<Outcome, Error> {
        loop {
            if let Ended::Result(outcome) = self.ended().await? {
                return Ok(*outcome);
            }
        }
    }

    async fn ended(&mut self) -> Result<Ended, Error> {
        let failed = |message: String| Error::Read { what: "results".into(), message };
        loop {
            if let Some(told) = self.told.take_if(|told| told.stored.is_none()) {
                return Ok(Ended::Result(told));
            }
            if let Some(told) = &self.told {
                let whole = self.bus.whole(Outcome::clone(told)).await;
                self.told = None;
                return Ok(Ended::Result(Box::new(whole?)));
            }
            let message = match self.messages.next().await {
                Some(Ok(message)) => message,
                // The consumer is made anew at the next turn.
                Some(Err(error)) if error.kind() == OrderedErrorKind::MissingHeartbeat => continue,
                Some(Err(error)) => return Err(failed(causes(&error))),
                None => return Err(failed("the connection was closed".into())),
            };
            if message.info().is_ok_and(|info| info.stream_sequence <= self.before) {
                continue;
            }
            match Ended::read(&message) {
                Ok(Ended::Result(told)) => self.told = Some(told),
                Ok(ended) => return Ok(ended),
                Err(error) => {
                    tracing::warn!(error = %causes(&error), subject = %message.subject, "an unreadable result was skipped")
                }
            }
        }
    }
}
