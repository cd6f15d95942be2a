//! Moves what waits to the stages' queues as room comes.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    time::Duration,
};

use async_nats::jetstream::message::StreamMessage;
use baton_contract::{
    Name,
    backoff::Backoff,
    causes,
    envelope::{self, DecodeTask, PrefillTask, Task},
    header,
    outcome::{Code, Failure, Outcome},
    subject::Stage,
};
use futures::{FutureExt, StreamExt, TryStreamExt, future::join_all, stream};
use tokio::{
    task::unconstrained,
    time::{Instant, sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;

use crate::{
    Bus, Error, HeaderMap,
    connection::{Heard, clock::Clock, pressure, trace},
    duty::lease::Lease,
    stage::jobs::Jobs,
    tenants::{model_lane::ModelLane, reading::Reading, rounds::Rounds, share::Options},
};

/// Who moves what waits, in the job bucket.
const DUTY: &str = "release";
/// Between two rounds, as long as each moves something.
const SHORTEST: Duration = Duration::from_millis(2);
/// Between two rounds when the queues stay full.
const LONGEST: Duration = Duration::from_millis(100);
/// Between two rounds, as the queues stay full.
const PACE: Backoff = Backoff::doubling(SHORTEST, LONGEST);
/// A job that begins to wait brings the next round forward, but not closer to the last than this, while others wait.
const APART: Duration = Duration::from_millis(20);
/// While nothing waits, and for those who only stand by.
const IDLE: Duration = Duration::from_secs(1);
/// Jobs of a line that are moved in one round.
const AT_ONCE: u64 = 256;
/// Bytes of them that are held meanwhile, though each tenant's first job counts whatever its size.
const BYTES: u64 = 64 << 20;
/// Requests that are on their way at a time.
const REQUESTS: usize = 32;
/// Of so many rounds one begins with the last lane, so that a tenant's jobs there get some of what it may run.
const REVERSED: u64 = 8;

/// Takes the tenants in turn.
pub struct Releaser {
    bus: Bus,
    options: Options,
    jobs: Jobs,
    clock: Clock,
    lease: Lease,
    wakes: Heard,
    rounds: BTreeMap<ModelLane, Rounds>,
    /// Counts the rounds.
    number: u64,
}

/// What came of a round.
enum Round {
    /// Another worker does it.
    StandBy,
    /// Nothing waits.
    Idle,
    Moved,
    /// Something waits, and there is no room for it.
    Full,
}

impl Releaser {
    pub(super) async fn new(bus: &Bus, options: Options) -> Result<Self, Error> {
        let wakes = bus.ears.listen(bus.layout.wake()).await?;
        let jobs = bus.jobs().await?;
        let (clock, lease) = (bus.clock(), jobs.lease(DUTY));
        Ok(Self { bus: bus.clone(), options, jobs, clock, lease, wakes, rounds: BTreeMap::new(), number: 0 })
    }

    /// Works until `shutdown`, and stands by as long as another worker does.
    pub async fn run(mut self, shutdown: CancellationToken) {
        let mut full = 0;
        while !shutdown.is_cancelled() {
            let began = Instant::now();
            // Whatever was told up to now is seen in this round: all of it, however much tokio would let one task take at a time,
            // for it would pile up.
            while unconstrained(self.wakes.next()).now_or_never().is_some() {}
            let (wait, apart) = match self.round().await {
                Ok(Round::Moved) => {
                    full = 0;
                    (SHORTEST, Some(SHORTEST))
                }
                Ok(Round::Full) => {
                    full += 1;
                    (PACE.step(full), Some(APART))
                }
                Ok(Round::Idle) => (IDLE, Some(Duration::ZERO)),
                Ok(Round::StandBy) => (IDLE, None),
                Err(error @ Error::TryLater { .. }) => {
                    tracing::info!(error = %causes(&error), "what waits is not passed on yet");
                    (LONGEST, None)
                }
                Err(error) => {
                    tracing::warn!(error = %causes(&error), "what waits was not passed on, and is tried again");
                    (IDLE, None)
                }
            };
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = sleep(wait) => {}
                () = woken(&mut self.wakes, began, apart) => {}
            }
        }
        self.lease.release().await;
    }

    async fn round(&mut self) -> Result<Round, Error> {
        if !self.lease.hold().await? {
            return Ok(Round::StandBy);
        }
        let reading = self.bus.reading().await?;
        self.rounds.retain(|line, _| reading.lines.get(line).is_some_and(|lengths| !lengths.waiting.is_empty()));
        let lines = self.lines(&reading);
        if lines.is_empty() {
            return Ok(Round::Idle);
        }
        let mut running: HashMap<&Name, u64> = HashMap::new();
        for (tenant, jobs) in reading.lines.values().flat_map(|lengths| &lengths.ahead) {
            *running.entry(tenant).or_default() += jobs;
        }
        let mut moved = 0;
        for line in lines {
            let lengths = &reading.lines[line];
            let may_run = |(tenant, waiting): (&Name, &u64)| {
                let runs = running.get(tenant).copied().unwrap_or_default();
                let most = self.options.share(tenant).max_running.unwrap_or(u64::MAX);
                (tenant.clone(), (*waiting).min(most.saturating_sub(runs)))
            };
            let waiting = lengths.waiting.iter().map(may_run).collect();
            let weight = |tenant: &Name| self.options.share(tenant).weight;
            let rounds = self.rounds.entry(line.clone()).or_default();
            let order = rounds.next(waiting, weight, lengths.room().min(AT_ONCE));
            for (tenant, jobs) in &order {
                if let Some((tenant, _)) = lengths.waiting.get_key_value(tenant) {
                    *running.entry(tenant).or_default() += jobs;
                }
            }
            moved += self.release(line, &order).await?;
        }
        Ok(if moved > 0 { Round::Moved } else { Round::Full })
    }

    /// The lines in which jobs wait, those of the most urgent lane first.
    fn lines<'a>(&mut self, reading: &'a Reading) -> Vec<&'a ModelLane> {
        let urgency = |line: &&ModelLane| self.options.lanes.iter().take_while(|&lane| *lane != line.lane).count();
        let waits = reading.lines.iter().filter(|(_, lengths)| !lengths.waiting.is_empty());
        let mut lines: Vec<&ModelLane> = waits.map(|(line, _)| line).collect();
        lines.sort_by_key(urgency);
        self.number += 1;
        if self.number.is_multiple_of(REVERSED) {
            lines.reverse();
        }
        lines
    }

    /// Moves the first jobs of tenants in this order; how many left where they waited.
    async fn release(&self, line: &ModelLane, order: &[(Name, u64)]) -> Result<usize, Error> {
        let mut wanted: BTreeMap<&Name, u64> = BTreeMap::new();
        for (tenant, jobs) in order {
            *wanted.entry(tenant).or_default() += jobs;
        }
        let bytes = BYTES / wanted.len().max(1) as u64;
        let heads = stream::iter(wanted).map(|(tenant, jobs)| async move {
            let subject = self.bus.layout.waiting(&line.model, &line.lane, tenant);
            let heads = self.bus.heads(&subject, jobs, bytes).await?;
            Ok::<_, Error>((tenant, VecDeque::from(heads)))
        });
        let mut heads: BTreeMap<&Name, VecDeque<StreamMessage>> =
            heads.buffer_unordered(REQUESTS).try_collect().await?;
        let mut done = Vec::new();
        let mut sent = Vec::new();
        for (tenant, jobs) in order {
            for _ in 0..*jobs {
                let Some(message) = heads.get_mut(tenant).and_then(VecDeque::pop_front) else { break };
                let sequence = message.sequence;
                if self.expire(&message).await? {
                    done.push(sequence);
                    continue;
                }
                let (subject, headers) = self.passed_on(line, tenant, &message.headers);
                // Sent in order, so they are stored in order; the answers come together.
                match self.bus.jetstream.publish_with_headers(subject.clone(), headers, message.payload).await {
                    Ok(answer) => sent.push(async move { (sequence, subject, answer.await) }),
                    Err(error) => return Err(pressure::refused(subject, &error)),
                }
            }
        }
        let mut refused = None;
        for (sequence, subject, answer) in join_all(sent).await {
            match answer {
                Ok(_) => done.push(sequence),
                Err(error) => refused = Some(pressure::refused(subject, &error)),
            }
        }
        let moved = done.len();
        let removals = stream::iter(done).map(|sequence| self.bus.remove_waiting(sequence));
        removals.buffer_unordered(REQUESTS).try_collect::<()>().await?;
        match refused {
            Some(error) if moved == 0 => Err(error),
            _ => Ok(moved),
        }
    }

    /// Where a message goes on, and with what.
    fn passed_on(&self, line: &ModelLane, tenant: &Name, headers: &HeaderMap) -> (String, HeaderMap) {
        let stage = stage_of(headers);
        let mut kept = HeaderMap::new();
        for (name, values) in headers.iter() {
            let text: &str = name.as_ref();
            // The broker says of each message that it hands out where it lay; its id serves in the queue as it did here.
            let foreign = text.starts_with(header::OF_BROKER) && text != header::MESSAGE_ID;
            if !foreign && ![header::STAGE, header::DEADLINE, header::JOB_ID].contains(&text) {
                values.iter().for_each(|value| kept.append(name.clone(), value.clone()));
            }
        }
        (self.bus.place(stage, line, tenant), kept)
    }

    /// Ends a job whose deadline has passed; whether it has.
    async fn expire(&self, message: &StreamMessage) -> Result<bool, Error> {
        let headers = &message.headers;
        let deadline = headers.get(header::DEADLINE).and_then(|deadline| deadline.as_str().parse::<u64>().ok());
        let Some(deadline) = deadline else { return Ok(false) };
        if self.clock.now_ms().await? < deadline {
            return Ok(false);
        }
        let outcome = match stage_of(headers) {
            Stage::Decode => expired::<DecodeTask>(&message.payload),
            Stage::Ingest | Stage::Prefill => expired::<PrefillTask>(&message.payload),
        };
        // Who takes what can't be read from its queue puts it aside.
        let Some(outcome) = outcome else { return Ok(false) };
        let mut traced = HeaderMap::new();
        trace::copy(Some(headers), &mut traced);
        self.jobs.finish(&outcome, traced).await?;
        tracing::info!(job = %outcome.id, tenant = %outcome.tenant, "a job expired while it waited for its turn");
        Ok(true)
    }
}

/// Returns when a job began to wait, and the last round `began` some time ago; never without one.
async fn woken(wakes: &mut Heard, began: Instant, apart: Option<Duration>) {
    let Some(apart) = apart else { return std::future::pending().await };
    wakes.next().await;
    sleep_until(began + apart).await;
}

fn stage_of(headers: &HeaderMap) -> Stage {
    match headers.get(header::STAGE).map(|stage| stage.as_str()) {
        Some(stage) if stage == Stage::Decode.as_str() => Stage::Decode,
        _ => Stage::Prefill,
    }
}

fn expired<T: Task>(payload: &[u8]) -> Option<Outcome> {
    let task: T = envelope::decode(payload).ok()?;
    let failure = Failure::new(Code::DeadlineExceeded, "the deadline passed while the job waited for its turn");
    Some(task.job().failed(failure, Vec::new(), task.timings().clone()))
}
