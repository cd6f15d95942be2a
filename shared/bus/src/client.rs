//! The user's side of the bus: submit requests, follow their tokens, collect their results.

use std::{collections::HashSet, time::Duration};

use async_nats::{HeaderMap, Subscriber};
use baton_contract::{
    JobId, Name,
    outcome::{Delta, Outcome},
};
use futures::StreamExt;
use tokio::time::{Instant, interval_at};

use crate::{Bus, Error, jobs::Jobs, trace};

/// Results are pushed; now and then those still missing are asked for, in case a push was lost with a connection.
const ASK_EVERY: Duration = Duration::from_secs(2);

impl Bus {
    /// Publishes a request durably; returns its sequence in the request stream. The trace of the current span goes with it.
    pub async fn submit(&self, tenant: &Name, lane: &Name, body: Vec<u8>) -> Result<u64, Error> {
        let headers = trace::headers_of(&tracing::Span::current());
        self.submit_with(tenant, lane, body, headers).await
    }

    async fn submit_with(&self, tenant: &Name, lane: &Name, body: Vec<u8>, headers: HeaderMap) -> Result<u64, Error> {
        self.publish_durably(self.layout.request(tenant, lane), None, headers, body).await
    }

    /// Begins to follow jobs of a tenant. To see every token, call it before submitting.
    pub async fn follow(&self, tenant: &Name) -> Result<Follower, Error> {
        let subscribe = async |subject: String| {
            let what = subject.clone();
            let failed = |error: async_nats::SubscribeError| Error::Read { what, message: error.to_string() };
            self.client.subscribe(subject).await.map_err(failed)
        };
        let results = subscribe(self.layout.results(tenant)).await?;
        let tokens = subscribe(format!("{}.tok.{tenant}.*", self.layout.root())).await?;
        self.flush().await?;
        Ok(Follower { jobs: self.jobs().await?, tenant: tenant.clone(), results, tokens, asked: Instant::now() })
    }
}

/// Tokens and results of a tenant's jobs as they come.
pub struct Follower {
    jobs: Jobs,
    tenant: Name,
    results: Subscriber,
    tokens: Subscriber,
    asked: Instant,
}

#[derive(Debug)]
pub enum Event {
    Delta { job: JobId, delta: Delta },
    Result(Box<Outcome>),
}

impl Follower {
    /// The next token or result of one of the `pending` jobs. A result comes once and ends its job's events; the caller
    /// removes that job from `pending`.
    pub async fn next(&mut self, pending: &HashSet<JobId>) -> Result<Event, Error> {
        let mut ask = interval_at(self.asked + ASK_EVERY, ASK_EVERY);
        loop {
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
                Some(message) = self.results.next() => {
                    let outcome: Result<Outcome, _> = serde_json::from_slice(&message.payload);
                    if let Ok(outcome) = outcome
                        && pending.contains(&outcome.id)
                    {
                        return Ok(Event::Result(Box::new(outcome)));
                    }
                }
                _ = ask.tick() => {
                    self.asked = Instant::now();
                    if let Some(outcome) = self.ask(pending).await? {
                        return Ok(Event::Result(Box::new(outcome)));
                    }
                }
            }
        }
    }

    /// Waits for one job's result, which may be there already.
    pub async fn result(&mut self, job: &JobId) -> Result<Outcome, Error> {
        let pending = HashSet::from([job.clone()]);
        if let Some(outcome) = self.ask(&pending).await? {
            return Ok(outcome);
        }
        loop {
            if let Event::Result(outcome) = self.next(&pending).await? {
                return Ok(*outcome);
            }
        }
    }

    /// The next result of any job of the tenant, for whoever collects them all.
    pub async fn next_result(&mut self) -> Result<Outcome, Error> {
        loop {
            let closed = || Error::Read { what: "results".into(), message: "the connection was closed".into() };
            let message = self.results.next().await.ok_or_else(closed)?;
            if let Ok(outcome) = serde_json::from_slice(&message.payload) {
                return Ok(outcome);
            }
        }
    }

    async fn ask(&self, pending: &HashSet<JobId>) -> Result<Option<Outcome>, Error> {
        for job in pending {
            if let Some(outcome) = self.jobs.result(&self.tenant, job).await? {
                return Ok(Some(outcome));
            }
        }
        Ok(None)
    }
}
