//! The client of a run: sends each request when it is time, again until the broker has it, and asks for cancellations.

use std::{sync::Arc, time::Duration};

use baton_bus::Bus;
use baton_contract::Name;
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, sleep, sleep_until, timeout},
};

use super::workload::{Event, Workload};

/// A request that the broker did not take within that long is never sent.
const PATIENCE: Duration = Duration::from_secs(180);
const PAUSE: Duration = Duration::from_millis(200);
/// How long the answer to a cancellation is waited for before it is asked for again.
const ANSWER: Duration = Duration::from_secs(5);

/// Who submits: a tenant, on two lanes.
#[derive(Clone, Debug)]
pub struct Client {
    pub bus: Bus,
    pub tenant: Name,
    /// The first and the second lane.
    pub lanes: [Name; 2],
}

/// What became of the requests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// By job: whether the broker has its request.
    pub submitted: Vec<bool>,
    /// Requests that were sent again on purpose.
    pub again: usize,
    /// Times that the broker did not say whether it has a request, which was sent once more therefore.
    pub resent: u64,
    pub cancellations: u64,
}

enum Done {
    Submitted { job: usize, again: bool, taken: bool, resent: u64 },
    Cancelled(bool),
}

impl Client {
    /// Sends one request until the broker has it; whether it has, and how often it was sent in vain.
    pub async fn submit(&self, body: Vec<u8>, batch: bool) -> (bool, u64) {
        let (deadline, mut failed) = (Instant::now() + PATIENCE, 0);
        let lane = &self.lanes[usize::from(batch)];
        while Instant::now() < deadline {
            // The same bytes under the same id are the same job, however often they come.
            if self.bus.submit(&self.tenant, lane, body.clone()).await.is_ok() {
                return (true, failed);
            }
            failed += 1;
            sleep(PAUSE).await;
        }
        (false, failed)
    }

    /// Whether anybody answered.
    async fn cancel(&self, workload: &Workload, job: usize) -> bool {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            let asked = timeout(ANSWER, self.bus.cancel(&self.tenant, &workload.jobs[job].id)).await;
            if matches!(asked, Ok(Ok(_))) {
                return true;
            }
            sleep(PAUSE).await;
        }
        false
    }

    /// Plays the workload from `start` on; nothing waits for an answer. `told` hears how many jobs were sent.
    pub async fn play(self, workload: Arc<Workload>, start: Instant, told: watch::Sender<usize>) -> Sent {
        let mut sent = Sent { submitted: vec![false; workload.jobs.len()], ..Sent::default() };
        let mut under_way = JoinSet::new();
        for (at, event) in workload.events() {
            sleep_until(start + at).await;
            let (client, workload) = (self.clone(), workload.clone());
            under_way.spawn(async move {
                match event {
                    Event::Submit { job, again } => {
                        let planned = &workload.jobs[job];
                        let (taken, resent) = match workload.body(planned.request, &planned.id) {
                            Ok(body) => client.submit(body, planned.batch).await,
                            Err(_) => (false, 0),
                        };
                        Done::Submitted { job, again, taken, resent }
                    }
                    Event::Cancel { job } => Done::Cancelled(client.cancel(&workload, job).await),
                }
            });
            while let Some(Ok(done)) = under_way.try_join_next() {
                sent.note(done, &told);
            }
        }
        while let Some(done) = under_way.join_next().await {
            if let Ok(done) = done {
                sent.note(done, &told);
            }
        }
        sent
    }
}

impl Sent {
    fn note(&mut self, done: Done, told: &watch::Sender<usize>) {
        match done {
            Done::Submitted { job, again, taken, resent } => {
                self.submitted[job] |= taken;
                self.resent += resent;
                self.again += usize::from(again);
                told.send_modify(|sent| *sent += usize::from(!again && taken));
            }
            Done::Cancelled(answered) => self.cancellations += u64::from(answered),
        }
    }
}
