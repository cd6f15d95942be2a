//! Bodies of requests, bounded in kind, size, time and, all together, in memory.

use std::time::Duration;

use axum::{
    body::{Body, HttpBody},
    extract::Request,
    http::header::{CONTENT_TYPE, EXPECT},
};
use baton_contract::causes;
use baton_openai::ApiError;
use bytes::Bytes;
use http_body_util::BodyExt;
use tokio::time::{Instant, timeout, timeout_at};

use crate::budget::{Budget, Room};

/// Bytes of a JSON body.
pub const MAX_JSON_BYTES: usize = 4 << 20;
/// How long one may take to come.
const WITHIN: Duration = Duration::from_secs(60);
/// How long nothing of it may come.
pub(crate) const SILENT: Duration = Duration::from_secs(15);
/// Room for the first bytes.
const FIRST: usize = 4 << 10;
/// Bytes that are read only to be thrown away, so that a client which is still sending them reads why they are not wanted,
/// and how long that may take.
const DISCARDED: usize = 16 << 20;
const DISCARDED_WITHIN: Duration = Duration::from_secs(2);

/// The whole body of a request that is to be JSON, and the room it takes.
#[derive(Debug)]
pub(crate) struct JsonBody {
    pub(crate) bytes: Vec<u8>,
    pub(crate) room: Room,
}

/// Reads a body of JSON. To be called once it is known who asks, and that this is not too much.
pub(crate) async fn json(budget: &Budget, request: Request) -> Result<JsonBody, ApiError> {
    check_kind(&request, "application/json")?;
    if request.body().size_hint().lower() > MAX_JSON_BYTES as u64 {
        discard(request).await;
        return Err(too_large());
    }
    let until = Instant::now() + WITHIN;
    let declared = request.body().size_hint().exact().map_or(MAX_JSON_BYTES, |bytes| bytes as usize);
    let mut body = request.into_body();
    let (mut bytes, mut room) = (Vec::new(), budget.none());
    while let Some(piece) = next(&mut body, until).await? {
        let length = bytes.len() + piece.len();
        if length > MAX_JSON_BYTES {
            drop(bytes);
            discard_rest(body).await;
            return Err(too_large());
        }
        if length > bytes.capacity() {
            let grown = length.max((2 * bytes.capacity()).max(FIRST).min(declared));
            let more = grown - bytes.capacity();
            if let Err(full) = room.grow(more as u64).await {
                drop((bytes, room, piece));
                discard_rest(body).await;
                return Err(full);
            }
            bytes.reserve_exact(grown - bytes.len());
        }
        bytes.extend_from_slice(&piece);
    }
    Ok(JsonBody { bytes, room })
}

/// The next bytes of a body that is not to be silent for long.
async fn next(body: &mut Body, until: Instant) -> Result<Option<Bytes>, ApiError> {
    loop {
        let frame = match timeout_at(until.min(Instant::now() + SILENT), body.frame()).await {
            Ok(None) => return Ok(None),
            Ok(Some(Ok(frame))) => frame,
            Ok(Some(Err(error))) => {
                return Err(ApiError::invalid(format!("the body could not be read: {}", causes(&error))));
            }
            Err(_) => {
                let message = format!(
                    "expected the whole body within {WITHIN:?}, and never nothing of it for {SILENT:?}; found that more was to \
                     come"
                );
                return Err(ApiError::new(408, "invalid_request_error", Some("request_timeout"), message));
            }
        };
        if let Ok(piece) = frame.into_data() {
            return Ok(Some(piece));
        }
    }
}

/// Refuses a body that does not say that it is of a kind. That is also what keeps pages of a browser from sending it without
/// being asked whether they may.
pub(crate) fn check_kind(request: &Request, expected: &str) -> Result<(), ApiError> {
    let content_type = request.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let kind = content_type.split(';').next().unwrap_or_default().trim();
    if kind.eq_ignore_ascii_case(expected) {
        return Ok(());
    }
    let found: String = kind.chars().take(80).collect();
    let found = if found.is_empty() { "none".to_owned() } else { found };
    let message = format!("expected the header `Content-Type: {expected}`, found {found}");
    Err(ApiError::new(415, "invalid_request_error", Some("unsupported_media_type"), message))
}

/// Reads what a client still sends of a request that is refused, and forgets it, for a moment.
pub(crate) async fn discard(request: Request) {
    // One that asks first sends nothing.
    if !request.headers().contains_key(EXPECT) {
        discard_rest(request.into_body()).await;
    }
}

async fn discard_rest(mut body: Body) {
    let all = async {
        let mut bytes = 0;
        while let Some(Ok(frame)) = body.frame().await {
            bytes += frame.data_ref().map_or(0, Bytes::len);
            if bytes > DISCARDED {
                return;
            }
        }
    };
    let _ = timeout(DISCARDED_WITHIN, all).await;
}

fn too_large() -> ApiError {
    let message = format!("expected a body of at most {MAX_JSON_BYTES} bytes, found more");
    ApiError::new(413, "invalid_request_error", Some("request_too_large"), message)
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use futures::{StreamExt, stream};

    use super::*;

    fn request(kind: &str, body: Body) -> Request {
        Request::builder().header(CONTENT_TYPE, kind).body(body).unwrap()
    }

    /// A body that sends so many bytes and then nothing more.
    fn unfinished(bytes: usize) -> Body {
        let piece = stream::iter([Ok::<_, Infallible>(vec![b'x'; bytes])]);
        Body::from_stream(piece.chain(stream::pending()))
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_is_of_a_kind_not_too_long_and_not_silent() {
        let budget = Budget::new(16 << 20);
        let read = async |kind: &str, body: Body| {
            json(&budget, request(kind, body)).await.map(|body| body.bytes).map_err(|error| error.status)
        };
        for kind in ["application/json", "Application/JSON; charset=utf-8"] {
            assert_eq!(read(kind, Body::from("{}")).await, Ok(b"{}".to_vec()));
        }
        for kind in ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "application/jsonx", ""]
        {
            assert_eq!(read(kind, Body::from("{}")).await, Err(415), "{kind}");
        }
        let long = vec![b'x'; MAX_JSON_BYTES + 1];
        let streamed = Body::from_stream(stream::iter(
            long.chunks(1 << 16).map(|piece| Ok::<_, Infallible>(piece.to_vec())).collect::<Vec<_>>(),
        ));
        assert_eq!(read("application/json", streamed).await, Err(413));
        assert_eq!(read("application/json", Body::from(long)).await, Err(413));
        assert_eq!(read("application/json", unfinished(100)).await, Err(408));
        assert!(budget.try_take(16 << 20).is_some(), "all room is free again");
    }

    #[tokio::test(start_paused = true)]
    async fn unfinished_bodies_take_no_more_than_there_is() {
        let budget = Budget::new(1 << 20);
        let bodies = (0..50).map(|_| json(&budget, request("application/json", unfinished(100_000))));
        let ends: Vec<u16> =
            futures::future::join_all(bodies).await.into_iter().map(|end| end.unwrap_err().status).collect();
        let (waited, full) = (ends.iter().filter(|end| **end == 408), ends.iter().filter(|end| **end == 503));
        assert_eq!((waited.count(), full.count()), (10, 40), "{ends:?}");
        assert!(budget.try_take(1 << 20).is_some(), "all room is free again");
    }
}
