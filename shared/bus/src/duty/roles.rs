//! Workers that change their role: who asks them to, what they answer, and what a planner tells of it.
//!
//! A worker that can serve several stages answers at a NATS micro-service endpoint, `<root>.api.role.<worker>`. It answers once
//! it has drained and takes jobs in its new role, or at once if it will not. The planner tells what it thinks on core NATS.

use std::{sync::Arc, time::Duration};

use async_nats::{
    client::RequestErrorKind,
    service::{self, error},
};
use baton_contract::{causes, header, objects, stats::Planning, subject::Stage};
use serde::{Deserialize, Serialize};
use tokio::{sync::watch, time::Instant};
use tokio_util::task::AbortOnDropHandle;

use crate::{
    Bus, Error,
    connection::endpoint::{Served, Sign},
};

/// A worker drains first, which takes prefill as long as its prompts.
const ANSWER: Duration = Duration::from_secs(60);
/// A planner that was not heard of for so long is not there.
const FORGOTTEN: Duration = Duration::from_secs(10);

/// What a worker is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Question {
    role: Stage,
}

/// What a worker answers that is asked to change its role.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "lowercase")]
pub enum Answer {
    /// It serves the role now, and has left the other.
    Switched {
        /// The stage that it served.
        from: Stage,
        /// The stage that it serves now.
        to: Stage,
    },
    /// It served that role already.
    Serves {
        /// The stage.
        role: Stage,
    },
    /// It will not; nothing has changed.
    Refused {
        /// For people.
        reason: String,
    },
}

/// A worker's endpoint.
pub struct Calls(Served);

/// One call to change the role. Whoever calls waits for an answer.
pub struct Call {
    /// What the worker is to become.
    pub role: Stage,
    request: service::Request,
}

impl Bus {
    /// Asks a worker to serve a role, and waits until it does or refuses.
    pub async fn change_role(&self, worker: &str, role: Stage) -> Result<Answer, Error> {
        let subject = self.layout.role(worker);
        let failed = |message: String| Error::Read { what: format!("the answer of {subject}"), message };
        let question = serde_json::to_vec(&Question { role }).map_err(|error| failed(causes(&error)))?;
        let request = async_nats::Request::new().timeout(Some(ANSWER)).payload(question.into());
        let message = match self.client.send_request(subject.clone(), request).await {
            Ok(message) => message,
            Err(error) if error.kind() == RequestErrorKind::NoResponders => {
                return Err(Error::NoFlexibleWorker { worker: worker.to_owned() });
            }
            Err(error) => return Err(failed(causes(&error))),
        };
        if let Some(error) = message.headers.as_ref().and_then(|headers| headers.get(header::SERVICE_ERROR)) {
            return Err(failed(error.to_string()));
        }
        serde_json::from_slice(&message.payload).map_err(|error| failed(causes(&error)))
    }

    /// Opens a worker's endpoint.
    pub async fn role_calls(&self, worker: &str) -> Result<Calls, Error> {
        let sign = Sign {
            service: self.layout.worker_service(),
            description: "calls to workers",
            endpoint: "role",
            subject: self.layout.role(worker),
        };
        Served::open(&self.ears, sign).await.map(Calls)
    }

    /// Tells what a planner thinks; whether anybody hears it does not matter to it.
    pub async fn tell_planning(&self, planning: &Planning) {
        match serde_json::to_vec(planning) {
            Ok(said) => drop(self.client.publish(self.layout.planning(), said.into()).await),
            Err(error) => tracing::debug!(error = %causes(&error), "what the planner thinks was not published"),
        }
    }

    /// Begins to listen to the planner.
    pub async fn watch_planner(&self) -> Result<PlannerWatch, Error> {
        let mut words = self.ears.listen(self.layout.planning()).await?;
        let (sender, heard) = watch::channel(None);
        let listening = async move {
            loop {
                let message = words.next().await;
                match serde_json::from_slice::<Planning>(&message.payload) {
                    Ok(planning) => drop(sender.send_replace(Some((planning, Instant::now())))),
                    Err(error) => tracing::debug!(error = %causes(&error), "a planner's words could not be read"),
                }
            }
        };
        Ok(PlannerWatch { heard, _task: Arc::new(AbortOnDropHandle::new(tokio::spawn(listening))) })
    }
}

impl Calls {
    /// The next call that can be understood; others are told so.
    pub async fn next(&mut self) -> Call {
        loop {
            let request = self.0.next().await;
            match objects::from_slice::<Question>(&request.message.payload) {
                Ok(Question { role }) => return Call { role, request },
                Err(problem) => {
                    let status = format!(r#"expected {{"role": "prefill"}} or another stage: {problem}"#);
                    let error = error::Error { status: status.replace(['\r', '\n'], " "), code: 400 };
                    answered(request.respond(Err(error)).await);
                }
            }
        }
    }

    /// Closes the endpoint.
    pub async fn close(self) {
        self.0.close().await;
    }
}

impl Call {
    /// Answers whoever called.
    pub async fn answer(self, answer: &Answer) {
        let said = serde_json::to_vec(answer).map_err(|error| error::Error { status: causes(&error), code: 500 });
        answered(self.request.respond(said.map(Into::into)).await);
    }

    /// Answers that nothing will change.
    pub async fn refuse(self, reason: impl Into<String>) {
        self.answer(&Answer::Refused { reason: reason.into() }).await;
    }
}

fn answered<E: std::error::Error + 'static>(sent: Result<(), E>) {
    if let Err(error) = sent {
        tracing::warn!(error = %causes(&error), "a call was not answered");
    }
}

/// What the planner says. Cheap to clone; the last clone ends the watch.
#[derive(Clone, Debug)]
pub struct PlannerWatch {
    heard: watch::Receiver<Option<(Planning, Instant)>>,
    _task: Arc<AbortOnDropHandle<()>>,
}

impl PlannerWatch {
    /// What it said last; nothing if it has been silent for ten seconds.
    pub fn last(&self) -> Option<Planning> {
        let heard = self.heard.borrow();
        heard.as_ref().filter(|(_, at)| at.elapsed() < FORGOTTEN).map(|(planning, _)| planning.clone())
    }
}
