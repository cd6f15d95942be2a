//! Streams over HTTP: server-sent events, made as the reader takes them.
//!
//! Nothing is made ahead of the reader. What it is behind with waits in the bounded buffer of `bus::answers`; tokens that find
//! no room there are dropped, and come with the result. A slow reader so costs that buffer and no more.

use std::{convert::Infallible, fmt::Write, time::Duration};

use axum::{
    body::Body,
    http::{
        HeaderValue,
        header::{CACHE_CONTROL, CONTENT_TYPE},
    },
    response::Response,
};
use baton_bus::{
    answers::{Answer, Event},
    unix_ms,
};
use baton_contract::Name;
use bytes::Bytes;
use futures::stream;
use serde_json::Value;
use tokio::time::{Instant, timeout};

use super::Abandon;
use crate::{
    auth::Permit,
    metrics::{Metrics, OpenStream},
    openai::{ApiError, Call, Chunks},
};

/// How often a stream that has nothing to say says so, for whatever stands between to keep the connection.
const SIGN_OF_LIFE: Duration = Duration::from_secs(15);
const NOTHING_YET: &[u8] = b": waiting\n\n";

/// What is held as long as a stream is open.
pub(super) struct Open {
    metrics: Metrics,
    began: Instant,
    _permit: Permit,
    _stream: OpenStream,
}

impl Open {
    pub(super) fn new(metrics: &Metrics, began: Instant, permit: Permit) -> Self {
        Self { metrics: metrics.clone(), began, _permit: permit, _stream: metrics.open_stream() }
    }
}

struct Live {
    answer: Answer,
    /// Heard before the stream began.
    first: Option<Event>,
    chunks: Chunks,
    abandon: Abandon,
    told: bool,
    ended: bool,
    open: Open,
}

pub(super) fn respond(
    call: Call,
    model: &Name,
    answer: Answer,
    first: Option<Event>,
    abandon: Abandon,
    open: Open,
) -> Response {
    let n = call.request.n.unwrap_or(1);
    let job = answer.job().to_string();
    let chunks = Chunks::new(call.endpoint, &job, model.as_str(), unix_ms() / 1_000, n, call.include_usage);
    let live = Live { answer, first, chunks, abandon, told: false, ended: false, open };
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
                    match self.chunks.end(&outcome) {
                        Ok(chunks) => return Some(frames(&chunks, true)),
                        Err(error) => return Some(failure(&error)),
                    }
                }
                Event::Refused(refusal) => {
                    self.end();
                    return Some(failure(&ApiError::from(&refusal.error)));
                }
            };
            if !chunks.is_empty() {
                if !std::mem::replace(&mut self.told, true) {
                    self.open.metrics.first_token(self.open.began.elapsed());
                }
                return Some(frames(&chunks, false));
            }
        }
        None
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
