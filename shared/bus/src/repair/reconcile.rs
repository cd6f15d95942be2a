//! Jobs that have lost their message: the record says that a job goes on, and no queue has it. That takes a disaster (a stream
//! that was purged or restored from an old copy), for an input is acknowledged only when its successor is durable.
//!
//! Such a job begins again with the message that it was admitted with ([`crate::stage::admission`]).

use std::collections::{HashMap, HashSet};

use async_nats::jetstream::message::StreamMessage;
use baton_contract::{
    JobKey, causes,
    envelope::{DecodeTask, PrefillTask, Task},
    message_id,
    outcome::Status,
    record::{Record, Source, State},
    subject::{Stage, broker},
};
use futures::{StreamExt, TryStreamExt, stream};

use crate::{
    Bus, Error, HeaderMap,
    clients::request::Request,
    connection::trace,
    inspect::{
        queue_peek::{Read, stored_ms},
        scan::{self, Scan},
    },
    stage::jobs::Jobs,
    tenants::backlog,
};

/// Lost jobs that are looked after at a time.
const AT_ONCE: usize = 32;

/// What is known of a job besides its record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Evidence {
    /// Whether a queue has a message of it.
    pub waits: bool,
    /// How it ended, if it has a result.
    pub result: Option<Status>,
    /// Whether the message that it was admitted with is kept.
    pub kept: bool,
}

/// What is to be done about a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Nothing: it goes on, or has ended.
    Leave,
    /// It has ended, and its record is to say so.
    Note(Status),
    /// It begins again with the message that it was admitted with.
    Begin,
    /// Only its sender knows what it was: its record is to let the same request in again.
    Reopen,
}

/// Decides about a job.
pub fn fate(record: &Record, evidence: Evidence) -> Fate {
    match evidence {
        _ if record.state.is_final() => Fate::Leave,
        // Whoever has its message will note the end, too.
        Evidence { waits: true, .. } => Fate::Leave,
        Evidence { result: Some(status), .. } => Fate::Note(status),
        Evidence { kept: true, .. } => Fate::Begin,
        Evidence { kept: false, .. } => Fate::Reopen,
    }
}

/// What was found, and unless it was only looked for, done.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Jobs whose record says that they have not ended.
    pub open: u64,
    /// Those among them that have a message.
    pub waiting: u64,
    /// Those that had a result.
    pub noted: Vec<JobKey>,
    /// Those that began again.
    pub begun: Vec<JobKey>,
    /// Those whose request is lost.
    pub reopened: Vec<JobKey>,
    /// Messages in the queues that this release can't read. Whose they are is known of most; the job of another may begin again
    /// though it has one, and then its claim settles which of the two is worked on.
    pub unread: u64,
}

impl Bus {
    /// Finds jobs that were accepted, have not ended and have no message, and lets them begin again. Nothing is changed in a
    /// `dry_run`. May run beside workers and beside itself: at worst a job has two messages, of which one is worked on.
    pub async fn reconcile(&self, dry_run: bool) -> Result<Report, Error> {
        let jobs = self.jobs().await?;
        // Records first, then the queues in the order that jobs pass them: as a successor is there before its predecessor
        // goes, a job that has a message all the time is seen in some queue, or has ended.
        let mut lost = self.open_jobs().await?;
        let mut report = Report { open: lost.len() as u64, ..Report::default() };
        report.unread = self.strike_out(&mut lost).await?;
        report.waiting = report.open - lost.len() as u64;
        let (bus, jobs) = (self, &jobs);
        let settle = |key: JobKey| async move { bus.settle_lost(jobs, &key, dry_run).await.map(|fate| (key, fate)) };
        let mut settled = stream::iter(lost.into_keys()).map(settle).buffer_unordered(AT_ONCE);
        while let Some((key, fate)) = settled.try_next().await? {
            match fate {
                // It ended meanwhile.
                Fate::Leave => report.open -= 1,
                Fate::Note(_) => report.noted.push(key),
                Fate::Begin => report.begun.push(key),
                Fate::Reopen => report.reopened.push(key),
            }
        }
        for keys in [&mut report.noted, &mut report.begun, &mut report.reopened] {
            keys.sort();
        }
        Ok(report)
    }

    /// The jobs that have not ended, by their records.
    async fn open_jobs(&self) -> Result<HashMap<JobKey, Record>, Error> {
        let bucket = self.layout.job_bucket();
        let prefix = broker::bucket_prefix(&bucket);
        let mut messages = scan::messages(self, Scan::all(broker::bucket_stream(&bucket))).await?;
        let mut open = HashMap::new();
        while let Some(message) = messages.try_next().await? {
            let Some(key) = message.subject.as_str().strip_prefix(&prefix).and_then(JobKey::parse) else { continue };
            // Not a record: somebody removed it.
            if message.payload.is_empty() {
                open.remove(&key);
                continue;
            }
            let record: Record = serde_json::from_slice(&message.payload)
                .map_err(|error| Error::Read { what: format!("the record of job {key}"), message: causes(&error) })?;
            // A record that changes meanwhile may come twice, the latest one last.
            if record.state.is_final() {
                open.remove(&key);
            } else {
                open.insert(key, record);
            }
        }
        Ok(open)
    }

    /// Takes away the jobs that have a message; how many messages could not be read. A copy of a request counts only if the first
    /// was not passed on: otherwise ingest drops the copy.
    async fn strike_out(&self, open: &mut HashMap<JobKey, Record>) -> Result<u64, Error> {
        let mut copied = HashSet::new();
        let mut requests = self.messages(Stage::Ingest).await?;
        while let Some(message) = requests.tasks.try_next().await? {
            let Some(key) = self.requested(&message) else { continue };
            let source = Source { sequence: message.sequence, stored_ms: stored_ms(&message) };
            match open.get(&key) {
                Some(record) if record.awaits(source) => drop(open.remove(&key)),
                Some(record) if record.state == State::Accepted => drop(copied.insert(key)),
                _ => {}
            }
        }
        for key in copied {
            if !self.is_kept(&key).await? {
                open.remove(&key);
            }
        }
        let mut admitted = self.messages_of(self.layout.waiting_stream(), self.layout.waiting_subjects()).await?.tasks;
        while let Some(message) = admitted.try_next().await? {
            if let Some(key) = backlog::key_of(&message) {
                open.remove(&key);
            }
        }
        let prefill = self.strike_out_tasks::<PrefillTask>(Stage::Prefill, open).await?;
        Ok(prefill + self.strike_out_tasks::<DecodeTask>(Stage::Decode, open).await?)
    }

    async fn strike_out_tasks<T: Task>(&self, stage: Stage, open: &mut HashMap<JobKey, Record>) -> Result<u64, Error> {
        let mut waiting = self.waiting::<T>(stage).await?;
        let mut unread = 0;
        while let Some(read) = waiting.tasks.try_next().await? {
            match read {
                Read::Task(task) => {
                    let job = task.job();
                    open.remove(&JobKey { tenant: job.tenant.clone(), job: job.id.clone() });
                }
                Read::Unread(message) => {
                    unread += 1;
                    if let Some(key) = message.job {
                        open.remove(&key);
                    }
                }
            }
        }
        Ok(unread)
    }

    /// Which job a request in the queue is.
    pub(crate) fn requested(&self, message: &StreamMessage) -> Option<JobKey> {
        let request = Request {
            subject: message.subject.as_str(),
            headers: Some(&message.headers),
            body: &message.payload,
            published_ms: stored_ms(message),
            sequence: message.sequence,
        };
        let addressed = request.address(&self.layout)?;
        Some(JobKey { tenant: addressed.tenant, job: addressed.id })
    }

    /// Looks again at a job that no queue has, and does about it what is to be done.
    async fn settle_lost(&self, jobs: &Jobs, key: &JobKey, dry_run: bool) -> Result<Fate, Error> {
        let JobKey { tenant, job } = key;
        let Some(stored) = jobs.get(tenant, job).await? else { return Ok(Fate::Leave) };
        let result = jobs.told(tenant, job).await?.map(|outcome| outcome.status);
        let kept = self.admitted(key).await?;
        let fate = fate(&stored.record, Evidence { waits: false, result, kept: kept.is_some() });
        match fate {
            _ if dry_run => {}
            Fate::Leave => {}
            Fate::Note(status) => jobs.note_end(tenant, job, status).await?,
            Fate::Begin | Fate::Reopen => {
                let Some(reopened) = stored.record.reopen(kept.is_some()) else { return Ok(Fate::Leave) };
                // Cut short after this, the job is still one without a message, and found again.
                if !jobs.store(tenant, job, &reopened, Some(stored.revision)).await? {
                    return Ok(Fate::Leave);
                }
                if let Some((subject, message)) = kept {
                    // Not the id it was first published with: the broker remembers that one longer than the message.
                    let id = message_id::again(tenant, job, stored.revision);
                    let mut headers = HeaderMap::new();
                    trace::copy(Some(&message.headers), &mut headers);
                    self.publish_durably(subject, Some(&id), headers, message.payload.to_vec()).await?;
                }
                tracing::info!(%job, %tenant, ?fate, "a job had lost its message");
            }
        }
        Ok(fate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_jobs_that_go_on_nowhere_begin_again() {
        let open = Record::accepted("d".into(), 1);
        let ended = open.finish(Status::Completed).unwrap();
        for waits in [true, false] {
            for result in [None, Some(Status::Failed)] {
                for kept in [true, false] {
                    let evidence = Evidence { waits, result, kept };
                    assert_eq!(fate(&ended, evidence), Fate::Leave, "{evidence:?}");
                    let expected = match (waits, result, kept) {
                        (true, ..) => Fate::Leave,
                        (false, Some(status), _) => Fate::Note(status),
                        (false, None, true) => Fate::Begin,
                        (false, None, false) => Fate::Reopen,
                    };
                    assert_eq!(fate(&open, evidence), expected, "{evidence:?}");
                }
            }
        }
    }
}
