//! `/v1/files`: users' files, whose bytes lie in the object store and whose names lie on the bus.
//!
//! A file exists once it is on the shelf, and that is written last; so one whose upload dies is never seen.

mod chores;
mod form;
mod page;

use std::{num::NonZeroUsize, sync::Arc, time::Duration};

use axum::{
    Json, Router,
    body::Body,
    extract::{DefaultBodyLimit, FromRequestParts, Path, Query, Request, State as Shared, rejection::QueryRejection},
    http::{HeaderValue, header, request::Parts},
    response::Response,
    routing::{get, post},
};
use baton_bus::gateways::files::{File, Form, Purpose};
use baton_contract::{JobId, Name, causes};
use baton_openai::ApiError;
use baton_storage::files::{self, Blob, Extent, Files};
use futures::{StreamExt, TryStreamExt, stream};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::timeout;

pub(crate) use self::{
    chores::sweep_regularly,
    form::checked_expiry,
    page::{Order, page},
};
use crate::{
    State,
    auth::{Caller, Tenant},
    budget,
    refusal::Refusal,
};

/// How long an upload may take altogether. A slower client would hold a connection for nothing.
pub(crate) const UPLOAD_WITHIN: Duration = Duration::from_secs(3_600);
/// Parts of an upload that are on their way to the store at a time: a request takes some tens of milliseconds there, so these
/// make some 100 MB/s.
const PARTS_AT_ONCE: NonZeroUsize = NonZeroUsize::new(8).unwrap();
/// Parts of a file that is read. A client that has stopped reading holds as many in memory.
const PARTS_READ_AT_ONCE: NonZeroUsize = NonZeroUsize::new(4).unwrap();
/// Files of one page at most, and without a limit.
const PAGE: usize = 10_000;

/// The routes of this module.
pub fn routes() -> Router<State> {
    // The upload counts its bytes itself, as they pass.
    let files = get(list).merge(post(upload).layer(DefaultBodyLimit::disable()));
    Router::new()
        .route("/v1/files", files)
        .route("/v1/files/{file}", get(retrieve).delete(remove))
        .route("/v1/files/{file}/content", get(content))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    limit: Option<usize>,
    after: Option<String>,
    order: Option<Order>,
    purpose: Option<String>,
}

/// The id in a path, whatever it looks like.
pub(crate) struct Id(pub(crate) String);

impl FromRequestParts<State> for Id {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &State) -> Result<Self, Refusal> {
        let Path(id) =
            Path::from_request_parts(parts, state).await.map_err(|error| ApiError::field("id", error.body_text()))?;
        Ok(Self(id))
    }
}

/// The store, or why there is none.
pub(crate) fn store(state: &State) -> Result<&Files, ApiError> {
    let missing = "this gateway has no object store; give it one (store.url in the pipeline file)";
    state.files.as_ref().ok_or_else(|| ApiError::unavailable(missing))
}

/// A new id with a prefix; later ones sort after earlier ones.
pub(crate) fn new_id(prefix: &str) -> String {
    format!("{prefix}{}", uuid::Uuid::now_v7().simple())
}

/// A text as an id of ours, if it looks like one: the prefix and 32 hexadecimal digits, so that it is safe in a key.
pub(crate) fn known_id(prefix: &str, text: &str) -> Option<JobId> {
    let digits = text.strip_prefix(prefix)?;
    let hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    (digits.len() == 32 && digits.bytes().all(hex)).then(|| JobId::new(text).ok()).flatten()
}

/// The blobs that a run of a tenant's batch writes: answers and errors.
pub(crate) fn blobs_of_run(tenant: &Name, run: &str) -> [Blob; 2] {
    ["output", "error"].map(|kind| Blob::of_upload(tenant.as_str(), &format!("{run}/{kind}")))
}

/// Where the bytes of a file are.
pub(crate) fn place(file: &File) -> Option<(Blob, Extent)> {
    let (form, part_bytes) = match file.form {
        Form::Plain => (files::Form::Plain, file.part_bytes),
        Form::Checked => (files::Form::Checked, file.part_bytes),
        Form::Sealed => (files::Form::Sealed, file.sealed_part_bytes?),
    };
    Some((file.blob.parse().ok()?, Extent { bytes: file.bytes, part_bytes, form }))
}

/// The same as a file's record says it: the bytes of a part, how parts are stored, and the bytes of a sealed part.
pub(crate) fn recorded(extent: Extent) -> (u64, Form, Option<u64>) {
    match extent.form {
        files::Form::Plain => (extent.part_bytes, Form::Plain, None),
        files::Form::Checked => (extent.part_bytes, Form::Checked, None),
        files::Form::Sealed => (0, Form::Sealed, Some(extent.part_bytes)),
    }
}

/// A tenant's file that has not expired.
pub(crate) async fn find(state: &State, tenant: &Name, id: &str) -> Result<Option<File>, baton_bus::Error> {
    let Some(key) = known_id("file-", id) else { return Ok(None) };
    let kept = state.stores.files.get(tenant, &key).await?;
    let Some(file) = kept.map(|kept| kept.value) else { return Ok(None) };
    Ok(match file.expires_at {
        Some(expires) if expires <= now(state).await? => None,
        _ => Some(file),
    })
}

/// The broker's time in seconds since 1970: gateways' clocks may be wrong, and they may differ.
pub(crate) async fn now(state: &State) -> Result<u64, baton_bus::Error> {
    Ok(state.clock.now_ms().await? / 1_000)
}

async fn found(state: &State, tenant: &Name, id: &str) -> Result<File, Refusal> {
    let missing = || ApiError { param: Some("id".into()), ..ApiError::not_found("no such file object") };
    Ok(find(state, tenant, id).await?.ok_or_else(missing)?)
}

fn object(file: &File) -> Value {
    json!({
        "id": file.id, "object": "file", "bytes": file.bytes, "created_at": file.created_at,
        "expires_at": file.expires_at, "filename": file.filename, "purpose": file.purpose,
        "status": "processed", "status_details": null,
    })
}

async fn upload(caller: Caller, Shared(state): Shared<State>, request: Request) -> Result<Json<Value>, Refusal> {
    let files = store(&state)?;
    let _permit = caller.admit()?;
    let tenant = caller.tenant;
    let part = files.part_bytes();
    // One part that is filled and one on its way, and as many more of these as there is room for.
    let mut room = state.budget.take(2 * part).await?;
    let more = room.grow_by_what_is_free(part, PARTS_AT_ONCE.get() - 1);
    let at_once = NonZeroUsize::MIN.saturating_add(more);
    let id = new_id("file-");
    let blob = Blob::of_upload(tenant.as_str(), &id);
    let slow =
        || ApiError::new(408, "invalid_request_error", None, "the upload took longer than an hour; split the file");
    let received = timeout(UPLOAD_WITHIN, form::receive(request, files.upload(blob, form::MAX_BYTES, at_once)));
    let received = received.await.map_err(|_| slow())??;
    let created_at = now(&state).await?;
    let (part_bytes, form, sealed_part_bytes) = recorded(received.extent);
    let file = File {
        id: id.clone(),
        filename: received.filename,
        purpose: Purpose::Batch,
        bytes: received.extent.bytes,
        created_at,
        expires_at: received.expires_after.map(|seconds| created_at + seconds),
        blob: blob.to_string(),
        part_bytes,
        form,
        sealed_part_bytes,
    };
    let key = JobId::new(&id).map_err(|error| ApiError::internal(causes(&error)))?;
    if let Err(error) = state.stores.files.put(&tenant, &key, &file).await {
        // What can't be removed now is swept.
        let _ = files.delete(blob, received.extent).await;
        return Err(error.into());
    }
    // From here on no sweep takes its parts; whether one has before is seen now.
    if let Err(error) = files.check(blob, received.extent).await {
        state.stores.files.remove(&tenant, &key).await?;
        let _ = files.delete(blob, received.extent).await;
        let message = format!("the file was not kept: {}; send it again", causes(&error));
        return Err(ApiError::unavailable(message).into());
    }
    tracing::info!(file = id, %tenant, bytes = file.bytes, "a file was stored");
    Ok(Json(object(&file)))
}

async fn list(
    Tenant(tenant): Tenant,
    Shared(state): Shared<State>,
    wanted: Result<Query<Wanted>, QueryRejection>,
) -> Result<Json<Value>, Refusal> {
    let Query(wanted) = wanted.map_err(|error| ApiError::invalid(error.body_text()))?;
    let now = now(&state).await?;
    let mut files = state.stores.files.of_tenant(&tenant).await?;
    files.retain(|file| file.expires_at.is_none_or(|expires| now < expires));
    if let Some(purpose) = &wanted.purpose {
        files.retain(|file| serde_json::to_value(file.purpose).is_ok_and(|own| own == purpose.as_str()));
    }
    let key = |file: &File| (file.created_at, file.id.clone());
    let limit = wanted.limit.unwrap_or(PAGE);
    let (order, after) = (wanted.order.unwrap_or_default(), wanted.after.as_deref());
    Ok(Json(page(files, key, object, order, after, (limit, PAGE))?))
}

async fn retrieve(Tenant(tenant): Tenant, Shared(state): Shared<State>, Id(id): Id) -> Result<Json<Value>, Refusal> {
    Ok(Json(object(&found(&state, &tenant, &id).await?)))
}

async fn remove(caller: Caller, Shared(state): Shared<State>, Id(id): Id) -> Result<Json<Value>, Refusal> {
    let files = store(&state)?;
    let _permit = caller.admit()?;
    let tenant = caller.tenant;
    let file = found(&state, &tenant, &id).await?;
    let batches = state.stores.batches.of_tenant(&tenant).await?;
    let reads = |batch: &baton_contract::batch::Batch| batch.order.input_file_id == file.id && !batch.status.is_final();
    if let Some(batch) = batches.into_iter().find(reads) {
        let message =
            format!("the batch {} still reads this file; cancel the batch, or wait for its end", batch.order.id);
        return Err(ApiError::new(409, "invalid_request_error", Some("file_in_use"), message).into());
    }
    let key = JobId::new(&file.id).map_err(|error| ApiError::internal(causes(&error)))?;
    state.stores.files.remove(&tenant, &key).await?;
    if let Some((blob, extent)) = place(&file)
        && let Err(error) = files.delete(blob, extent).await
    {
        tracing::warn!(error = %causes(&error), file = file.id, "the bytes of a deleted file were left to a sweep");
    }
    Ok(Json(json!({ "id": file.id, "object": "file", "deleted": true })))
}

async fn content(Tenant(tenant): Tenant, Shared(state): Shared<State>, Id(id): Id) -> Result<Response, Refusal> {
    let files = store(&state)?;
    let file = found(&state, &tenant, &id).await?;
    let (blob, extent) =
        place(&file).ok_or_else(|| ApiError::internal("the file's place in the store is unreadable"))?;
    // One part that is sent and one that is read, and as many more of these as there is room for.
    let part = extent.part_bytes.min(extent.bytes);
    let mut room = state.budget.take(2 * part).await?;
    let more = room.grow_by_what_is_free(part, PARTS_READ_AT_ONCE.get() - 1);
    let room = Arc::new(room);
    let mut bytes = files.read(blob, extent, 0..extent.bytes, NonZeroUsize::MIN.saturating_add(more)).boxed();
    // What is wrong from the beginning is an answer; what is wrong later cuts the answer off before its end.
    let first = bytes.next().await.transpose().map_err(unreadable)?;
    let bytes = stream::iter(first.map(Ok)).chain(bytes);
    let mut response = Response::new(Body::from_stream(bytes.map_ok(move |piece| budget::housed(piece, &room))));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(extent.bytes));
    // Nothing that a file's name may hold can leave the quotes.
    let plain = |c: char| if c.is_ascii_alphanumeric() || "._- ".contains(c) { c } else { '_' };
    let name: String = file.filename.chars().map(plain).collect();
    if let Ok(value) = HeaderValue::from_str(&format!("attachment; filename=\"{name}\"")) {
        headers.insert(header::CONTENT_DISPOSITION, value);
    }
    Ok(response)
}

fn unreadable(error: files::Error) -> ApiError {
    match error {
        files::Error::Store(_) => ApiError::unavailable(causes(&error)),
        error => ApiError::internal(causes(&error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_ids_that_we_made_become_keys() {
        let id = new_id("file-");
        assert_eq!(known_id("file-", &id).unwrap().as_str(), id);
        for bad in ["", "file-", "file-..", "../../etc/passwd", "file-*", "batch_0123456789abcdef0123456789abcdef"] {
            assert_eq!(known_id("file-", bad), None, "{bad}");
        }
        assert_eq!(known_id("file-", &id.replace('0', "G").replace('1', ".")), None);
    }
}
