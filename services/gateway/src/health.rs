//! Whether the gateway lives, whether it can serve, and what it counts.

use std::time::Duration;

use axum::{
    extract::State as FromState,
    http::header::CONTENT_TYPE,
    response::{IntoResponse, Response},
};
use baton_contract::{causes, stats::Snapshot, subject::Stage};
use baton_openai::ApiError;
use tokio::time::timeout;

use crate::{State, refusal::Refusal};

/// How long the broker may take to answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
/// By when every worker has told of itself.
const HEARD_WITHIN: Duration = Duration::from_secs(3);
/// The pipeline is looked at every second; what is so old is not known to hold any more.
const CURRENT: Duration = Duration::from_secs(10);

/// The process answers.
pub(crate) async fn alive() -> &'static str {
    "ok\n"
}

/// The broker answers, the pipeline's streams are there, and each stage has a worker that takes jobs.
pub(crate) async fn ready(FromState(state): FromState<State>) -> Result<&'static str, Refusal> {
    match timeout(ANSWER_WITHIN, state.bus.ready()).await {
        Ok(ready) => ready.map_err(|error| ApiError::unavailable(causes(&error)))?,
        Err(_) => return Err(silent().into()),
    }
    let mut idle = None;
    let staffed = async {
        let mut watch = state.watch.get_or_try_init(|| state.bus.watch_stats()).await?.clone();
        loop {
            let stages = unserved(&state.facts.stages, &watch.snapshot());
            if stages.is_empty() {
                return Ok(());
            }
            idle = Some(stages);
            // A process that has just begun to listen hears of all within a second.
            watch.next().await;
        }
    };
    let staffed: Result<Result<(), baton_bus::Error>, _> = timeout(HEARD_WITHIN, staffed).await;
    match (staffed, idle) {
        (Ok(Ok(())), _) => Ok("ready\n"),
        (Ok(Err(error)), _) => Err(ApiError::unavailable(causes(&error)).into()),
        (Err(_), Some(stages)) => {
            let stages: Vec<_> = stages.iter().map(Stage::as_str).collect();
            let stages = stages.join(" or ");
            Err(ApiError::unavailable(format!("no worker serves {stages}; what is asked for waits")).into())
        }
        (Err(_), None) => Err(silent().into()),
    }
}

fn silent() -> ApiError {
    ApiError::unavailable(format!("the broker did not answer within {ANSWER_WITHIN:?}"))
}

/// Those of the stages that no worker takes jobs of.
fn unserved(stages: &[Stage], pipeline: &Snapshot) -> Vec<Stage> {
    let serves = |stage| pipeline.workers.iter().any(|worker| worker.stage == stage && !worker.draining);
    stages.iter().copied().filter(|&stage| !serves(stage)).collect()
}

pub(crate) async fn metrics(FromState(state): FromState<State>) -> Result<Response, Refusal> {
    let watch = state.watch.get_or_try_init(|| state.bus.watch_stats());
    let pipeline = match timeout(ANSWER_WITHIN, watch).await {
        // What is older is not told: it would look like now.
        Ok(Ok(watch)) => (watch.age() < CURRENT).then(|| watch.snapshot()),
        _ => None,
    };
    // What is counted here is told in any case.
    let text = state.metrics.text(pipeline.as_deref()).map_err(|error| ApiError::internal(causes(&error)))?;
    Ok(([(CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text).into_response())
}
