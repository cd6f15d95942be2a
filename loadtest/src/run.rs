//! The run itself: sends when it is time, and notes what comes.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use baton_bus::{
    Bus,
    client::{Event, Follower},
};
use baton_contract::{
    JobId,
    outcome::{Outcome, Status},
};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep_until},
};
use uuid::Uuid;

use crate::{
    Error, Options, Report,
    record::{End, Record},
    workload::Workload,
};

/// How long the follower is left alone after an error. It reads on by itself once the broker is back.
const PAUSE: Duration = Duration::from_millis(100);

/// How far a run is, the warm-up included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    pub sent: usize,
    pub ended: usize,
    pub total: usize,
}

/// Makes the load and waits until every request has ended or is lost. `progress` hears of each send and each end.
pub async fn run(bus: &Bus, options: &Options, progress: impl FnMut(Progress)) -> Result<Report, Error> {
    options.check()?;
    let workload = Arc::new(Workload::draw(options));
    // Ids are the run's own: a second run with the same seed must not meet the results of the first.
    let name = Uuid::now_v7().simple();
    let ids = (0..workload.requests.len()).map(|index| JobId::new(&format!("{name}-{index}")));
    let ids = ids.collect::<Result<Vec<_>, _>>()?;
    // Before the first request, so that no token is missed.
    let follower = bus.follow(&options.tenant).await?;
    let records = workload.requests.iter().map(|planned| Record::new(planned.at)).collect();
    let run = Run {
        bus,
        options,
        workload,
        ids,
        start: Instant::now(),
        timeout: Duration::from_secs_f64(options.timeout_s),
        records,
        sent: 0,
        oldest: 0,
        pending: HashSet::new(),
        places: HashMap::new(),
        submissions: JoinSet::new(),
        progress,
    };
    let records = run.until_all_ended(follower).await?;
    Ok(Report::new(options, &records[options.warmup..]))
}

/// A submission that the broker has answered.
struct Submitted {
    index: usize,
    sent: Instant,
    result: Result<u64, String>,
}

struct Run<'a, P> {
    bus: &'a Bus,
    options: &'a Options,
    workload: Arc<Workload>,
    ids: Vec<JobId>,
    start: Instant,
    timeout: Duration,
    /// In the order of the intended send times, as in the workload.
    records: Vec<Record>,
    /// Requests sent so far: the next one's index.
    sent: usize,
    /// No request before this one is pending.
    oldest: usize,
    pending: HashSet<JobId>,
    places: HashMap<JobId, usize>,
    submissions: JoinSet<Submitted>,
    progress: P,
}

impl<P: FnMut(Progress)> Run<'_, P> {
    async fn until_all_ended(mut self, mut follower: Follower) -> Result<Vec<Record>, Error> {
        let mut follow_from = self.start;
        loop {
            while self.records.get(self.oldest).is_some_and(|record| record.end.is_some()) {
                self.oldest += 1;
            }
            let all_sent = self.sent == self.records.len();
            if all_sent && self.pending.is_empty() {
                break;
            }
            let due = self.records.get(self.sent).map_or(self.start, |record| self.start + record.planned);
            let lost = self.records.get(self.oldest).map_or(due, |record| self.start + record.planned + self.timeout);
            tokio::select! {
                // Sending comes first: what comes in must never hold up what goes out.
                biased;
                () = sleep_until(due), if !all_sent => self.send(),
                Some(Ok(submitted)) = self.submissions.join_next() => self.submitted(submitted),
                event = next(&mut follower, follow_from, &self.pending), if !self.pending.is_empty() => match event {
                    Ok(Event::Delta { job, delta }) => {
                        if let Some(index) = self.places.get(&job) {
                            self.records[*index].token(delta.index, self.start.elapsed());
                        }
                    }
                    Ok(Event::Result(outcome)) => self.ended(&outcome),
                    // Every id is new.
                    Ok(Event::Refused(_)) => {}
                    // A run must outlive a broker that is away for a while: how a pipeline takes it may be what is
                    // measured. If it never comes back, the requests end as lost.
                    Err(_) => follow_from = Instant::now() + PAUSE,
                },
                () = sleep_until(lost), if !self.pending.is_empty() => self.end(self.oldest, End::Lost),
            }
        }
        // Their jobs have ended; what is missing are their send times.
        while let Some(submitted) = self.submissions.join_next().await {
            if let Ok(submitted) = submitted {
                self.submitted(submitted);
            }
        }
        Ok(self.records)
    }

    /// Sends the next request; nobody waits until the broker has it.
    fn send(&mut self) {
        let index = self.sent;
        self.sent += 1;
        let id = self.ids[index].clone();
        self.pending.insert(id.clone());
        self.places.insert(id.clone(), index);
        let (bus, workload) = (self.bus.clone(), self.workload.clone());
        let (tenant, lane) = (self.options.tenant.clone(), self.options.lane.clone());
        self.submissions.spawn(async move {
            let body = serde_json::to_vec(&workload.request(index, id.to_string()));
            let sent = Instant::now();
            let result = match body {
                Ok(body) => bus.submit(&tenant, &lane, body).await.map_err(|error| error.to_string()),
                Err(error) => Err(error.to_string()),
            };
            Submitted { index, sent, result }
        });
        self.tell();
    }

    fn submitted(&mut self, Submitted { index, sent, result }: Submitted) {
        self.records[index].sent = Some(sent - self.start);
        if let Err(message) = result {
            let at = self.start.elapsed();
            self.end(index, End::Failed { at, kind: "submit".into(), message });
        }
    }

    fn ended(&mut self, outcome: &Outcome) {
        let Some(index) = self.places.get(&outcome.id).copied() else { return };
        let at = self.start.elapsed();
        let end = match (outcome.status, &outcome.error) {
            (Status::Completed, _) => End::Completed {
                at,
                prompt_tokens: outcome.usage.prompt_tokens,
                output_tokens: outcome.usage.completion_tokens,
            },
            (_, Some(failure)) => End::Failed { at, kind: word(failure.code), message: failure.message.clone() },
            (status, None) => End::Failed { at, kind: word(status), message: "the result names no error".into() },
        };
        self.end(index, end);
    }

    fn end(&mut self, index: usize, end: End) {
        if self.records[index].finish(end) {
            self.pending.remove(&self.ids[index]);
            self.places.remove(&self.ids[index]);
            self.tell();
        }
    }

    fn tell(&mut self) {
        let (sent, total) = (self.sent, self.records.len());
        (self.progress)(Progress { sent, ended: sent - self.pending.len(), total });
    }
}

/// The follower's next event, not before `from`.
async fn next(follower: &mut Follower, from: Instant, pending: &HashSet<JobId>) -> Result<Event, baton_bus::Error> {
    sleep_until(from).await;
    follower.next(pending).await
}

/// A code or status as it is written in JSON.
fn word(value: impl serde::Serialize) -> String {
    serde_json::to_value(value).ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
}
