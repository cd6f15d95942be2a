//! What a client that waits for jobs is told when it hears nothing of them for a while: what they wait for.

use std::time::Duration;

use baton_contract::{JobId, Name};
use tokio::time::{Instant, sleep_until};

use crate::{inspect::why::WaitReason, stage::jobs::Jobs};

/// After this long without a word the reason is looked for, and again after each such time.
const SILENCE: Duration = Duration::from_secs(5);

/// Tells each reason once.
pub struct Waits {
    jobs: Jobs,
    tenant: Name,
    silent_since: Instant,
    told: String,
}

impl Waits {
    /// Of a tenant's jobs; silent from now on.
    pub fn new(jobs: Jobs, tenant: Name) -> Self {
        Self { jobs, tenant, silent_since: Instant::now(), told: String::new() }
    }

    /// Something was heard.
    pub fn heard(&mut self) {
        self.silent_since = Instant::now();
    }

    /// Returns after a silence. May be dropped at any time.
    pub async fn silence(&self) {
        sleep_until(self.silent_since + SILENCE).await;
    }

    /// What `job` waits for, if that is news.
    pub async fn look(&mut self, job: &JobId) -> Option<String> {
        let reason = self.jobs.wait_reason(&self.tenant, job).await;
        self.silent_since = Instant::now();
        let reason = reason.filter(|reason| !matches!(reason, WaitReason::Worker { .. }))?;
        let news = format!("waiting: job {job} waits for {reason}");
        (std::mem::replace(&mut self.told, news.clone()) != news).then_some(news)
    }

    /// Says what `job` waits for, for as long as it is polled.
    pub async fn tell(&mut self, job: &JobId, mut say: impl FnMut(&str)) {
        loop {
            self.silence().await;
            if let Some(news) = self.look(job).await {
                say(&news);
            }
        }
    }
}
