//! Cancelling jobs. The job's record is marked, by compare-and-set, so that whoever gets its message ends it; then the
//! workers are told, so that the one that has it in hand ends it at once. What a worker missed it sees in the record, which it
//! looks at again now and then.
//!
//! Users ask for it at a NATS micro-service endpoint, `<root>.api.cancel.<tenant>.<job>`, which ingest's workers serve
//! together: they have the rights that it takes, and know how requests name their jobs.

use std::{
    collections::HashMap,
    convert::Infallible,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_nats::{client::RequestErrorKind, service::error};
use baton_contract::{
    JobId, JobKey, Name, causes,
    envelope::{self, DecodeTask, PrefillTask, Task},
    header,
    outcome::{Code, Failure, Outcome, request_digest},
    record::{Record, State},
    subject::{Layout, Stage, broker},
};
use futures::{StreamExt, TryStreamExt, stream};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::{
    Bus, Error, HeaderMap,
    connection::{
        Heard,
        conflict::{self, RACES},
        endpoint::{Served, Sign},
        trace,
    },
    inspect::queue_peek::stored_ms,
    stage::jobs::Jobs,
};

/// A job that ingest has not seen is looked for among the requests of its tenant that wait.
const ANSWER: Duration = Duration::from_secs(60);
/// How long a worker may take to say that it is there.
const PING: Duration = Duration::from_secs(2);
/// So many of them, and so many bytes, are looked through: asking for unknown ids must not cost more.
const LOOKED_THROUGH: (usize, usize) = (10_000, 64 << 20);
/// Calls that are worked on at a time.
const AT_ONCE: usize = 16;

/// What becomes of a wish to cancel a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "lowercase")]
pub enum Answer {
    /// It will end as cancelled, unless it ends otherwise this very moment. Now it is in this state.
    Cancelling {
        /// How far the job had come.
        state: State,
    },
    /// It has ended.
    Ended {
        /// How it ended.
        state: State,
    },
    /// Nobody knows it.
    Unknown,
}

/// Tells a worker that it is to end a job though the work is not done.
#[derive(Clone, Debug)]
pub struct Stop {
    pub(crate) cancelled: CancellationToken,
    pub(crate) deadline: Option<Instant>,
    /// How the job is to end at once, for it has failed: what there is of it is to be told.
    pub(crate) failed: Option<Failure>,
}

impl Stop {
    /// Waits until the job is to end, and says why.
    pub async fn called(&self) -> Failure {
        if let Some(failed) = &self.failed {
            return failed.clone();
        }
        let expired = async {
            match self.deadline {
                Some(deadline) => sleep_until(deadline).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = self.cancelled.cancelled() => cancelled(),
            () = expired => Failure::new(Code::DeadlineExceeded, "the deadline passed while the job was worked on"),
        }
    }
}

/// Why a job ends that its sender cancelled.
pub fn cancelled() -> Failure {
    Failure::new(Code::Cancelled, "the job was cancelled")
}

/// The jobs that a worker has in hand.
#[derive(Clone, Debug, Default)]
pub(crate) struct InHand(Arc<Mutex<HashMap<JobKey, Watched>>>);

#[derive(Debug, Default)]
struct Watched {
    cancelled: CancellationToken,
    /// The same job may come again while an earlier delivery is at work.
    holds: usize,
}

/// One job in hand, as long as this lives.
pub(crate) struct Hold {
    in_hand: InHand,
    key: JobKey,
    pub(crate) cancelled: CancellationToken,
}

impl InHand {
    /// Takes a job in hand. Before its record is read: what is marked later is told to this hold.
    pub(crate) fn hold(&self, tenant: &Name, job: &JobId) -> Hold {
        let key = JobKey { tenant: tenant.clone(), job: job.clone() };
        let cancelled = self.with(|jobs| {
            let watched = jobs.entry(key.clone()).or_default();
            watched.holds += 1;
            watched.cancelled.clone()
        });
        Hold { in_hand: self.clone(), key, cancelled }
    }

    fn with<T>(&self, work: impl FnOnce(&mut HashMap<JobKey, Watched>) -> T) -> T {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Passes on what the workers are told, for as long as it is polled.
    pub(crate) async fn listen(&self, mut told: Heard) -> Infallible {
        loop {
            let message = told.next().await;
            let Some((tenant, job)) = Layout::parse_job(message.subject.as_str()) else { continue };
            self.with(|jobs| {
                if let Some(watched) = jobs.get(&JobKey { tenant, job }) {
                    watched.cancelled.cancel();
                }
            });
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.in_hand.with(|jobs| {
            if let Some(watched) = jobs.get_mut(&self.key) {
                watched.holds -= 1;
                if watched.holds == 0 {
                    jobs.remove(&self.key);
                }
            }
        });
    }
}

/// The endpoint for calls from users.
pub struct Calls {
    bus: Bus,
    jobs: Jobs,
    endpoint: Served,
}

impl Bus {
    /// Asks to cancel a job.
    pub async fn cancel(&self, tenant: &Name, job: &JobId) -> Result<Answer, Error> {
        let subject = self.layout.cancel(tenant, job);
        let failed = |message: String| Error::Read { what: format!("the answer of {subject}"), message };
        let request = async_nats::Request::new().timeout(Some(ANSWER));
        let message = match self.client.send_request(subject.clone(), request).await {
            Ok(message) => message,
            Err(error) if error.kind() == RequestErrorKind::NoResponders => {
                return Err(Error::NotServed { subject: subject.clone() });
            }
            Err(error) => return Err(failed(causes(&error))),
        };
        if let Some(error) = message.headers.as_ref().and_then(|headers| headers.get(header::SERVICE_ERROR)) {
            return Err(failed(error.to_string()));
        }
        serde_json::from_slice(&message.payload).map_err(|error| failed(causes(&error)))
    }

    /// Whether any ingest worker answers; none if that can't be told, as by who may not ask.
    pub async fn ingest_answers(&self) -> Option<bool> {
        let request = async_nats::Request::new().timeout(Some(PING));
        match self.client.send_request(broker::ping(&self.layout.service()), request).await {
            Ok(_) => Some(true),
            Err(error) if error.kind() == RequestErrorKind::NoResponders => Some(false),
            Err(_) => None,
        }
    }

    /// Opens the endpoint.
    pub async fn calls(&self) -> Result<Calls, Error> {
        let sign = Sign {
            service: self.layout.service(),
            description: "calls about jobs",
            endpoint: "cancel",
            subject: self.layout.cancels(),
        };
        let endpoint = Served::open(&self.ears, sign).await?;
        Ok(Calls { bus: self.clone(), jobs: self.jobs().await?, endpoint })
    }

    /// What the workers are told of cancelled jobs.
    pub(crate) async fn cancellations(&self) -> Result<Heard, Error> {
        self.ears.listen(self.layout.all_cancelled()).await
    }

    /// The digest and the time (in milliseconds since 1970) of the first request for a job that waits for ingest.
    async fn request_waiting(&self, key: &JobKey) -> Result<Option<(String, u64)>, Error> {
        let requests = self.layout.requests(&key.tenant);
        let mut waiting = self.messages_of(self.layout.stage_stream(Stage::Ingest), requests).await?.tasks;
        let (mut messages, mut bytes) = LOOKED_THROUGH;
        let mut first: Option<(u64, String, u64)> = None;
        while let Some(message) = waiting.try_next().await? {
            if self.requested(&message).as_ref() == Some(key)
                && first.as_ref().is_none_or(|(sequence, ..)| message.sequence < *sequence)
            {
                first = Some((message.sequence, request_digest(&message.payload), stored_ms(&message)));
            }
            messages = messages.saturating_sub(1);
            bytes = bytes.saturating_sub(message.payload.len());
            if messages == 0 || bytes == 0 {
                return Err(Error::Unseen { job: key.job.to_string(), tenant: key.tenant.clone() });
            }
        }
        Ok(first.map(|(_, digest, time_ms)| (digest, time_ms)))
    }
}

impl Jobs {
    /// Cancels a job: marks its record and tells the workers.
    pub async fn cancel(&self, tenant: &Name, job: &JobId) -> Result<Answer, Error> {
        let bus = &self.bus;
        let key = JobKey { tenant: tenant.clone(), job: job.clone() };
        conflict::until_unbeaten(
            RACES,
            || Error::contended(job),
            || async {
                let mut known = self.get(tenant, job).await?;
                if known.is_none() {
                    if let Some((digest, accepted_at_ms)) = bus.request_waiting(&key).await? {
                        let before = Record::cancelled_before(digest, accepted_at_ms);
                        let stored = self.store(tenant, job, &before, None).await?;
                        return Ok(stored.then_some(Answer::Cancelling { state: before.state }));
                    }
                    // Ingest may have taken it from the queue meanwhile; then it has a record.
                    known = self.get(tenant, job).await?;
                }
                let Some(stored) = known else { return Ok(Some(Answer::Unknown)) };
                let state = stored.record.state;
                let Some(next) = stored.record.cancel() else { return Ok(Some(Answer::Ended { state })) };
                // The worker that published the result died before it could note the end.
                if let Some(outcome) = self.told(tenant, job).await? {
                    self.note_end(tenant, job, outcome.status).await?;
                    return Ok(Some(Answer::Ended { state: outcome.status.into() }));
                }
                if !stored.record.cancelled && !self.store(tenant, job, &next, Some(stored.revision)).await? {
                    return Ok(None);
                }
                self.tell_cancelled(&key, state).await;
                Ok(Some(Answer::Cancelling { state }))
            },
        )
        .await
    }
}

impl Jobs {
    /// Has the worker that holds a cancelled job end it, or ends it here if none has claimed it.
    async fn tell_cancelled(&self, key: &JobKey, state: State) {
        let JobKey { tenant, job } = key;
        let subject = self.bus.layout.cancelled(tenant, job);
        // If this gets lost, the worker sees the mark when it looks at the record again.
        if let Err(error) = self.bus.client.publish(subject, Default::default()).await {
            tracing::warn!(error = %causes(&error), %job, %tenant, "the workers were not told of a cancelled job");
        }
        if state == State::Accepted
            && let Err(error) = self.end_unclaimed(key).await
        {
            tracing::warn!(error = %causes(&error), %job, %tenant, "a cancelled job did not end at once; it does at its turn");
        }
    }

    /// Ends a cancelled job that no worker has claimed, so that it need not wait for its turn: whoever gets its message finds
    /// that it has ended. If one claims it meanwhile and ends it too, one of the two results counts, and both say the same.
    async fn end_unclaimed(&self, key: &JobKey) -> Result<(), Error> {
        // Ingest has it in hand, and will see the mark or pass it on to who does.
        let Some((subject, message)) = self.bus.admitted(key).await? else { return Ok(()) };
        let layout = &self.bus.layout;
        let cancelled = match layout.parse_queue(Stage::Decode, &subject) {
            Some(_) => cancelled_task::<DecodeTask>(&message.payload),
            None => cancelled_task::<PrefillTask>(&message.payload),
        };
        let outcome = cancelled.map_err(|error| Error::Read {
            what: format!("the admitted message of job {key}"),
            message: causes(&error),
        })?;
        let mut headers = HeaderMap::new();
        trace::copy(Some(&message.headers), &mut headers);
        self.finish(&outcome, headers).await.map(drop)
    }
}

fn cancelled_task<T: Task>(payload: &[u8]) -> Result<Outcome, envelope::Error> {
    let task: T = envelope::decode(payload)?;
    Ok(task.job().failed(cancelled(), Vec::new(), task.timings().clone()))
}

impl Calls {
    /// Answers calls until `done` is, then closes the endpoint and returns what it came to.
    pub async fn serve_until<T>(self, done: impl Future<Output = T>) -> T {
        let Self { bus, jobs, mut endpoint } = self;
        let calls = stream::unfold(&mut endpoint, |endpoint| async { Some((endpoint.next().await, endpoint)) });
        let serving = calls.for_each_concurrent(AT_ONCE, |request| {
            let jobs = &jobs;
            async move {
                let answer = answer(jobs, request.message.subject.as_str()).await;
                if let Err(error) = request.respond(answer.map(Into::into)).await {
                    tracing::warn!(error = %causes(&error), "a call was not answered");
                }
            }
        });
        let came_to = tokio::select! {
            came_to = done => came_to,
            came_to = async { serving.await; std::future::pending().await } => came_to,
        };
        endpoint.close().await;
        // What was answered last is on its way.
        let _ = bus.flush().await;
        came_to
    }
}

async fn answer(jobs: &Jobs, subject: &str) -> Result<Vec<u8>, error::Error> {
    let Some((tenant, job)) = Layout::parse_job(subject) else {
        let status = "expected a subject that ends with the names of a tenant and a job".into();
        return Err(error::Error { status, code: 400 });
    };
    let failed = |status: String| error::Error { status: status.replace(['\r', '\n'], " "), code: 500 };
    let answer = jobs.cancel(&tenant, &job).await.map_err(|error| failed(causes(&error)))?;
    tracing::info!(%job, %tenant, ?answer, "a job was to be cancelled");
    serde_json::to_vec(&answer).map_err(|error| failed(causes(&error)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_is_in_hand_as_long_as_one_holds_it() {
        let in_hand = InHand::default();
        let (tenant, job) = (Name::new("acme").unwrap(), JobId::new("a").unwrap());
        let (first, second) = (in_hand.hold(&tenant, &job), in_hand.hold(&tenant, &job));
        drop(first);
        in_hand.with(|jobs| jobs.values().for_each(|watched| watched.cancelled.cancel()));
        assert!(second.cancelled.is_cancelled());
        drop(second);
        assert!(in_hand.with(|jobs| jobs.is_empty()));
        assert!(!in_hand.hold(&tenant, &job).cancelled.is_cancelled(), "a later job of that id inherited it");
    }
}
