//! Bodies of requests, bounded in size and time.

use std::time::Duration;

use axum::{
    body::Body,
    extract::{FromRequest, Request},
};
use baton_contract::causes;
use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use tokio::time::timeout;

use crate::openai::ApiError;

/// Bytes of a JSON body.
pub const MAX_JSON_BYTES: usize = 4 << 20;
/// How long one may take to come.
const WITHIN: Duration = Duration::from_secs(60);

/// The whole body of a request that is to be JSON.
#[derive(Debug)]
pub struct JsonBody(pub Bytes);

impl<S: Sync> FromRequest<S> for JsonBody {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> Result<Self, ApiError> {
        let body: Body = request.into_body();
        match timeout(WITHIN, Limited::new(body, MAX_JSON_BYTES).collect()).await {
            Ok(Ok(body)) => Ok(Self(body.to_bytes())),
            Ok(Err(error)) if error.is::<LengthLimitError>() => {
                let message = format!("expected a body of at most {MAX_JSON_BYTES} bytes, found more");
                Err(ApiError::new(413, "invalid_request_error", Some("request_too_large"), message))
            }
            Ok(Err(error)) => Err(ApiError::invalid(format!("the body could not be read: {}", causes(error.as_ref())))),
            Err(_) => {
                let message = format!("expected the whole body within {WITHIN:?}, found that more was to come");
                Err(ApiError::new(408, "invalid_request_error", Some("request_timeout"), message))
            }
        }
    }
}
