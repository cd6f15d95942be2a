//! The live page at `/`, and what it asks for: the pipeline every second, a tenant's recent jobs, and one job.
//!
//! The page is part of the binary and asks nobody but its gateway. It is for everybody; the numbers behind it are for who has
//! a key. Totals of workers and queues are the same for all keys, jobs are the tenant's own.

mod assets;
mod live;

use axum::{
    Extension, Json, Router,
    extract::{Path, Query, State as FromState},
    http::StatusCode,
    response::Response,
    routing::get,
};
use baton_bus::stage::cancel::Answer;
use baton_contract::{JobId, outcome::Outcome};
use baton_openai::ApiError;
use serde::Deserialize;
use serde_json::{Value, json};

use self::live::Live;
use crate::{
    State,
    auth::{Caller, Tenant},
    refusal::Refusal,
};

/// Jobs in a list, unless the caller says how many.
const LISTED: usize = 30;
const MOST_LISTED: usize = 100;
/// Characters of an answer that a list shows.
const EXCERPT: usize = 200;

/// The routes of this module.
pub fn routes() -> Router<State> {
    Router::new()
        .route("/", get(assets::index))
        .route("/assets/{name}", get(assets::asset))
        .route("/api/live", get(follow))
        .route("/api/jobs", get(list))
        .route("/api/jobs/{id}", get(one).delete(cancel))
        .layer(Extension(Live::default()))
}

async fn follow(_: Tenant, FromState(state): FromState<State>, live: Extension<Live>) -> Result<Response, Refusal> {
    Ok(live.follow(&state).await?)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Listing {
    limit: Option<usize>,
}

/// The tenant's jobs that ended last, the newest first.
async fn list(
    Tenant(tenant): Tenant,
    FromState(state): FromState<State>,
    query: Result<Query<Listing>, axum::extract::rejection::QueryRejection>,
) -> Result<Json<Value>, Refusal> {
    let expected = || ApiError::field("limit", format!("limit: expected a number from 1 to {MOST_LISTED}"));
    let Query(Listing { limit }) = query.map_err(|_| expected())?;
    let limit = limit.unwrap_or(LISTED);
    if !(1..=MOST_LISTED).contains(&limit) {
        return Err(expected().into());
    }
    let results = state.bus.recent_results(&tenant, limit).await?;
    Ok(Json(json!({ "jobs": results.iter().map(summary).collect::<Vec<_>>() })))
}

/// A result without what makes it long.
fn summary(outcome: &Outcome) -> Value {
    let mut excerpt: String = outcome.text.chars().take(EXCERPT).collect();
    if excerpt.len() < outcome.text.len() {
        excerpt.push('…');
    }
    json!({
        "id": outcome.id,
        "lane": outcome.lane,
        "model": outcome.model,
        "status": outcome.status,
        "finish_reason": outcome.finish_reason,
        "error": outcome.error,
        "text": excerpt,
        "usage": outcome.usage,
        "timings": outcome.timings,
    })
}

/// What is known of a job: its record, and its result once it has ended. Of one that ingest has not read yet nothing is.
async fn one(
    Tenant(tenant): Tenant,
    FromState(state): FromState<State>,
    Path(id): Path<String>,
) -> Result<Json<Value>, Refusal> {
    let id = named(&id)?;
    let record = state.jobs.get(&tenant, &id).await?.map(|stored| stored.record);
    let result = match record.as_ref().is_some_and(|record| !record.state.is_final()) {
        true => None,
        // Of a job whose record is older than records are kept, the result may still be there.
        false => state.jobs.result(&tenant, &id).await?,
    };
    Ok(Json(json!({ "record": record, "result": result })))
}

/// Cancels a job.
async fn cancel(
    caller: Caller,
    FromState(state): FromState<State>,
    Path(id): Path<String>,
) -> Result<(StatusCode, Json<Value>), Refusal> {
    let _permit = caller.admit()?;
    let id = named(&id)?;
    match state.bus.cancel(&caller.tenant, &id).await? {
        Answer::Unknown => {
            let message = format!("you have no job {id}; jobs are known as long as results.keep says");
            Err(ApiError::not_found(message).into())
        }
        answer => Ok((StatusCode::ACCEPTED, Json(json!(answer)))),
    }
}

fn named(id: &str) -> Result<JobId, ApiError> {
    JobId::new(id).map_err(|error| ApiError::field("id", format!("id: {error}")))
}
