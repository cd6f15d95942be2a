//! Streams over HTTP: server-sent events, made as the reader takes them.
//!
//! Nothing is made ahead of the reader. What it is behind with waits in the bounded buffer of `bus::answers`; tokens that find
//! no room there are dropped, and come with the result. A slow reader so costs that buffer and no more.

use std::{convert::Infallible, fmt::Write, sync::Arc, time::Duration};

use axum::{
    body::Body,
    http::{
        HeaderValue,
        header::{CACHE_CONTROL, CONTENT_TYPE},
    },
    response::Response,
};
use baton_bus::clients::answers::{Answer, Event};
use baton_contract::{Name, outcome::Outcome};
use baton_openai::{ApiError, Chunks};
use bytes::Bytes;
use futures::stream;
use serde_json::Value;
use tokio::time::{Instant, timeout};

use super::{Abandon, afford};
use crate::{State, auth::Permit, budget, metrics::OpenStream, refusal::Refusal};

/// How often a stream that has nothing to say says so, for whatever stands between to keep the connection.
const SIGN_OF_LIFE: Duration = Duration::from_secs(15);
const NOTHING_YET: &[u8] = b": waiting\n\n";

/// What is held as long as a stream is open.
pub(super) struct Open {
    state: State,
    tenant: Name,
    began: Instant,
    _permit: Permit,
    _stream: OpenStream,
}

impl Open {
    pub(super) fn new(state: &State, tenant: &Name, began: Instant, permit: Permit) -> Self {
        let stream = state.metrics.open_stream();
        Self { state: state.clone(), tenant: tenant.clone(), began, _permit: permit, _stream: stream }
    }
}

struct Live {
    answer: Answer,
    /// Heard before the stream began.
    first: Option<Event>,
    chunks: Chunks,
    abandon: Abandon,
    /// Whether a token was sent.
    has_sent: bool,
    ended: bool,
    open: Open,
}

pub(super) fn respond(chunks: Chunks, answer: Answer, first: Option<Event>, abandon: Abandon, open: Open) -> Response {
    let live = Live { answer, first, chunks, abandon, has_sent: false, ended: false, open };
    let frames = stream::unfold(live, |mut live| async move {
        let frame = live.next().await?;
        Some((Ok::<_, Infallible>(frame), live))
    });
    let mut response = Response::new(Body::from_stream(frames));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // nginx would wait for more.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

impl Live {
    /// The next bytes for the reader; none after the end.
    async fn next(&mut self) -> Option<Bytes> {
        while !self.ended {
            let event = match self.first.take() {
                Some(event) => event,
                None => match timeout(SIGN_OF_LIFE, self.answer.next()).await {
                    Ok(event) => event,
                    Err(_) => return Some(Bytes::from_static(NOTHING_YET)),
                },
            };
            let chunks = match event {
                Event::Delta(delta) => self.chunks.token(&delta),
                Event::Result(outcome) => {
                    self.end();
                    return Some(self.last(outcome).await.unwrap_or_else(|Refusal(error)| failure(&error)));
                }
                Event::Refused(refusal) => {
                    self.end();
                    return Some(failure(&ApiError::from(&refusal.error)));
                }
            };
            if !chunks.is_empty() {
                if !std::mem::replace(&mut self.has_sent, true) {
                    self.open.state.metrics.first_token(self.open.began.elapsed());
                }
                return Some(frames(&chunks, false));
            }
        }
        None
    }

    /// What is left when the result is there. It may be the whole answer, for a reader that took none of it before.
    async fn last(&mut self, outcome: Box<Outcome>) -> Result<Bytes, Refusal> {
        let (outcome, room) = afford(&self.open.state, &self.open.tenant, outcome).await?;
        Ok(budget::housed(frames(&self.chunks.end(&outcome)?, true), &Arc::new(room)))
    }

    fn end(&mut self) {
        self.ended = true;
        self.abandon.ended();
    }
}

fn frames(chunks: &[Value], last: bool) -> Bytes {
    let mut text = String::new();
    for chunk in chunks {
        // Writing into a text can't fail.
        let _ = write!(text, "data: {chunk}\n\n");
    }
    if last {
        text.push_str("data: [DONE]\n\n");
    }
    text.into()
}

fn failure(error: &ApiError) -> Bytes {
    format!("data: {}\n\n", error.body()).into()
}
