//! The client of a run: sends each request when it is time, again until the pipeline has it, and asks for cancellations.

use std::{collections::HashMap, sync::Arc, time::Duration};

use baton_bus::Bus;
use baton_contract::Name;
use serde_json::Value;
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, sleep, sleep_until, timeout},
};

use super::workload::{Event, Workload};

/// A request that the broker did not take within that long is never sent.
const PATIENCE: Duration = Duration::from_secs(180);
const PAUSE: Duration = Duration::from_millis(200);
/// How long an answer over HTTP is waited for before the request is sent again under its key.
const HTTP_ANSWER: Duration = Duration::from_secs(15);
/// How long the answer to a cancellation is waited for before it is asked for again.
const ANSWER: Duration = Duration::from_secs(5);

/// Who submits: a tenant, on two lanes.
#[derive(Clone, Debug)]
pub struct Client {
    pub bus: Bus,
    pub http: reqwest::Client,
    /// URLs of gateways.
    pub gateways: Vec<String>,
    pub tenant: Name,
    /// The first and the second lane.
    pub lanes: [Name; 2],
}

/// What became of the requests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// By job: whether its request was taken. One over HTTP counts from the first try on: a sender without an answer can't know.
    pub submitted: Vec<bool>,
    /// Requests that were sent again on purpose.
    pub again: usize,
    /// Times that the broker or a gateway did not answer, and a request was sent once more therefore.
    pub resent: u64,
    pub cancellations: u64,
    /// By job: what a gateway answered first.
    texts: HashMap<usize, String>,
    /// Jobs whose requests over HTTP had different answers, or none that could be: the job, and what was seen.
    pub wrong: Vec<(usize, String)>,
}

/// What became of one sending.
#[derive(Debug, Default)]
pub struct Sending {
    taken: bool,
    /// How often it was sent in vain.
    resent: u64,
    /// Over HTTP: the answer, or a refusal.
    answer: Option<Result<String, String>>,
}

enum Done {
    Submitted { job: usize, again: bool, sending: Sending },
    Cancelled(bool),
}

impl Client {
    /// Sends the request of a job, in the job's way, until it is taken.
    pub async fn send(&self, workload: &Workload, job: usize) -> Sending {
        let planned = &workload.jobs[job];
        if planned.over_http {
            return match workload.completion(planned.request) {
                Ok(body) => self.post(planned.id.as_str(), body, planned.batch).await,
                Err(_) => Sending::default(),
            };
        }
        match workload.body(planned.request, &planned.id) {
            Ok(body) => self.submit(body, planned.batch).await,
            Err(_) => Sending::default(),
        }
    }

    /// Sends one request until the broker has it.
    pub async fn submit(&self, body: Vec<u8>, batch: bool) -> Sending {
        let (deadline, mut resent) = (Instant::now() + PATIENCE, 0);
        let lane = &self.lanes[usize::from(batch)];
        while Instant::now() < deadline {
            // The same bytes under the same id are the same job, however often they come.
            if self.bus.submit(&self.tenant, lane, body.clone()).await.is_ok() {
                return Sending { taken: true, resent, answer: None };
            }
            resent += 1;
            sleep(PAUSE).await;
        }
        Sending { taken: false, resent, answer: None }
    }

    /// Posts a completion under a key until a gateway has answered.
    async fn post(&self, key: &str, body: Vec<u8>, batch: bool) -> Sending {
        let (deadline, mut resent) = (Instant::now() + PATIENCE, 0);
        let mut answer = None;
        while Instant::now() < deadline {
            let url = &self.gateways[(key.len() + resent as usize) % self.gateways.len()];
            let asked = self.http.post(format!("{url}/v1/completions")).timeout(HTTP_ANSWER).body(body.clone());
            let lane = self.lanes[usize::from(batch)].as_str();
            let asked = asked.header("Content-Type", "application/json").header("Baton-Lane", lane);
            if let Ok(response) = asked.header("Idempotency-Key", key).send().await {
                let status = response.status();
                if let (true, Ok(text)) = (status.is_success(), response.text().await.map_err(drop)) {
                    answer = Some(texts(&text).ok_or_else(|| format!("an answer without texts: {text}")));
                    break;
                }
                if status.is_client_error() && ![408, 429].contains(&status.as_u16()) {
                    answer = Some(Err(format!("the status {status}")));
                    break;
                }
            }
            resent += 1;
            sleep(PAUSE).await;
        }
        Sending { taken: true, resent, answer: answer.or_else(|| Some(Err(format!("no answer within {PATIENCE:?}")))) }
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
                        Done::Submitted { job, again, sending: client.send(&workload, job).await }
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

/// The texts of a completion, in the order of its choices.
fn texts(body: &str) -> Option<String> {
    let answer: Value = serde_json::from_str(body).ok()?;
    let mut choices: Vec<_> = answer["choices"].as_array()?.iter().collect();
    choices.sort_by_key(|choice| choice["index"].as_u64());
    let texts = choices.iter().map(|choice| Some(choice["text"].as_str()?.to_owned()));
    Some(texts.collect::<Option<Vec<_>>>()?.join("\n"))
}

impl Sent {
    fn note(&mut self, done: Done, told: &watch::Sender<usize>) {
        match done {
            Done::Submitted { job, again, sending } => {
                self.submitted[job] |= sending.taken;
                self.resent += sending.resent;
                self.again += usize::from(again);
                told.send_modify(|sent| *sent += usize::from(!again && sending.taken));
                match sending.answer {
                    Some(Ok(text)) if *self.texts.entry(job).or_insert_with(|| text.clone()) != text => {
                        self.wrong.push((job, "two requests under its key had different answers".into()));
                    }
                    Some(Err(problem)) => self.wrong.push((job, format!("a request under its key had {problem}"))),
                    _ => {}
                }
            }
            Done::Cancelled(answered) => self.cancellations += u64::from(answered),
        }
    }
}
