//! Who sends and who watches, for the faults after which requests are sent again.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use tokio::{task::JoinSet, time::Instant};

use super::{client::Client, witness::Witness, workload::Workload};

/// How many jobs' senders insist, and how often: more often than a job may be tried.
const INSISTENT: usize = 4;
const TIMES: usize = 60;

/// The client, the witness and what they know of each other.
#[derive(Clone)]
pub struct Crew {
    pub client: Client,
    pub witness: Arc<Witness>,
    pub workload: Arc<Workload>,
    /// When the run began.
    pub start: Instant,
    /// Whether senders insist while their jobs wait.
    pub insists: bool,
    /// Requests that were sent again because the broker had lost them.
    pub repeated: Arc<AtomicU64>,
    /// Those that were sent again because the answer did not come.
    pub insisted: Arc<AtomicU64>,
}

impl Crew {
    /// Jobs whose requests have been sent by now, and whose results nobody has seen.
    pub fn open(&self) -> Vec<usize> {
        let (now, observed) = (self.start.elapsed(), self.witness.observed());
        let jobs = self.workload.jobs.iter().enumerate();
        let open = jobs.filter(|(_, job)| job.at <= now && !observed.results.contains_key(&job.id));
        open.map(|(index, _)| index).collect()
    }

    /// Sends the requests of the jobs that came last again and again, for they wait.
    pub async fn insist(&self) {
        if !self.insists {
            return;
        }
        let mut jobs = self.open();
        jobs.retain(|job| !self.workload.jobs[*job].over_http);
        jobs.sort_by_key(|job| std::cmp::Reverse(self.workload.jobs[*job].at));
        jobs.truncate(INSISTENT);
        let jobs = jobs.repeat(TIMES);
        self.insisted.fetch_add(jobs.len() as u64, Ordering::Relaxed);
        self.send_all(jobs).await;
    }

    /// Sends the requests of jobs once more, as their senders may.
    pub async fn send_again(&self, jobs: Vec<usize>) {
        self.repeated.fetch_add(jobs.len() as u64, Ordering::Relaxed);
        self.send_all(jobs).await;
    }

    async fn send_all(&self, jobs: Vec<usize>) {
        let mut under_way = JoinSet::new();
        for job in jobs {
            let (client, workload) = (self.client.clone(), self.workload.clone());
            under_way.spawn(async move { client.send(&workload, job).await });
        }
        // Whether they were taken the audit sees.
        under_way.join_all().await;
    }
}
