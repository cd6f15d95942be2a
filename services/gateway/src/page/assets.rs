//! The page's files, which are part of the binary.

use axum::{
    extract::Path,
    http::{
        HeaderValue,
        header::{
            CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, HeaderMap, IF_NONE_MATCH, REFERRER_POLICY,
            X_CONTENT_TYPE_OPTIONS,
        },
    },
    response::{IntoResponse, Response},
};
use baton_openai::ApiError;
use sha2::{Digest, Sha256};

use crate::refusal::Refusal;

/// Nothing but the gateway's own files runs, is shown or is asked; nobody else shows the page in a frame.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

const INDEX: &str = include_str!("../../assets/index.html");

const CSS: &str = "text/css; charset=utf-8";
const JAVASCRIPT: &str = "text/javascript; charset=utf-8";

/// Name, kind and text of every file that the page asks for.
const FILES: [(&str, &str, &str); 14] = [
    ("icon.svg", "image/svg+xml", include_str!("../../assets/icon.svg")),
    ("page.css", CSS, include_str!("../../assets/page.css")),
    ("engines.js", JAVASCRIPT, include_str!("../../assets/engines.js")),
    ("flow.js", JAVASCRIPT, include_str!("../../assets/flow.js")),
    ("format.js", JAVASCRIPT, include_str!("../../assets/format.js")),
    ("gateway.js", JAVASCRIPT, include_str!("../../assets/gateway.js")),
    ("geometry.js", JAVASCRIPT, include_str!("../../assets/geometry.js")),
    ("jobs.js", JAVASCRIPT, include_str!("../../assets/jobs.js")),
    ("journey.js", JAVASCRIPT, include_str!("../../assets/journey.js")),
    ("live.js", JAVASCRIPT, include_str!("../../assets/live.js")),
    ("meters.js", JAVASCRIPT, include_str!("../../assets/meters.js")),
    ("page.js", JAVASCRIPT, include_str!("../../assets/page.js")),
    ("submit.js", JAVASCRIPT, include_str!("../../assets/submit.js")),
    ("waterfall.js", JAVASCRIPT, include_str!("../../assets/waterfall.js")),
];

pub(super) async fn index(headers: HeaderMap) -> Response {
    serve("text/html; charset=utf-8", INDEX, &headers)
}

pub(super) async fn asset(Path(name): Path<String>, headers: HeaderMap) -> Result<Response, Refusal> {
    let found = FILES.iter().find(|(known, ..)| *known == name);
    let (_, kind, text) = found.ok_or_else(|| ApiError::not_found("the page has no such file"))?;
    Ok(serve(kind, text, &headers))
}

fn serve(kind: &'static str, text: &'static str, asked: &HeaderMap) -> Response {
    let digest = Sha256::digest(text.as_bytes());
    let tag = format!("\"{}\"", digest[..12].iter().map(|byte| format!("{byte:02x}")).collect::<String>());
    let known = asked.get(IF_NONE_MATCH).is_some_and(|known| known.as_bytes() == tag.as_bytes());
    let mut response = if known { axum::http::StatusCode::NOT_MODIFIED.into_response() } else { text.into_response() };
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    // A gateway of another release has another page: it is asked each time, and mostly says that nothing changed.
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    if let Ok(tag) = HeaderValue::from_str(&tag) {
        headers.insert(ETAG, tag);
    }
    response
}
