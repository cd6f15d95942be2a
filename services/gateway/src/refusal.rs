//! A failed call as HTTP answers it.

use axum::{
    http::{HeaderValue, StatusCode, header::RETRY_AFTER},
    response::{IntoResponse, Response},
};
use baton_contract::causes;
use baton_openai::ApiError;

/// What a route answers where it has nothing better: OpenAI's error, with the headers that belong to its status.
#[derive(Clone, Debug)]
pub struct Refusal(pub(crate) ApiError);

/// Why a request failed, beside its response: for the log.
#[derive(Clone, Debug)]
pub(crate) struct Reason(pub(crate) String);

impl From<ApiError> for Refusal {
    fn from(error: ApiError) -> Self {
        Self(error)
    }
}

impl From<baton_bus::Error> for Refusal {
    fn from(error: baton_bus::Error) -> Self {
        of_bus(&error).into()
    }
}

/// What the broker's refusal is to a client.
pub(crate) fn of_bus(error: &baton_bus::Error) -> ApiError {
    match error {
        baton_bus::Error::TryLater { .. } => ApiError::busy(causes(error)),
        baton_bus::Error::TooLarge { .. } => ApiError { status: 413, ..ApiError::invalid(causes(error)) },
        baton_bus::Error::UnknownLane { .. } => ApiError::invalid(causes(error)),
        error => ApiError::unavailable(causes(error)),
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let Self(error) = self;
        let status = StatusCode::from_u16(error.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, axum::Json(error.body())).into_response();
        response.extensions_mut().insert(Reason(error.message));
        let headers = response.headers_mut();
        if matches!(error.status, 429 | 503) {
            headers.insert(RETRY_AFTER, HeaderValue::from(error.retry_after));
        }
        if matches!(error.status, 408 | 409) {
            // OpenAI's clients would repeat these by themselves; it would not help.
            headers.insert("x-should-retry", HeaderValue::from_static("false"));
        }
        if error.status == 401 {
            headers.insert("www-authenticate", HeaderValue::from_static("Bearer"));
        }
        response
    }
}
