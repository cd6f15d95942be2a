//! Reads an upload's form as it comes: the file goes to the store a piece at a time, and nothing else may be long.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use axum::{
    body::Body,
    extract::{
        FromRequest, Request,
        multipart::{Field, Multipart, MultipartError},
    },
};
use baton_contract::causes;
use baton_openai::ApiError;
use baton_storage::files::{self, Extent, Upload};
use futures::{StreamExt, stream};
use tokio::{task::yield_now, time::timeout};

use crate::receive::{SILENT, check_kind, discard};

/// Bytes that a batch's input may have.
pub(super) const MAX_BYTES: u64 = 200 << 20;
/// Bytes of the form that may be read before they make a whole header or another piece of the file.
const MAX_UNREAD: u64 = 256 << 10;
const MAX_TEXT: usize = 256;
const MAX_FILENAME: usize = 255;
/// How long a file may be kept: an hour to 30 days.
const EXPIRES_AFTER: std::ops::RangeInclusive<u64> = 3_600..=2_592_000;

/// What came.
pub(super) struct Received {
    pub(super) filename: String,
    pub(super) extent: Extent,
    /// In seconds.
    pub(super) expires_after: Option<u64>,
}

#[derive(Default)]
struct Form {
    purpose: Option<String>,
    anchor: Option<String>,
    seconds: Option<String>,
    filename: Option<String>,
}

/// Reads the form, and writes its file. If it does not hold, what was stored of it is removed.
pub(super) async fn receive(request: Request, mut upload: Upload) -> Result<Received, ApiError> {
    if let Err(error) = check_kind(&request, "multipart/form-data") {
        discard(request).await;
        return Err(error);
    }
    let unread = Arc::new(AtomicU64::new(0));
    let request = metered(request, unread.clone());
    let multipart = Multipart::from_request(request, &()).await;
    let mut multipart = multipart.map_err(|error| ApiError::invalid(error.body_text()))?;
    let mut form = Form::default();
    while let Some(mut field) = multipart.next_field().await.map_err(unreadable)? {
        unread.store(0, Ordering::Relaxed);
        let name = field.name().unwrap_or_default().to_owned();
        let slot = match name.as_str() {
            "purpose" => &mut form.purpose,
            "expires_after[anchor]" => &mut form.anchor,
            "expires_after[seconds]" => &mut form.seconds,
            "file" => {
                if form.filename.is_some() {
                    return Err(ApiError::field("file", "file: expected one, found two"));
                }
                form.filename = Some(filename(&field)?);
                while let Some(piece) = field.chunk().await.map_err(unreadable)? {
                    unread.store(0, Ordering::Relaxed);
                    upload.push(&piece).await.map_err(unstored)?;
                }
                continue;
            }
            _ => {
                let shown: String = name.chars().take(80).collect();
                return Err(ApiError::field(shown.clone(), format!("{shown}: unknown field of an upload")));
            }
        };
        if slot.is_some() {
            return Err(ApiError::field(name.clone(), format!("{name}: expected one, found two")));
        }
        *slot = Some(text(&name, &mut field).await?);
    }
    let expires_after = form.expires_after()?;
    form.check_purpose()?;
    let filename = form.filename.ok_or_else(|| ApiError::field("file", "file: expected a file, found none"))?;
    if upload.bytes() == 0 {
        return Err(ApiError::field("file", "file: expected at least one byte, found an empty file"));
    }
    let extent = upload.finish().await.map_err(unstored)?;
    Ok(Received { filename, extent, expires_after })
}

/// The same request, whose body fails when more comes than anybody has asked for, or nothing for long: the parser itself holds
/// headers of any length, and waits for ever. It also takes all that is there before it looks at it, so between two pieces there
/// is always a moment in which nothing is there.
fn metered(request: Request, unread: Arc<AtomicU64>) -> Request {
    let (parts, body) = request.into_parts();
    let pieces = stream::unfold(body.into_data_stream(), move |mut pieces| {
        let unread = unread.clone();
        async move {
            yield_now().await;
            let piece = match timeout(SILENT, pieces.next()).await {
                Ok(piece) => piece?.map_err(|error| causes(&error)),
                Err(_) => Err(format!("nothing of it came for {SILENT:?}")),
            };
            let piece =
                piece.and_then(|piece| match unread.fetch_add(piece.len() as u64, Ordering::Relaxed) > MAX_UNREAD {
                    true => Err(format!("a header of a part has more than {MAX_UNREAD} bytes")),
                    false => Ok(piece),
                });
            Some((piece, pieces))
        }
    });
    Request::from_parts(parts, Body::from_stream(pieces))
}

/// The last part of the name that the sender's file has.
fn filename(field: &Field<'_>) -> Result<String, ApiError> {
    let name = field.file_name().unwrap_or_default();
    let name = name.rsplit(['/', '\\']).next().unwrap_or_default();
    let name: String = name.chars().filter(|c| !c.is_control()).collect();
    if name.len() > MAX_FILENAME {
        let message = format!("file: expected a filename of at most {MAX_FILENAME} bytes, found {}", name.len());
        return Err(ApiError::field("file", message));
    }
    Ok(if name.is_empty() { "file".into() } else { name })
}

async fn text(name: &str, field: &mut Field<'_>) -> Result<String, ApiError> {
    let mut bytes = Vec::new();
    while let Some(piece) = field.chunk().await.map_err(unreadable)? {
        bytes.extend_from_slice(&piece);
        if bytes.len() > MAX_TEXT {
            return Err(ApiError::field(name, format!("{name}: expected at most {MAX_TEXT} bytes")));
        }
    }
    String::from_utf8(bytes).map_err(|_| ApiError::field(name, format!("{name}: expected UTF-8")))
}

impl Form {
    fn check_purpose(&self) -> Result<(), ApiError> {
        match self.purpose.as_deref() {
            Some("batch") => Ok(()),
            None => Err(ApiError::field("purpose", "purpose: expected \"batch\", found none")),
            Some(other) => {
                let message = format!(
                    "purpose: expected \"batch\", found {other:?}; nothing here reads files for another purpose"
                );
                Err(ApiError::field("purpose", message))
            }
        }
    }

    fn expires_after(&self) -> Result<Option<u64>, ApiError> {
        let (anchor, seconds) = match (&self.anchor, &self.seconds) {
            (None, None) => return Ok(None),
            (Some(anchor), Some(seconds)) => (anchor, seconds),
            _ => return Err(ApiError::field("expires_after", "expires_after: expected both anchor and seconds")),
        };
        checked_expiry("expires_after", anchor, seconds.parse().ok()).map(Some)
    }
}

/// Checks a wish for a file to expire.
pub(crate) fn checked_expiry(param: &str, anchor: &str, seconds: Option<u64>) -> Result<u64, ApiError> {
    if anchor != "created_at" {
        return Err(ApiError::field(param, format!("{param}.anchor: expected \"created_at\"")));
    }
    let (from, to) = EXPIRES_AFTER.into_inner();
    let expected = || ApiError::field(param, format!("{param}.seconds: expected {from} to {to}"));
    seconds.filter(|seconds| EXPIRES_AFTER.contains(seconds)).ok_or_else(expected)
}

fn unreadable(error: MultipartError) -> ApiError {
    ApiError::invalid(format!("the form can't be read: {}", error.body_text()))
}

fn unstored(error: files::Error) -> ApiError {
    match error {
        files::Error::TooLarge { max } => {
            let message = format!("file: expected at most {max} bytes; split it into several batches");
            let error = ApiError::new(413, "invalid_request_error", Some("file_too_large"), message);
            ApiError { param: Some("file".into()), ..error }
        }
        error => ApiError::unavailable(causes(&error)),
    }
}
