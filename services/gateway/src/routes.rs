//! Which path is whose.

use std::sync::Arc;

use axum::{
    Router,
    body::{Body, HttpBody},
    extract::{MatchedPath, Request, State as FromState},
    http::{HeaderName, HeaderValue, Method},
    middleware::{Next, from_fn_with_state},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use baton_openai::{ApiError, Endpoint};
use http_body_util::BodyExt;
use tokio::time::Instant;
use tracing::{Instrument, info_span};

use crate::{
    State, batches,
    budget::{self, Housed},
    completions, document, files, health, models, page,
    refusal::{Reason, Refusal},
    sites, webhooks,
};

/// What OpenAI's clients call `request_id`.
const REQUEST_HEADER: HeaderName = HeaderName::from_static("x-request-id");

const READY: &str = "/readyz";

/// All routes.
pub(crate) fn router(state: State) -> Router {
    all()
        .fallback(unknown)
        .method_not_allowed_fallback(wrong_method)
        .layer(from_fn_with_state(state.clone(), house))
        .layer(state.sites.cors())
        .layer(from_fn_with_state(state.sites.clone(), sites::admit))
        .layer(from_fn_with_state(state.clone(), count))
        .with_state(state)
}

fn all() -> Router<State> {
    openai_routes()
        .merge(own_routes())
        .merge(files::routes())
        .merge(batches::routes())
        .merge(webhooks::routes())
        .merge(page::routes())
}

fn openai_routes() -> Router<State> {
    Router::new()
        .route(Endpoint::ChatCompletions.path(), post(completions::chat))
        .route(Endpoint::Completions.path(), post(completions::completions))
        .route("/v1/models", get(models::list))
        .route("/v1/models/{model}", get(models::one))
}

fn own_routes() -> Router<State> {
    Router::new()
        .route("/healthz", get(health::alive))
        .route(READY, get(health::ready))
        .route("/metrics", get(health::metrics))
        .route("/openapi.json", get(document::serve))
}

async fn unknown(method: Method, request: Request) -> Refusal {
    let path: String = request.uri().path().chars().take(200).collect();
    ApiError::not_found(format!("there is no {method} {path}; GET /openapi.json describes what there is")).into()
}

async fn wrong_method(method: Method) -> Refusal {
    let message = format!("this path is not for {method}; GET /openapi.json describes what it is for");
    ApiError::new(405, "invalid_request_error", Some("method_not_allowed"), message).into()
}

/// Answers that are no longer than this find room in what a connection has anyhow.
const SHORT: u64 = 64 << 10;

/// Takes room for a long answer that has not taken any itself, such as a list. One that finds none is told again later.
async fn house(FromState(state): FromState<State>, request: Request, next: Next) -> Response {
    let response = next.run(request).await;
    let long = response.body().size_hint().exact().filter(|bytes| *bytes > SHORT);
    let Some(bytes) = long.filter(|_| response.extensions().get::<Housed>().is_none()) else { return response };
    match state.budget.take(bytes).await {
        Ok(room) => {
            let room = Arc::new(room);
            response.map(|body| {
                Body::new(body.map_frame(move |frame| frame.map_data(|bytes| budget::housed(bytes, &room))))
            })
        }
        Err(error) => Refusal(error).into_response(),
    }
}

/// Counts requests by their route, never by the path that somebody wrote, and gives each an id by which its client and the log
/// speak of it.
async fn count(FromState(state): FromState<State>, request: Request, next: Next) -> Response {
    let began = Instant::now();
    let route = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned());
    let method = request.method().clone();
    let id = format!("req_{:032x}", rand::random::<u128>());
    let mut response = next.run(request).instrument(info_span!("request", id)).await.into_response();
    let status = response.status();
    state.metrics.answered(method.as_str(), route.as_deref(), status.as_u16(), began.elapsed());
    let error = response.extensions_mut().remove::<Reason>().map(|Reason(error)| error).unwrap_or_default();
    let (route, headers) = (route.as_deref().unwrap_or("none"), response.headers_mut());
    let job = headers.get(completions::JOB_HEADER).and_then(|job| job.to_str().ok()).unwrap_or_default();
    // That it is not ready is what a probe wants to know.
    if status.is_server_error() && route != READY {
        tracing::warn!(request = id, %method, route, status = status.as_u16(), job, error, "a request failed");
    } else {
        tracing::debug!(request = id, %method, route, status = status.as_u16(), job, "a request was answered");
    }
    if let Ok(id) = HeaderValue::from_str(&id) {
        headers.insert(REQUEST_HEADER, id);
    }
    response
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_route_is_in_the_document_and_nothing_else() {
        // What a router prints of itself is the only way to ask for its routes.
        let printed = format!("{:?}", all());
        let routes: BTreeSet<&str> =
            printed.split('"').filter(|text| text.starts_with('/') && !text.contains("__private")).collect();
        let document: serde_json::Value = serde_json::from_str(document::TEXT).unwrap();
        let described: BTreeSet<&str> = document["paths"].as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(routes, described);
    }
}
