//! Whether the gateway lives, whether it can serve, and what it counts.

use std::{sync::Arc, time::Duration};

use axum::{
    extract::State as FromState,
    http::header::CONTENT_TYPE,
    response::{IntoResponse, Response},
};
use baton_contract::causes;
use tokio::time::timeout;

use crate::{State, openai::ApiError};

/// How long the broker may take to answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);

/// The process answers.
pub(crate) async fn alive() -> &'static str {
    "ok\n"
}

/// The broker answers, and the pipeline's streams are there.
pub(crate) async fn ready(FromState(state): FromState<State>) -> Result<&'static str, ApiError> {
    match timeout(ANSWER_WITHIN, state.bus.ready()).await {
        Ok(ready) => ready.map(|()| "ready\n").map_err(|error| ApiError::unavailable(causes(&error))),
        Err(_) => Err(ApiError::unavailable(format!("the broker did not answer within {ANSWER_WITHIN:?}"))),
    }
}

pub(crate) async fn metrics(FromState(state): FromState<State>) -> Result<Response, ApiError> {
    let watch = state.watch.get_or_try_init(|| state.bus.watch_stats());
    let pipeline = match timeout(ANSWER_WITHIN, watch).await {
        Ok(Ok(watch)) => watch.snapshot(),
        // What is counted here is told all the same.
        _ => Arc::default(),
    };
    let text = state.metrics.text(&pipeline).map_err(|error| ApiError::internal(causes(&error)))?;
    Ok(([(CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text).into_response())
}
