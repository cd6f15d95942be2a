//! `/v1/chat/completions` and `/v1/completions`: publishes a request, and answers with what the bus tells of its job.

mod abandon;
mod afford;
mod live;

use std::{sync::Arc, time::Duration};

use axum::{
    Extension,
    body::Body,
    extract::{Request as HttpRequest, State as FromState},
    http::{HeaderMap, HeaderName, HeaderValue, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
};
use baton_bus::{
    clients::answers::{Ask, Event},
    connection::trace,
    unix_ms,
};
use baton_contract::{JobId, Name, causes, request::Request};
use baton_openai::{ApiError, Call, Chunks, Endpoint};
use tokio::time::{Instant, timeout};
use tracing::{Instrument, info_span};

use crate::{
    State,
    auth::{Caller, Permit},
    budget::{self, Housed, Room},
    receive::{self, JsonBody},
    refusal::{Refusal, of_bus},
    webhooks,
};
use abandon::Abandon;
use afford::afford;

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

pub(crate) async fn chat(state: FromState<State>, caller: Caller, request: HttpRequest) -> Response {
    answer(Endpoint::ChatCompletions, state, caller, request).await
}

pub(crate) async fn completions(state: FromState<State>, caller: Caller, request: HttpRequest) -> Response {
    answer(Endpoint::Completions, state, caller, request).await
}

async fn answer(
    endpoint: Endpoint,
    FromState(state): FromState<State>,
    caller: Caller,
    request: HttpRequest,
) -> Response {
    let headers = request.headers().clone();
    // Whether it may ask at all is known before anything of what it asks is in memory.
    let permit = match caller.admit() {
        Ok(permit) => permit,
        Err(error) => {
            receive::discard(request).await;
            return Refusal(error).into_response();
        }
    };
    let body = receive::json(&state.budget, request).await;
    let posting = match body.and_then(|body| Posting::read(&state, endpoint, &headers, body)) {
        Ok(posting) => posting,
        Err(error) => return Refusal(error).into_response(),
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
    /// Whether the client named the job: then it may be an earlier one, and goes on without its client.
    named: bool,
    /// Whether a webhook is called at the end: then the job goes on without its client, too.
    notify: bool,
    /// What the request takes in memory, until it is the broker's.
    room: Room,
}

impl Posting {
    fn read(state: &State, endpoint: Endpoint, headers: &HeaderMap, body: JsonBody) -> Result<Self, ApiError> {
        let mut call = baton_openai::read(endpoint, &body.bytes, &state.facts.engines)?;
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
        let notify = match text(headers, WEBHOOK_HEADER)? {
            None | Some("false") => false,
            Some("true") => true,
            Some(_) => return Err(ApiError::field("Baton-Webhook", "Baton-Webhook: expected true or false")),
        };
        Ok(Self { call, lane, model, job, named, notify, room: body.room })
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

    async fn post(self, state: State, tenant: &Name, permit: Permit) -> Result<Response, Refusal> {
        let began = Instant::now();
        let body = self.body(state.bus.max_request_bytes())?;
        let unreachable = || ApiError::unavailable("the broker can't be reached now; try again later");
        if !state.bus.is_connected() {
            return Err(unreachable().into());
        }
        // Before anything is asked for, for without the broker's time there is no stream.
        let created = if self.call.stream { state.clock.now_ms().await? / 1_000 } else { 0 };
        let Self { call, lane, model, job, named, notify, room } = self;
        let Call { endpoint, request, stream, include_usage, .. } = call;
        let answers = request.n.unwrap_or(1);
        drop(request);
        if notify && !webhooks::has_webhook(&state, tenant) {
            let message = "Baton-Webhook: the tenant has no webhook; add one to the gateway's file of keys";
            return Err(ApiError::field("Baton-Webhook", message).into());
        }
        let mut abandon = Abandon::new(&state, tenant, &job, !named && !notify);
        let ask = Ask { tenant, lane: &lane, job: &job, body, live: stream, known: named };
        let asked = state.client.ask(ask).await;
        let mut answer = asked.map_err(|error| {
            // It was not taken, or nobody knows; to look for it among all that wait would cost a full queue dearly.
            abandon.ended();
            if state.bus.is_connected() { of_bus(&error) } else { unreachable() }
        })?;
        // It is the broker's now, and no longer here.
        drop(room);
        if notify {
            webhooks::follow_job(&state, tenant, &job).await?;
        }
        if !stream {
            let ended = answer.end().await;
            abandon.ended();
            return whole(&state, tenant, endpoint, ended).await;
        }
        // Until it begins, it may end in an error with a status of its own.
        let first = timeout(HEAD_WITHIN, answer.next()).await.ok();
        if let Some(Event::Result(outcome)) = &first
            && outcome.error.is_some()
        {
            abandon.ended();
            return whole(&state, tenant, endpoint, Event::Result(outcome.clone())).await;
        }
        if let Some(refused @ Event::Refused(_)) = first {
            abandon.ended();
            return whole(&state, tenant, endpoint, refused).await;
        }
        let chunks = Chunks::new(endpoint, job.as_str(), model.as_str(), created, answers, include_usage);
        let open = live::Open::new(&state, tenant, began, permit);
        Ok(live::respond(chunks, answer, first, abandon, open))
    }
}

/// The answer to a call whose job has ended.
async fn whole(state: &State, tenant: &Name, endpoint: Endpoint, ended: Event) -> Result<Response, Refusal> {
    match ended {
        Event::Result(outcome) => {
            let (outcome, room) = afford(state, tenant, outcome).await?;
            let text = baton_openai::response(endpoint, &outcome)?.to_string();
            let body = Body::from(budget::housed(text.into(), &Arc::new(room)));
            Ok(([(CONTENT_TYPE, "application/json")], Extension(Housed), body).into_response())
        }
        Event::Refused(refusal) => Err(ApiError::from(&refusal.error).into()),
        Event::Delta(_) => Err(ApiError::internal("a token is no answer").into()),
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
