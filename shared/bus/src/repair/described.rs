//! Dead letters for people: what is told of one, and what its message says.

use std::time::{Duration, UNIX_EPOCH};

use baton_contract::{
    JobId, Name, causes,
    envelope::{self, DecodeTask, PrefillTask},
    outcome::Code,
    request::Request,
    subject::Stage,
};
use serde::Serialize;
use serde_json::Value;

use crate::repair::{
    dead::{Letter, Opened},
    letter_id::LetterId,
};

/// What is told of a letter. Times are texts as in RFC 3339.
#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs, reason = "its fields are those of the letter")]
pub struct Described {
    pub id: String,
    pub stage: Stage,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tenant: Option<Name>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub job: Option<JobId>,
    pub code: Code,
    pub message: String,
    pub attempts: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub worker: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trace_id: Option<String>,
    pub subject: String,
    pub queued: String,
    pub died: String,
    pub bytes: u64,
}

impl Described {
    /// Describes a letter.
    pub fn of(letter: &Letter) -> Self {
        let (tenant, job) = match &letter.id {
            LetterId::Job { tenant, job, .. } => (Some(tenant.clone()), Some(job.clone())),
            LetterId::Message { .. } => (None, None),
        };
        Self {
            id: letter.id.to_string(),
            stage: letter.id.stage(),
            tenant,
            job,
            code: letter.cause.code,
            message: letter.cause.message.clone(),
            attempts: letter.attempts,
            worker: letter.worker.clone(),
            trace_id: letter.trace_id().map(str::to_owned),
            subject: letter.subject.clone(),
            queued: time(letter.queued_ms),
            died: time(letter.died_ms),
            bytes: letter.bytes,
        }
    }
}

fn time(unix_ms: u64) -> String {
    humantime::format_rfc3339_millis(UNIX_EPOCH + Duration::from_millis(unix_ms)).to_string()
}

/// What a letter's message says.
#[derive(Serialize)]
#[serde(untagged)]
pub enum Content {
    /// The request that says what the job says.
    Request(Box<Request>),
    /// A request as it was sent.
    Json(Value),
    /// What can't be read, or is no JSON.
    Text(String),
}

impl Content {
    /// Reads the message of a letter.
    pub fn of(opened: &Opened) -> Self {
        let bytes = opened.message.as_slice();
        let read = match opened.letter.id.stage() {
            Stage::Ingest => return Self::sent(bytes),
            Stage::Prefill => envelope::decode::<PrefillTask>(bytes).map(|task| (task.job, task.ask)),
            Stage::Decode => envelope::decode::<DecodeTask>(bytes).map(|task| (task.job, task.ask)),
        };
        match read {
            Ok((job, None)) => Self::Request(Box::new(job.into_request())),
            Ok((job, Some(ask))) => Self::Request(Box::new(ask.to_request(job))),
            Err(error) => Self::Text(format!("unreadable: {}", causes(&error))),
        }
    }

    fn sent(bytes: &[u8]) -> Self {
        serde_json::from_slice(bytes)
            .map_or_else(|_| Self::Text(String::from_utf8_lossy(bytes).into_owned()), Self::Json)
    }
}
