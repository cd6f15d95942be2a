//! Dead letters that are tried again.

use baton_contract::{
    JobId, Name,
    envelope::{self, DecodeTask, PrefillTask, Task},
    header, message_id,
    record::{Record, Source},
    subject::Stage,
};

use crate::{
    Error,
    repair::{
        dead::{DeadLetters, Letter, Opened},
        letter_id::LetterId,
    },
};

/// What a retried job has after its id, before the number.
const RETRY: &str = "-retry-";
const MAX_ID_BYTES: usize = 64;

/// What became of a letter that is tried again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Retried {
    /// It is a new job of the same tenant.
    Job(JobId),
    /// It belongs to no job that has ended: its message is in its queue again.
    Message,
}

/// Why a letter was not tried again.
#[derive(Debug, thiserror::Error)]
pub enum RetryError {
    /// The bus failed.
    #[error(transparent)]
    Bus(#[from] Error),
    /// No stage of this release can read its message.
    #[error("cannot try the dead letter {id} again")]
    Unreadable {
        /// The letter.
        id: LetterId,
        /// What is wrong with its message.
        source: envelope::Error,
    },
    /// Its message was too large to be kept.
    #[error("the message of dead letter {id} was too large to be kept; send the request again, and drop the letter")]
    LeftOut {
        /// The letter.
        id: LetterId,
    },
    /// Its message came from no queue of its stage.
    #[error("the dead letter {id} came from {subject:?}, which is no queue of {stage}; drop it", stage = id.stage())]
    Foreign {
        /// The letter.
        id: LetterId,
        /// The message's subject.
        subject: String,
    },
}

impl DeadLetters {
    /// Tries a letter again and removes it. A job has ended and stays so, hence it is tried under an id of its own, with the
    /// same seed; `job-retry-1` for the first time. Cut short at the wrong moment, it leaves both the letter and the new
    /// job.
    pub async fn retry(&self, opened: Opened) -> Result<Retried, RetryError> {
        let Opened { letter, message } = opened;
        let place = self.bus.layout.stage_subjects(letter.id.stage());
        let place = place.split('*').next().unwrap_or_default();
        if !letter.subject.starts_with(place) {
            return Err(RetryError::Foreign { id: letter.id, subject: letter.subject });
        }
        if letter.left_out {
            return Err(RetryError::LeftOut { id: letter.id });
        }
        let retried = match &letter.id {
            LetterId::Message { .. } => {
                let id = message_id::retried(letter.sequence);
                self.bus.publish_durably(letter.subject.clone(), Some(&id), letter.trace(), message).await?;
                Retried::Message
            }
            LetterId::Job { stage: Stage::Ingest, tenant, job } => {
                Retried::Job(self.retry_request(&letter, tenant, job, &message).await?)
            }
            LetterId::Job { stage: Stage::Prefill, tenant, job } => {
                Retried::Job(self.retry_task::<PrefillTask>(&letter, tenant, job, &message).await?)
            }
            LetterId::Job { stage: Stage::Decode, tenant, job } => {
                Retried::Job(self.retry_task::<DecodeTask>(&letter, tenant, job, &message).await?)
            }
        };
        self.remove(&letter).await?;
        Ok(retried)
    }

    async fn retry_request(
        &self,
        letter: &Letter,
        tenant: &Name,
        job: &JobId,
        message: &[u8],
    ) -> Result<JobId, RetryError> {
        let jobs = self.bus.jobs().await?;
        for id in retry_ids(job) {
            if jobs.get(tenant, &id).await?.is_some() {
                continue;
            }
            let mut headers = letter.trace();
            headers.insert(header::JOB_ID, id.as_str());
            self.bus.publish_durably(letter.subject.clone(), None, headers, renamed(message, &id)).await?;
            return Ok(id);
        }
        Err(Error::contended(job).into())
    }

    async fn retry_task<T: Renamed>(
        &self,
        letter: &Letter,
        tenant: &Name,
        job: &JobId,
        message: &[u8],
    ) -> Result<JobId, RetryError> {
        let unreadable = |source| RetryError::Unreadable { id: letter.id.clone(), source };
        let (jobs, now) = (self.bus.jobs().await?, self.bus.clock().now_ms().await?);
        let task = envelope::decode::<T>(message).map_err(unreadable)?;
        for id in retry_ids(job) {
            // A request under its id is a copy: the job begins with the letter's message.
            let accepted = Record::accepted(task.job().request_digest.clone(), now);
            let record = Record { request: Some(Source::KEPT), ..accepted };
            if !jobs.store(tenant, &id, &record, None).await? {
                continue;
            }
            let task = task.renamed(&id, now);
            let payload = envelope::encode(&task).map_err(unreadable)?;
            let begun = self.bus.begin(letter.subject.clone(), task.job(), Source::KEPT, letter.trace(), payload).await;
            if let Err(error) = begun {
                // The id is free for the next try. Should the message have been stored after all, whoever claims it makes
                // the record anew.
                let _ = jobs.bucket.delete(self.bus.layout.job_key(tenant, &id)).await;
                return Err(error.into());
            }
            return Ok(id);
        }
        Err(Error::contended(job).into())
    }
}

/// An envelope whose job can get another id.
trait Renamed: Task + Clone {
    /// The same work as a job of its own, accepted at `now_ms` (since 1970).
    fn renamed(&self, id: &JobId, now_ms: u64) -> Self;
}

impl Renamed for PrefillTask {
    fn renamed(&self, id: &JobId, now_ms: u64) -> Self {
        let mut task = self.clone();
        (task.job.id, task.timings.accepted_at_ms) = (id.clone(), now_ms);
        task
    }
}

impl Renamed for DecodeTask {
    fn renamed(&self, id: &JobId, now_ms: u64) -> Self {
        let mut task = self.clone();
        if let Some(ask) = &mut task.ask {
            // What another instance kept of the prompt was fetched, or has gone by now.
            ask.handover = None;
        }
        (task.job.id, task.timings.accepted_at_ms) = (id.clone(), now_ms);
        task
    }
}

/// A request's bytes under another id; as they are if they are no JSON object, and then ingest will say so.
fn renamed(body: &[u8], id: &JobId) -> Vec<u8> {
    match serde_json::from_slice::<serde_json::Map<_, _>>(body) {
        Ok(mut request) => {
            request.insert("id".into(), id.as_str().into());
            serde_json::Value::Object(request).to_string().into_bytes()
        }
        Err(_) => body.to_vec(),
    }
}

/// The ids that a job may be tried again under, first choice first. One that was tried again itself is counted on.
fn retry_ids(job: &JobId) -> impl Iterator<Item = JobId> {
    let (base, last) = job
        .as_str()
        .rsplit_once(RETRY)
        .and_then(|(base, number)| Some((base, number.parse::<u32>().ok()?)))
        .filter(|(base, _)| !base.is_empty())
        .unwrap_or((job.as_str(), 0));
    let base = base.to_owned();
    (1..=u32::MAX - last).filter_map(move |n| {
        let suffix = format!("{RETRY}{}", last + n);
        // Ids are ASCII; what tells long ones apart is the number.
        let base = base.get(..base.len().min(MAX_ID_BYTES - suffix.len()))?;
        JobId::new(&format!("{base}{suffix}")).ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retries_are_numbered_and_stay_ids() {
        let ids = |job: &str| {
            let job = JobId::new(job).unwrap();
            let ids = retry_ids(&job).take(2);
            ids.map(String::from).collect::<Vec<_>>()
        };
        assert_eq!(ids("a"), ["a-retry-1", "a-retry-2"]);
        assert_eq!(ids("a-retry-7"), ["a-retry-8", "a-retry-9"]);
        assert_eq!(ids("a-retry-x"), ["a-retry-x-retry-1", "a-retry-x-retry-2"]);
        assert_eq!(ids(&"x".repeat(64))[0], format!("{}-retry-1", "x".repeat(56)));
    }

    #[test]
    fn a_request_keeps_everything_but_its_id() {
        let id = JobId::new("b").unwrap();
        let body =
            br#"{"prompt":"x","id":"a","response_format":{"type":"json_schema","z":1,"a":18446744073709551615}}"#;
        let expected =
            r#"{"prompt":"x","id":"b","response_format":{"type":"json_schema","z":1,"a":18446744073709551615}}"#;
        assert_eq!(String::from_utf8(renamed(body, &id)).unwrap(), expected);
        assert_eq!(renamed(b"[1]", &id), b"[1]");
    }
}
