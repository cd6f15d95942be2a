//! Whether ingest takes the requests that were submitted: what becomes of one is known within moments where a worker runs.

use std::{collections::HashMap, time::Duration};

use baton_contract::{
    JobId, Name,
    backoff::Backoff,
    causes,
    outcome::{Outcome, Refusal},
    record::State,
};
use futures::{StreamExt, TryStreamExt, stream};
use tokio::time::{Instant, sleep};

use crate::{Bus, Error, stage::jobs::Jobs};

/// How long ingest may take none of the requests before they are left to it.
const WITHIN: Duration = Duration::from_secs(10);
/// After so long somebody wants to know what is waited for.
const SOON: Duration = Duration::from_secs(1);
/// The pauses between two looks.
const PAUSES: Backoff = Backoff::doubling(Duration::from_millis(5), Duration::from_millis(250));
/// Jobs that are looked at at a time.
const LOOKS: usize = 32;

/// What became of a request.
pub enum Fate {
    /// It is a job.
    Admitted,
    /// It became none: its id belongs to another request.
    Refused(Box<Refusal>),
    /// It has ended, and did not complete.
    Ended(Box<Outcome>),
}

/// Looks at what was submitted, as long as there is something to see.
pub struct Admission<'a> {
    bus: &'a Bus,
    jobs: Jobs,
    tenant: &'a Name,
    sees: bool,
    /// Gets what a person may want to know, such as why requests wait.
    note: &'a (dyn Fn(String) + Sync),
}

impl<'a> Admission<'a> {
    /// Looks at requests of a tenant; `note` gets what a person may want to know.
    pub async fn new(bus: &'a Bus, tenant: &'a Name, note: &'a (dyn Fn(String) + Sync)) -> Result<Self, Error> {
        Ok(Self { bus, jobs: bus.jobs().await?, tenant, sees: true, note })
    }

    /// What becomes of requests with these ids and digests. Those that are left out wait for ingest, and a note says why.
    pub async fn of(&mut self, mut open: Vec<(JobId, String)>) -> HashMap<JobId, Fate> {
        let (mut fates, mut moved, mut tries) = (HashMap::new(), Instant::now(), 0);
        let mut told = false;
        while self.sees && !open.is_empty() {
            let looks = open.iter().map(|(id, digest)| async { Ok((id.clone(), self.fate(id, digest).await?)) });
            let looked: Result<Vec<_>, Error> = stream::iter(looks).buffer_unordered(LOOKS).try_collect().await;
            let looked = match looked {
                Ok(looked) => looked,
                Err(error) => {
                    self.leave(open.len(), &format!("their records can't be read: {}", causes(&error)));
                    break;
                }
            };
            let known = fates.len();
            fates.extend(looked.into_iter().filter_map(|(id, fate)| Some((id, fate?))));
            open.retain(|(id, _)| !fates.contains_key(id));
            if open.is_empty() {
                break;
            }
            if fates.len() > known {
                (moved, tries) = (Instant::now(), 0);
            } else if tries > 0 && self.bus.ingest_answers().await == Some(false) {
                self.leave(open.len(), "no ingest worker runs; start one with `baton up` or `baton worker ingest`");
            } else if moved.elapsed() > WITHIN {
                self.leave(open.len(), &format!("ingest took none of them within {WITHIN:?}"));
            } else if moved.elapsed() > SOON && !std::mem::replace(&mut told, true) {
                (self.note)(format!("waiting for ingest to take {}", requests(open.len())));
            }
            sleep(PAUSES.step(tries)).await;
            tries += 1;
        }
        fates
    }

    /// Looks no more.
    fn leave(&mut self, count: usize, why: &str) {
        self.sees = false;
        (self.note)(format!("queued: {} not admitted yet: {why}", requests(count)));
    }

    /// What is known of one request; none while ingest has it before it or in hand.
    async fn fate(&self, id: &JobId, digest: &str) -> Result<Option<Fate>, Error> {
        let Some(stored) = self.jobs.get(self.tenant, id).await? else { return Ok(None) };
        if stored.record.request_digest != digest {
            let refusal = Refusal::conflict(self.tenant.clone(), id.clone(), digest.to_owned());
            return Ok(Some(Fate::Refused(Box::new(refusal))));
        }
        Ok(match stored.record.state {
            State::Completed | State::Prefill | State::Decode => Some(Fate::Admitted),
            // The record is made before the request is read.
            State::Accepted => self.bus.admitted_to(self.tenant, id).await?.map(|_| Fate::Admitted),
            State::Failed | State::Cancelled | State::Expired => {
                let ended = self.jobs.result(self.tenant, id).await?;
                ended.map(|outcome| Fate::Ended(Box::new(outcome)))
            }
        })
    }
}

fn requests(count: usize) -> String {
    if count == 1 { "1 request is".into() } else { format!("{count} requests are") }
}
