//! The user's side of the bus: submit requests, follow their tokens, collect their results.

use std::collections::{HashSet, VecDeque};

use async_nats::{
    Subscriber,
    jetstream::consumer::{
        DeliverPolicy,
        push::{self, OrderedErrorKind},
    },
};
use baton_contract::{
    JobId, Name,
    outcome::{Delta, Outcome},
};
use futures::{StreamExt, TryStreamExt, stream};

use crate::{Bus, Error, jobs::Jobs, trace};

/// Results that are looked up at a time.
const LOOK_UPS: usize = 32;

impl Bus {
    /// Publishes a request durably; returns its sequence in the request stream. The trace of the current span goes with it.
    pub async fn submit(&self, tenant: &Name, lane: &Name, body: Vec<u8>) -> Result<u64, Error> {
        let headers = trace::headers_of(&tracing::Span::current());
        self.publish_durably(self.layout.request(tenant, lane), None, headers, body).await
    }

    /// Begins to follow jobs of a tenant: tokens and results from now on. Tokens pass by once; results are read from
    /// their stream in order, also across lost connections.
    pub async fn follow(&self, tenant: &Name) -> Result<Follower, Error> {
        let failed = |message: String| Error::Read { what: format!("the jobs of tenant {tenant}"), message };
        let jobs = self.jobs().await?;
        let stream = self.jetstream.get_stream(self.layout.result_stream()).await;
        let stream = stream.map_err(|error| failed(error.to_string()))?;
        let before = stream.cached_info().state.last_sequence;
        let config = push::OrderedConfig {
            deliver_subject: self.client.new_inbox(),
            filter_subject: self.layout.results(tenant),
            deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: before + 1 },
            ..Default::default()
        };
        let consumer = stream.create_consumer(config).await.map_err(|error| failed(error.to_string()))?;
        let results = consumer.messages().await.map_err(|error| failed(error.to_string()))?;
        let subject = self.layout.all_tokens(tenant);
        let tokens = self.client.subscribe(subject).await.map_err(|error| failed(error.to_string()))?;
        self.flush().await?;
        let results = Results { messages: results, before };
        Ok(Follower { jobs, tenant: tenant.clone(), results, tokens, found: VecDeque::new() })
    }
}

/// Tokens and results of a tenant's jobs as they come.
pub struct Follower {
    jobs: Jobs,
    tenant: Name,
    results: Results,
    tokens: Subscriber,
    /// Results that were there before.
    found: VecDeque<Outcome>,
}

#[derive(Debug)]
pub enum Event {
    Delta { job: JobId, delta: Delta },
    Result(Box<Outcome>),
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
        self.found.extend(found.into_iter().flatten());
        Ok(())
    }

    /// The next token or result of one of the `pending` jobs. A job's result comes after its tokens and ends its events;
    /// the caller removes it from `pending`.
    pub async fn next(&mut self, pending: &HashSet<JobId>) -> Result<Event, Error> {
        loop {
            if let Some(outcome) = self.found.pop_front() {
                if pending.contains(&outcome.id) {
                    return Ok(Event::Result(Box::new(outcome)));
                }
                continue;
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
                outcome = self.results.next() => self.found.push_back(outcome?),
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
        match self.found.pop_front() {
            Some(outcome) => Ok(outcome),
            None => self.results.next().await,
        }
    }
}

/// A tenant's results after a place in their stream.
struct Results {
    messages: push::Ordered,
    /// Results up to this sequence are older: a consumer that was lost before its first message starts from the beginning.
    before: u64,
}

impl Results {
    async fn next(&mut self) -> Result<Outcome, Error> {
        let failed = |message: String| Error::Read { what: "results".into(), message };
        loop {
            let message = match self.messages.next().await {
                Some(Ok(message)) => message,
                // The consumer is made anew at the next turn.
                Some(Err(error)) if error.kind() == OrderedErrorKind::MissingHeartbeat => continue,
                Some(Err(error)) => return Err(failed(error.to_string())),
                None => return Err(failed("the connection was closed".into())),
            };
            if message.info().is_ok_and(|info| info.stream_sequence <= self.before) {
                continue;
            }
            match serde_json::from_slice(&message.payload) {
                Ok(outcome) => return Ok(outcome),
                Err(error) => tracing::warn!(%error, subject = %message.subject, "an unreadable result was skipped"),
            }
        }
    }
}
