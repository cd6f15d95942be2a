//! `/v1/batches`: files of requests, driven through the pipeline by whichever gateway gets to it.
//!
//! A batch lives on the bus: what is known about it on a shelf, and that it is to be driven as an errand. A gateway that drives
//! one holds nothing that another could not find out again: each line's job has an id that follows from the batch and the
//! line, so that asking for it twice changes nothing, and what came of it is read from the stream of results.

mod answers;
mod chores;
mod drive;
mod input;
mod object;
mod order;
mod output;
mod stores;
mod worker;

use axum::{
    Json, Router,
    extract::{Query, Request as HttpRequest, State as Shared, rejection::QueryRejection},
    routing::{get, post},
};
use baton_bus::gateways::files::Purpose;
use baton_contract::{
    JobId, Name,
    batch::{Batch, Status},
    causes,
};
use baton_openai::ApiError;
use serde::Deserialize;
use serde_json::Value;

pub use self::stores::Options;
pub(crate) use self::{chores::sweep_regularly, stores::BatchStores, worker::run};
use crate::{
    State,
    auth::{Caller, Tenant},
    files::{self, Id, Order, known_id, new_id, now, page},
    receive,
    refusal::Refusal,
    webhooks,
};

/// Batches of one page without a limit, and at most.
const PAGE: (usize, usize) = (20, 100);

/// The routes of this module.
pub fn routes() -> Router<State> {
    Router::new()
        .route("/v1/batches", get(list).post(create))
        .route("/v1/batches/{batch}", get(retrieve))
        .route("/v1/batches/{batch}/cancel", post(cancel))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    limit: Option<usize>,
    after: Option<String>,
}

async fn create(caller: Caller, Shared(state): Shared<State>, request: HttpRequest) -> Result<Json<Value>, Refusal> {
    files::store(&state)?;
    let _permit = caller.admit()?;
    let tenant = caller.tenant;
    let body = receive::json(&state.budget, request).await?;
    let id = new_id("batch_");
    let created_at = now(&state).await?;
    let (order, window) = order::read(&body.bytes, &id)?;
    let missing = |message: &str| {
        let error = ApiError { param: Some("input_file_id".into()), ..ApiError::not_found(message) };
        Err(error.into())
    };
    match files::find(&state, &tenant, &order.input_file_id).await? {
        Some(file) if file.purpose == Purpose::Batch => {}
        Some(_) => {
            return Err(
                ApiError::field("input_file_id", "input_file_id: expected a file with the purpose \"batch\"").into()
            );
        }
        None => return missing("input_file_id: no such file object"),
    }
    let told = webhooks::has_webhook(&state, &tenant);
    let batch = Batch { told, ..Batch::new(order, created_at, created_at + window) };
    let key = key(&id)?;
    let stores = &state.stores;
    stores.batches.put(&tenant, &key, &batch).await?;
    // Should this fail, the sender hears of it, and at worst a batch is left that he does not know of.
    if let Err(error) = stores.batch_errands.leave(&tenant, &id, id.clone().into_bytes()).await {
        let _ = stores.batches.remove(&tenant, &key).await;
        return Err(error.into());
    }
    tracing::info!(batch = id, %tenant, "a batch was accepted");
    Ok(Json(object::of(&batch)))
}

async fn list(
    Tenant(tenant): Tenant,
    Shared(state): Shared<State>,
    wanted: Result<Query<Wanted>, QueryRejection>,
) -> Result<Json<Value>, Refusal> {
    let Query(wanted) = wanted.map_err(|error| ApiError::invalid(error.body_text()))?;
    let batches = state.stores.batches.of_tenant(&tenant).await?;
    let key = |batch: &Batch| (batch.created_at, batch.order.id.clone());
    let limit = wanted.limit.unwrap_or(PAGE.0);
    Ok(Json(page(batches, key, object::of, Order::Desc, wanted.after.as_deref(), (limit, PAGE.1))?))
}

async fn retrieve(Tenant(tenant): Tenant, Shared(state): Shared<State>, Id(id): Id) -> Result<Json<Value>, Refusal> {
    let kept = match known_id("batch_", &id) {
        Some(key) => state.stores.batches.get(&tenant, &key).await?,
        None => None,
    };
    Ok(Json(object::of(&kept.ok_or_else(unknown)?.value)))
}

async fn cancel(caller: Caller, Shared(state): Shared<State>, Id(id): Id) -> Result<Json<Value>, Refusal> {
    let _permit = caller.admit()?;
    let key = known_id("batch_", &id).ok_or_else(unknown)?;
    let now = now(&state).await?;
    let batch =
        state.stores.batches.change(&caller.tenant, &key, |batch| batch.cancelled(now)).await?.ok_or_else(unknown)?;
    match batch.status {
        // Whoever drives it sees this within a second.
        Status::Cancelling | Status::Cancelled => Ok(Json(object::of(&batch))),
        status => {
            let message = format!("the batch can't be cancelled any more: it is {}", status.as_str());
            Err(ApiError::new(409, "invalid_request_error", Some("conflict"), message).into())
        }
    }
}

fn unknown() -> ApiError {
    ApiError { param: Some("id".into()), ..ApiError::not_found("no such batch object") }
}

fn key(id: &str) -> Result<JobId, ApiError> {
    JobId::new(id).map_err(|error| ApiError::internal(causes(&error)))
}

/// Changes a batch by its id.
async fn change(
    state: &State,
    tenant: &Name,
    id: &str,
    change: impl Fn(&Batch) -> Option<Batch>,
) -> Result<Option<Batch>, baton_bus::Error> {
    let Ok(key) = JobId::new(id) else { return Ok(None) };
    state.stores.batches.change(tenant, &key, change).await
}

/// The job of a line, the same whoever asks for it.
fn job_of(batch: &str, line: u64) -> Option<JobId> {
    JobId::new(&format!("{batch}-{line}")).ok()
}

/// The line that a job is of, if it is one of the batch's.
fn line_of(batch: &str, job: &JobId) -> Option<u64> {
    job.as_str().strip_prefix(batch)?.strip_prefix('-')?.parse().ok()
}

/// The lane that batches take: the one of that name, or else the least urgent.
fn lane(state: &State) -> &Name {
    let lanes = &state.facts.lanes;
    lanes.iter().find(|lane| lane.as_str() == "batch").or(lanes.last()).unwrap_or(state.facts.default_lane())
}
