//! `/v1/chat/completions` and `/v1/completions`: publishes a request, and answers with what the bus tells of its job.

mod abandon;
mod live;

use std::time::Duration;

use axum::{
    Json,
    extract::State as FromState,
    http::{HeaderMap, HeaderName, HeaderValue},
    response::{IntoResponse, Response},
};
use baton_bus::{
    answers::{Ask, Event},
    trace, unix_ms,
};
use baton_contract::{JobId, Name, causes, request::Request};
use tokio::time::{Instant, timeout};
use tracing::{Instrument, info_span};

use crate::{
    State,
    auth::{Caller, Permit},
    openai::{self, ApiError, Call, Endpoint},
    receive::JsonBody,
    webhooks,
};
use abandon::Abandon;

/// Tells the job that a request became.
pub(crate) const JOB_HEADER: HeaderName = HeaderName::from_static("baton-job-id");
/// Names the lane of a request, as `service_tier` does.
const LANE_HEADER: &str = "baton-lane";
/// Names the job: the same request under the same key is the same job.
const KEY_HEADER: &str = "idempotency-key";
/// `true` has the tenant's webhook called when the job has ended.
const WEBHOOK_HEADER: &str = "baton-webhook";
/// A stream whose job has not begun by then begins all the same, so that its client knows that somebody is there.
const HEAD_WITHIN: Duration = Duration::from_secs(15);

pub(crate) async fn chat(
    state: FromState<State>,
    caller: Caller,
    headers: HeaderMap,
    body: Result<JsonBody, ApiError>,
) -> Response {
    answer(Endpoint::ChatCompletions, state, caller, headers, body).await
}

pub(crate) async fn completions(
    state: FromState<State>,
    caller: Caller,
    headers: HeaderMap,
    body: Result<JsonBody, ApiError>,
) -> Response {
    answer(Endpoint::Completions, state, caller, headers, body).await
}

async fn answer(
    endpoint: Endpoint,
    FromState(state): FromState<State>,
    caller: Caller,
    headers: HeaderMap,
    body: Result<JsonBody, ApiError>,
) -> Response {
    let posting = body.and_then(|JsonBody(body)| Posting::read(&state, endpoint, &headers, &body));
    let posting = match posting {
        Ok(posting) => posting,
        Err(error) => return error.into_response(),
    };
    let permit = match caller.admit() {
        Ok(permit) => permit,
        Err(error) => return error.into_response(),
    };
    let span = info_span!("gateway", job = %posting.job, tenant = %caller.tenant);
    trace::continue_from(&span, Some(&trace_headers(&headers)));
    let job = posting.job.clone();
    let mut response =
        posting.post(state, &caller.tenant, permit).instrument(span).await.unwrap_or_else(IntoResponse::into_response);
    if let Ok(job) = HeaderValue::from_str(job.as_str()) {
        response.headers_mut().insert(JOB_HEADER, job);
    }
    response
}

/// A call with all that its headers and the pipeline have to say.
struct Posting {
    call: Call,
    lane: Name,
    model: Name,
    job: JobId,
    /// Whether the caller named the job: then it may be an earlier one, and goes on without its caller.
    named: bool,
    /// Whether a webhook tells the end: then the job goes on without its caller, too.
    told: bool,
}

impl Posting {
    fn read(state: &State, endpoint: Endpoint, headers: &HeaderMap, body: &[u8]) -> Result<Self, ApiError> {
        let mut call = openai::read(endpoint, body)?;
        let facts = &state.facts;
        let model = match &call.model {
            None => facts.default_model.clone(),
            Some(model) => {
                let known = facts.models.iter().find(|known| known.as_str() == model);
                let unknown = || ApiError::unknown_model(&model.chars().take(80).collect::<String>());
                known.cloned().ok_or_else(unknown)?
            }
        };
        let header = text(headers, LANE_HEADER)?;
        let tier = call.request.lane.take();
        let lane = match header.or(tier.as_deref()) {
            None => facts.default_lane().clone(),
            Some(lane) => {
                let known = facts.lanes.iter().find(|known| known.as_str() == lane);
                known.cloned().ok_or_else(|| {
                    let lanes = facts.lanes.iter().map(Name::as_str).collect::<Vec<_>>().join(", ");
                    let lane: String = lane.chars().take(80).collect();
                    let param = if header.is_some() { "Baton-Lane" } else { "service_tier" };
                    ApiError::field(
                        param,
                        format!("{param}: expected auto, default or a lane ({lanes}), found {lane:?}"),
                    )
                })?
            }
        };
        let (job, named) = match text(headers, KEY_HEADER)? {
            None => (JobId::generate(unix_ms(), rand::random()), false),
            Some(key) => {
                let bad = |error| ApiError::field("Idempotency-Key", format!("Idempotency-Key: {error}"));
                (JobId::new(key).map_err(bad)?, true)
            }
        };
        let told = match text(headers, WEBHOOK_HEADER)? {
            None | Some("false") => false,
            Some("true") => true,
            Some(_) => return Err(ApiError::field("Baton-Webhook", "Baton-Webhook: expected true or false")),
        };
        Ok(Self { call, lane, model, job, named, told })
    }

    /// The request as it goes on the bus.
    fn body(&self, most: usize) -> Result<Vec<u8>, ApiError> {
        let request = Request { id: Some(self.job.to_string()), ..self.call.request.clone() };
        let body = serde_json::to_vec(&request).map_err(|error| ApiError::internal(causes(&error)))?;
        if body.len() > most {
            let message =
                format!("expected a request of at most {most} bytes, as the broker takes, found {}", body.len());
            return Err(ApiError::new(413, "invalid_request_error", Some("request_too_large"), message));
        }
        Ok(body)
    }

    async fn post(self, state: State, tenant: &Name, permit: Permit) -> Result<Response, ApiError> {
        let began = Instant::now();
        let body = self.body(state.bus.max_request_bytes())?;
        let unreachable = || ApiError::unavailable("the broker can't be reached now; try again later");
        if !state.bus.is_connected() {
            return Err(unreachable());
        }
        let Self { call, lane, model, job, named, told } = self;
        if told && !webhooks::has_webhook(&state, tenant) {
            let message = "Baton-Webhook: the tenant has no webhook; add one to the gateway's file of keys";
            return Err(ApiError::field("Baton-Webhook", message));
        }
        let mut abandon = Abandon::new(&state, tenant, &job, !named && !told);
        let ask = Ask { tenant, lane: &lane, job: &job, body, live: call.stream, known: named };
        let asked = state.client.ask(ask).await;
        let mut answer = asked.map_err(|error| {
            // It was not taken, or nobody knows; to look for it among all that wait would cost a full queue dearly.
            abandon.ended();
            if state.bus.is_connected() { error.into() } else { unreachable() }
        })?;
        if told {
            webhooks::follow_job(&state, tenant, &job).await?;
        }
        if !call.stream {
            let ended = answer.end().await;
            abandon.ended();
            return whole(call.endpoint, ended);
        }
        // Until it begins, it may end in an error with a status of its own.
        let first = timeout(HEAD_WITHIN, answer.next()).await.ok();
        if let Some(Event::Result(outcome)) = &first
            && outcome.error.is_some()
        {
            abandon.ended();
            return whole(call.endpoint, Event::Result(outcome.clone()));
        }
        if let Some(refused @ Event::Refused(_)) = first {
            abandon.ended();
            return whole(call.endpoint, refused);
        }
        let open = live::Open::new(&state.metrics, began, permit);
        Ok(live::respond(call, &model, answer, first, abandon, open))
    }
}

/// The answer to a call whose job has ended.
fn whole(endpoint: Endpoint, ended: Event) -> Result<Response, ApiError> {
    match ended {
        Event::Result(outcome) => Ok(Json(openai::response(endpoint, &outcome)?).into_response()),
        Event::Refused(refusal) => Err(ApiError::from(&refusal.error)),
        Event::Delta(_) => Err(ApiError::internal("a token is no answer")),
    }
}

/// A header's text, if it is there.
fn text<'a>(headers: &'a HeaderMap, name: &str) -> Result<Option<&'a str>, ApiError> {
    let Some(value) = headers.get(name) else { return Ok(None) };
    let text =
        value.to_str().map_err(|_| ApiError::field(name, format!("{name}: expected ASCII, found other bytes")))?;
    Ok(Some(text.trim()))
}

/// The caller's trace, as the bus carries it.
fn trace_headers(headers: &HeaderMap) -> baton_bus::HeaderMap {
    let mut carried = baton_bus::HeaderMap::new();
    for name in ["traceparent", "tracestate"] {
        if let Some(value) = headers.get(name).and_then(|value| value.to_str().ok()) {
            carried.insert(name, value);
        }
    }
    carried
}
