//! Webhooks: tells a tenant's URL that a batch, or a job whose sender asked for it, has ended.
//!
//! A call is an errand on the bus, so it outlives whoever left it, and any gateway makes it. It names what ended and carries
//! neither URL nor secret: those are in the file of keys, `[[webhooks]]`, and are read when the call is made.

mod guard;
mod send;
mod sign;
mod watch;

use std::{sync::Arc, time::Duration};

use axum::Router;
use baton_bus::{
    gateways::errands::Errands,
    stage::{
        delivery::{Delivery, Settle},
        pull::Receiver,
    },
};
use baton_contract::{JobId, Name, batch::Batch, causes, outcome::Status};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio_util::sync::CancellationToken;

pub use self::guard::{Malformed, Range};
pub(crate) use self::sign::Secret;
use crate::{State, metrics::Called};

/// Calls that are made at a time.
const AT_ONCE: usize = 16;
/// Calls are repeated as long as this after what they tell of.
const GIVE_UP: Duration = Duration::from_secs(24 * 3_600);
/// The pauses between them grow with the time that has passed, within these bounds.
const PAUSES: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(3_600));
/// The same for looks at a job that has not ended.
const LOOKS: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));
/// A job that has not ended by then is not waited for any more.
const JOB_WITHIN: Duration = Duration::from_secs(7 * 24 * 3_600);

/// Whom a tenant's events are told, as the file of keys says it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    pub tenant: Name,
    pub url: String,
    /// `whsec_` and base64, as the Standard Webhooks scheme has it.
    pub secret: String,
}

/// How webhooks are called.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Internal addresses that may be called all the same.
    pub allow: Vec<Range>,
}

/// What an errand says.
#[derive(Debug, Serialize, Deserialize)]
struct Notice {
    /// Tells a receiver which calls are the same.
    id: String,
    about: About,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum About {
    Batch {
        id: String,
        /// Its last part: `completed`, `failed`, ...
        event: String,
        /// In milliseconds since 1970.
        at_ms: u64,
    },
    /// A job that may not have ended yet.
    Job { id: JobId },
}

/// What is told of it.
struct Event {
    kind: String,
    subject: String,
    at_ms: u64,
}

/// The routes of this module: none, webhooks are calls to others.
pub fn routes() -> Router<State> {
    Router::new()
}

/// Has a tenant told that a batch has ended, if it has a webhook.
pub(crate) async fn batch_ended(state: &State, tenant: &Name, batch: &Batch) -> Result<(), baton_bus::Error> {
    // The gateway that drives the batch may have no file of keys. Then another calls the webhook.
    if !batch.told && !has_webhook(state, tenant) {
        return Ok(());
    }
    let event = batch.status.as_str().to_owned();
    let id = format!("evt_{}_{event}", batch.order.id);
    let at_ms = state.clock.now_ms().await?;
    leave(state, tenant, Notice { id, about: About::Batch { id: batch.order.id.clone(), event, at_ms } }).await
}

/// Has a tenant, which has a webhook, told when a job has ended. To be called once the job is asked for: it may end meanwhile.
pub(crate) async fn follow_job(state: &State, tenant: &Name, job: &JobId) -> Result<(), baton_bus::Error> {
    leave(state, tenant, Notice { id: format!("evt_{job}"), about: About::Job { id: job.clone() } }).await
}

/// Whether a tenant is told anything.
pub(crate) fn has_webhook(state: &State, tenant: &Name) -> bool {
    state.webhooks.is_some() && entry(state, tenant).is_some()
}

fn entry(state: &State, tenant: &Name) -> Option<Entry> {
    state.keys.as_ref()?.webhook(tenant)
}

async fn leave(state: &State, tenant: &Name, notice: Notice) -> Result<(), baton_bus::Error> {
    let failed = |error: serde_json::Error| baton_bus::Error::Publish {
        subject: format!("a webhook of {tenant}"),
        message: causes(&error),
    };
    let payload = serde_json::to_vec(&notice).map_err(failed)?;
    state.stores.webhook_errands.leave(tenant, &notice.id, payload).await
}

/// Makes calls until `shutdown`. A gateway without a file of keys leaves them to those that have one, and only says how many
/// wait.
pub(crate) async fn run(state: State, shutdown: CancellationToken) {
    let watched = shutdown.clone();
    tokio::join!(call(state.clone(), shutdown), watch::run(state, watched));
}

async fn call(state: State, shutdown: CancellationToken) {
    let Some(options) = state.webhooks.clone().filter(|_| state.keys.is_some()) else { return };
    // The HTTP client is built without a TLS provider of its own. If the process has one already, it stays.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let errands = state.stores.webhook_errands.clone();
    errands.run(AT_ONCE, Arc::new(Caller { state, options }), shutdown).await;
}

struct Caller {
    state: State,
    options: Arc<Options>,
}

impl Receiver for Caller {
    async fn receive(&self, delivery: &Delivery) -> Settle {
        let notice: Option<Notice> = serde_json::from_slice(delivery.payload()).ok();
        let (Some(tenant), Some(notice)) = (Errands::tenant(delivery), notice) else { return Settle::Term };
        let now = match self.state.clock.now_ms().await {
            Ok(now) => now,
            Err(error) => {
                tracing::warn!(
                    error = causes(&error),
                    event = notice.id,
                    "a webhook waits: the broker's clock can't be read"
                );
                return Settle::Nak(Some(PAUSES.0));
            }
        };
        let left = Duration::from_millis(now.saturating_sub(delivery.published_ms));
        let Some(entry) = entry(&self.state, &tenant) else {
            // Another gateway's file may have it, or this one's in a moment.
            return self.without_entry(&tenant, &notice, left);
        };
        let event = match self.event(&tenant, &notice).await {
            Ok(Some(event)) => event,
            Ok(None) => {
                if left <= JOB_WITHIN {
                    return Settle::Nak(Some(pause(left, 4, LOOKS)));
                }
                self.state.metrics.webhook(Called::GivenUp);
                tracing::error!(%tenant, event = notice.id, "a webhook was given up: its job has not ended for {JOB_WITHIN:?}");
                return Settle::Term;
            }
            Err(error) => {
                let error = causes(&error);
                tracing::warn!(error, event = notice.id, "what a webhook is to tell could not be read; trying again");
                return Settle::Nak(Some(PAUSES.0));
            }
        };
        let body = json!({
            "id": notice.id, "object": "event", "created_at": event.at_ms / 1000, "type": event.kind,
            "data": { "id": event.subject },
        });
        let call =
            send::Call { id: &notice.id, url: &entry.url, secret: &entry.secret, body: body.to_string(), now_ms: now };
        match send::send(call, &self.options.allow).await {
            Ok(()) => {
                self.state.metrics.webhook(Called::Sent);
                tracing::info!(%tenant, event = notice.id, kind = event.kind, "a webhook was called");
                Settle::Ack
            }
            Err(error) => {
                let waited = Duration::from_millis(now.saturating_sub(event.at_ms));
                let last = waited > GIVE_UP || error.is_final();
                self.state.metrics.webhook(if last { Called::GivenUp } else { Called::Failed });
                let error = causes(&error);
                tracing::warn!(error, %tenant, event = notice.id, attempt = delivery.attempt, last, "a webhook was not called");
                if last { Settle::Term } else { Settle::Nak(Some(pause(waited, 1, PAUSES))) }
            }
        }
    }
}

/// A part of the time that has passed, within bounds: so the pauses grow by a factor.
fn pause(waited: Duration, part: u32, (least, most): (Duration, Duration)) -> Duration {
    (waited / part).clamp(least, most)
}

impl Caller {
    /// What becomes of a call whose tenant has no webhook in this gateway's file of keys.
    fn without_entry(&self, tenant: &Name, notice: &Notice, left: Duration) -> Settle {
        if left <= GIVE_UP {
            self.state.metrics.webhook(Called::Unknown);
            let pause = pause(left, 4, LOOKS);
            tracing::warn!(%tenant, event = notice.id, ?left, "a webhook waits: this gateway's keys file has none of the tenant");
            return Settle::Nak(Some(pause));
        }
        self.state.metrics.webhook(Called::GivenUp);
        tracing::error!(%tenant, event = notice.id, "a webhook was given up: no gateway's keys file had one of the tenant for {GIVE_UP:?}");
        Settle::Term
    }

    /// What a notice is about, if that has ended.
    async fn event(&self, tenant: &Name, notice: &Notice) -> Result<Option<Event>, baton_bus::Error> {
        match &notice.about {
            About::Batch { id, event, at_ms } => {
                Ok(Some(Event { kind: format!("batch.{event}"), subject: id.clone(), at_ms: *at_ms }))
            }
            About::Job { id } => {
                let Some(outcome) = self.state.jobs.result(tenant, id).await? else { return Ok(None) };
                let kind = match outcome.status {
                    Status::Completed => "job.completed",
                    Status::Failed => "job.failed",
                    Status::Cancelled => "job.cancelled",
                    Status::Expired => "job.expired",
                };
                let timings = &outcome.timings;
                let at_ms = timings.accepted_at_ms + timings.total_ms as u64;
                Ok(Some(Event { kind: kind.into(), subject: id.to_string(), at_ms }))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_repeated_some_twenty_times_in_a_day() {
        let (mut waited, mut calls) = (Duration::ZERO, 0);
        while waited <= GIVE_UP {
            waited += pause(waited, 1, PAUSES);
            calls += 1;
        }
        assert!((20..=40).contains(&calls), "{calls}");
    }
}
