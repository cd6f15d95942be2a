//! A job in a line: what its record says, and what else is found about it.

use std::time::{Duration, UNIX_EPOCH};

use baton_contract::{
    JobId, Name,
    outcome::{Failure, Outcome, Usage},
    record::State,
};
use serde::Serialize;

use crate::{Bus, Error, inspect::changes::Entry, stage::jobs::Jobs};

/// What is told of a job. Times are texts as in RFC 3339.
#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs, reason = "its fields are those of records and results")]
pub struct Summary {
    pub id: JobId,
    pub tenant: Name,
    pub state: State,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lane: Option<Name>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<Name>,
    pub accepted: String,
    pub changed: String,
    pub cancelled: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tries: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub worker: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_token_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<Failure>,
}

impl Summary {
    /// Makes it of a record, with what else is found about the job.
    pub async fn found(bus: &Bus, jobs: &Jobs, entry: Entry) -> Result<Self, Error> {
        let Entry { tenant, job: id, record, changed_ms } = entry;
        let (accepted, changed) = (time(record.accepted_at_ms), time(changed_ms));
        let worker = record.claim.map(|claim| claim.worker);
        let row = Self {
            state: record.state,
            lane: None,
            model: None,
            accepted,
            changed,
            cancelled: record.cancelled,
            tries: Some(record.tries),
            worker,
            usage: None,
            first_token_ms: None,
            total_ms: None,
            error: None,
            id,
            tenant,
        };
        if record.state.is_final() {
            return Ok(match jobs.result(&row.tenant, &row.id).await? {
                Some(outcome) => row.with(outcome),
                None => row,
            });
        }
        let queue = bus.admitted_to(&row.tenant, &row.id).await?;
        let (model, lane) = queue.unzip();
        Ok(Self { model, lane, ..row })
    }

    fn with(self, outcome: Outcome) -> Self {
        let timings = outcome.timings;
        let some = |ms: f64| (ms > 0.0).then_some(ms);
        Self {
            lane: Some(outcome.lane),
            model: outcome.model,
            usage: Some(outcome.usage),
            first_token_ms: some(timings.first_token_ms),
            total_ms: some(timings.total_ms),
            error: outcome.error,
            ..self
        }
    }

    /// Makes it of a job that has just ended.
    pub fn ended(outcome: Outcome, now_ms: u64) -> Self {
        let worker = &outcome.timings.decode_worker;
        let row = Self {
            id: outcome.id.clone(),
            tenant: outcome.tenant.clone(),
            state: outcome.status.into(),
            lane: None,
            model: None,
            accepted: time(outcome.timings.accepted_at_ms),
            changed: time(now_ms),
            cancelled: State::from(outcome.status) == State::Cancelled,
            tries: None,
            worker: (!worker.is_empty()).then(|| worker.clone()),
            usage: None,
            first_token_ms: None,
            total_ms: None,
            error: None,
        };
        row.with(outcome)
    }
}

fn time(unix_ms: u64) -> String {
    humantime::format_rfc3339_millis(UNIX_EPOCH + Duration::from_millis(unix_ms)).to_string()
}
