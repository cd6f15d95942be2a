//! What a job waits for: which stage has no worker, how many jobs are before it, which fault is to pass. Every wait has a reason
//! that its sender can see; it is found here, for the command line and the gateway alike.

use std::{
    fmt,
    time::{Duration, UNIX_EPOCH},
};

use async_nats::jetstream::{response::Response, stream::RawMessageErrorKind};
use baton_contract::{
    JobId, JobKey, Name, causes,
    record::{Record, State},
    stats::{Upstream, Worker},
    subject::{Layout, Stage, broker},
};
use futures::StreamExt;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::time::timeout;

use crate::{
    Bus, Error,
    stage::{jobs::Jobs, queue::Queue},
    tenants::model_lane::ModelLane,
};

/// Workers say every second how they do; one that was not heard for longer is not there.
const HEARD_WITHIN: Duration = Duration::from_millis(1_500);

/// What a job that has not ended waits for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "for", rename_all = "lowercase")]
pub enum WaitReason {
    /// Ingest has not seen it, if it was submitted.
    Ingest {
        /// Requests of its tenant that wait there.
        requests: u64,
        /// Whether an ingest worker answers.
        served: bool,
    },
    /// It is in a stage's queue, or will be once its tenant's turn comes.
    Queue {
        /// The stage of the queue.
        stage: Stage,
        /// The job's model.
        model: Name,
        /// The job's lane.
        lane: Name,
        /// Jobs that wait in the queue.
        jobs: u64,
        /// Jobs of its tenant that wait for their turn.
        turn: u64,
        /// Whether a worker takes from it.
        served: bool,
        /// Why the foreign engines that its workers ask take nothing, if none does.
        #[serde(skip_serializing_if = "Option::is_none")]
        engine: Option<String>,
    },
    /// A fault that may pass.
    Fault {
        /// The stage that could not do it.
        stage: Stage,
        /// The fault.
        reason: String,
        /// Since when, in milliseconds since 1970.
        since_ms: u64,
        /// Whether a worker tries it again now.
        again: bool,
    },
    /// Nothing: a worker has it in hand.
    Worker {
        /// The stage that works on it.
        stage: Stage,
        /// The worker's name.
        worker: String,
    },
    /// The broker does not say.
    Broker {
        /// What went wrong.
        reason: String,
    },
}

impl fmt::Display for WaitReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ingest { requests: 0, .. } => write!(f, "nothing is known of it, and no request of its tenant waits"),
            Self::Ingest { requests, served: true } => write!(f, "ingest, with {requests} requests of its tenant"),
            Self::Ingest { requests, served: false } => {
                write!(f, "an ingest worker: none runs, and {requests} requests of its tenant wait")
            }
            Self::Queue { stage, model, lane, jobs, turn, served, engine } => {
                match (served, engine) {
                    (true, None) => write!(f, "{stage} (model {model}, lane {lane}): {jobs} jobs wait in its queue")?,
                    (true, Some(fault)) => {
                        write!(f, "the engine of model {model}, which is down ({fault}), and {jobs} jobs wait for it")?
                    }
                    (false, _) => {
                        write!(f, "a {stage} worker: none serves model {model}, and {jobs} jobs wait for one")?
                    }
                }
                match turn {
                    0 => Ok(()),
                    turn => write!(f, ", and {turn} of its tenant wait for their turn"),
                }
            }
            Self::Fault { stage, reason, since_ms, again } => {
                let since = humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_millis(*since_ms));
                let again = if *again { ", and is tried again now" } else { "" };
                write!(f, "a fault of {stage}'s surroundings to pass, since {since}{again}: {reason}")
            }
            Self::Worker { stage, worker } => write!(f, "worker {worker}, which has it in hand ({stage})"),
            Self::Broker { reason } => write!(f, "the broker: {reason}"),
        }
    }
}

/// The part of an answer about a consumer that tells who asks for messages.
#[derive(Default, Deserialize)]
struct Consumer {
    #[serde(default)]
    num_waiting: u64,
    #[serde(default)]
    num_pending: u64,
}

/// Who takes from a queue.
enum Service {
    None,
    Some,
    /// Workers whose foreign engines are all down, for this reason.
    Down(String),
}

/// Why none of the foreign engines that a worker asks for a model takes anything, if it has any and none does.
fn down(worker: &Worker, model: Option<&Name>) -> Option<String> {
    let of_model = |engine: &&Upstream| model.is_some_and(|model| engine.model == model.as_str());
    let engines: Vec<_> = worker.upstreams.iter().filter(of_model).collect();
    let fault = engines.first()?.fault.clone().unwrap_or_default();
    engines.iter().all(|engine| !engine.up).then_some(fault)
}

impl Jobs {
    /// What a job waits for; nothing if it has ended. A broker that does not answer is a reason, too.
    pub async fn wait_reason(&self, tenant: &Name, job: &JobId) -> Option<WaitReason> {
        let key = JobKey { tenant: tenant.clone(), job: job.clone() };
        let found = self.find_reason(&key).await;
        found.unwrap_or_else(|error| Some(WaitReason::Broker { reason: causes(&error) }))
    }

    async fn find_reason(&self, key: &JobKey) -> Result<Option<WaitReason>, Error> {
        let JobKey { tenant, job } = key;
        let bus = &self.bus;
        let record = match self.get(tenant, job).await? {
            Some(stored) => stored.record,
            None if self.result(tenant, job).await?.is_some() => return Ok(None),
            None => return bus.before_ingest(tenant).await.map(Some),
        };
        if record.state.is_final() {
            return Ok(None);
        }
        if let Some(reason) = bus.in_hand(&record).await? {
            return Ok(Some(reason));
        }
        let Some((subject, _)) = bus.admitted(key).await? else { return bus.before_ingest(tenant).await.map(Some) };
        let Some((model, lane, _)) = Layout::parse_place(&subject) else { return Ok(None) };
        let first = match bus.layout.parse_queue(Stage::Decode, &subject) {
            Some(_) => Stage::Decode,
            None => Stage::Prefill,
        };
        // What prefill has passed on says so only when decode takes it.
        let stage = if record.state == State::Accepted { first } else { Stage::Decode };
        bus.in_queue(stage, ModelLane { model, lane }, tenant).await.map(Some)
    }
}

impl Bus {
    /// What holds a job that a stage has claimed, unless that stage has passed it on.
    async fn in_hand(&self, record: &Record) -> Result<Option<WaitReason>, Error> {
        let Some(claim) = &record.claim else { return Ok(None) };
        let name = self.layout.stage_stream(claim.stage);
        let unreadable = |message: String| Error::Read { what: format!("stream {name}"), message };
        let stream = self.jetstream.get_stream_no_info(&name).await.map_err(|error| unreadable(causes(&error)))?;
        match stream.get_raw_message(claim.sequence).await {
            Ok(_) => {}
            Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => return Ok(None),
            Err(error) => return Err(unreadable(causes(&error))),
        }
        let (stage, worker) = (claim.stage, claim.worker.clone());
        Ok(Some(match record.waiting.clone() {
            Some(waiting) => {
                WaitReason::Fault { stage, reason: waiting.reason, since_ms: waiting.since_ms, again: waiting.again }
            }
            None => WaitReason::Worker { stage, worker },
        }))
    }

    async fn before_ingest(&self, tenant: &Name) -> Result<WaitReason, Error> {
        let requests = self.count_of(self.layout.stage_stream(Stage::Ingest), self.layout.requests(tenant)).await?;
        let served = requests == 0 || !matches!(self.service(Stage::Ingest, None).await?, Service::None);
        Ok(WaitReason::Ingest { requests, served })
    }

    async fn in_queue(&self, stage: Stage, line: ModelLane, tenant: &Name) -> Result<WaitReason, Error> {
        let ModelLane { model, lane } = line;
        let name = self.layout.stage_stream(stage);
        let queue = Queue::of(stage, &model, &lane);
        let asked = broker::consumer_info(&name, &queue.durable());
        let unreadable = |message: String| Error::Read { what: format!("the queue of {stage}"), message };
        let answer: Result<Response<Consumer>, _> = self.jetstream.request(asked, &json!({})).await;
        let consumer = match answer.map_err(|error| unreadable(causes(&error)))? {
            Response::Ok(consumer) => consumer,
            // Nobody has ever taken from that queue.
            Response::Err { .. } => {
                Consumer { num_pending: self.count_of(name, queue.subject(&self.layout)).await?, ..Consumer::default() }
            }
        };
        let waiting = self.layout.waiting(&model, &lane, tenant);
        let turn = self.count_of(self.layout.waiting_stream(), waiting).await?;
        // Whoever asks for a message has room for it.
        let (served, engine) = match consumer.num_waiting {
            0 => match self.service(stage, Some(&model)).await? {
                Service::Some => (true, None),
                Service::Down(fault) => (true, Some(fault)),
                Service::None => (false, None),
            },
            _ => (true, None),
        };
        Ok(WaitReason::Queue { stage, model, lane, jobs: consumer.num_pending, turn, served, engine })
    }

    /// The messages of a stream under the subjects of a filter.
    async fn count_of(&self, stream: String, filter: String) -> Result<u64, Error> {
        let unreadable = |message: String| Error::Read { what: format!("the state of stream {stream}"), message };
        let handle = self.jetstream.get_stream_no_info(&stream).await.map_err(|error| unreadable(causes(&error)))?;
        let mut subjects = handle.info_with_subjects(filter).await.map_err(|error| unreadable(causes(&error)))?;
        let mut messages = 0;
        while let Some(subject) = subjects.next().await {
            messages += subject.map_err(|error| unreadable(causes(&error)))?.1 as u64;
        }
        Ok(messages)
    }

    /// Whether a worker of a stage, and of a model, is heard of.
    async fn service(&self, stage: Stage, model: Option<&Name>) -> Result<Service, Error> {
        let subject = self.layout.all_stats();
        let failed = |message: String| Error::Read { what: subject.clone(), message };
        let mut words = self.client.subscribe(subject.clone()).await.map_err(|error| failed(causes(&error)))?;
        let mut service = Service::None;
        let heard = async {
            while let Some(message) = words.next().await {
                let Ok(worker) = serde_json::from_slice::<Worker>(&message.payload) else { continue };
                let serves = model.is_none_or(|model| worker.models.contains(model));
                if worker.stage == stage && serves && !worker.ended {
                    match down(&worker, model) {
                        // Another worker's engine may be up.
                        Some(fault) => service = Service::Down(fault),
                        None => return service = Service::Some,
                    }
                }
            }
        };
        // Who is heard of later is not there.
        let _ = timeout(HEARD_WITHIN, heard).await;
        Ok(service)
    }
}
