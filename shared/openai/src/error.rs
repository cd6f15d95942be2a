//! Errors as OpenAI's clients read them.

use baton_contract::outcome::{Code, Failure};
use serde_json::{Value, json};

/// Why a call failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// HTTP's status.
    pub status: u16,
    /// OpenAI's `type`.
    pub kind: &'static str,
    /// OpenAI's `code`.
    pub code: Option<String>,
    /// The field that is to blame.
    pub param: Option<String>,
    /// For people.
    pub message: String,
    /// Seconds after which it is worth trying again; told with 429 and 503.
    pub retry_after: u32,
}

impl ApiError {
    /// A request that can't be followed.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(400, "invalid_request_error", None, message)
    }

    /// A request that can't be followed because of one field.
    pub fn field(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self { param: Some(param.into()), ..Self::invalid(message) }
    }

    /// Any other.
    pub fn new(status: u16, kind: &'static str, code: Option<&str>, message: impl Into<String>) -> Self {
        Self { status, kind, code: code.map(str::to_owned), param: None, message: message.into(), retry_after: 1 }
    }

    /// Something that is not there.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(404, "invalid_request_error", Some("not_found"), message)
    }

    /// A model that the pipeline does not have.
    pub fn unknown_model(model: &str) -> Self {
        let message = format!("the pipeline has no model {model:?}; GET /v1/models lists those it has");
        Self {
            param: Some("model".into()),
            ..Self::new(404, "invalid_request_error", Some("model_not_found"), message)
        }
    }

    /// More than the tenant or its key may have, or than the queues hold, now.
    pub fn busy(message: impl Into<String>) -> Self {
        Self::new(429, "rate_limit_error", Some("rate_limit_exceeded"), message)
    }

    /// The broker can't be reached.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(503, "server_error", Some("unavailable"), message)
    }

    /// A fault of this end.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(500, "server_error", Some("internal"), message)
    }

    /// The body: `{"error": {...}}`.
    pub fn body(&self) -> Value {
        json!({ "error": {
            "message": self.message, "type": self.kind, "param": self.param, "code": self.code,
        } })
    }
}

/// The field that a failure's message is about: it begins with the field's path and a colon.
fn param(message: &str) -> Option<&str> {
    let (path, _) = message.split_once(": ")?;
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '[' | ']');
    (path.starts_with(|c: char| c.is_ascii_lowercase()) && path.chars().all(plain)).then_some(path)
}

impl From<&Failure> for ApiError {
    fn from(failure: &Failure) -> Self {
        let message = failure.message.clone();
        let named = param(&message).map(str::to_owned);
        let invalid = |code: Option<&str>, param: Option<String>, message| {
            let error = Self::new(400, "invalid_request_error", code, message);
            Self { param, ..error }
        };
        match failure.code {
            Code::InvalidUtf8 | Code::InvalidJson | Code::UnknownField | Code::InvalidValue => {
                invalid(None, named, message)
            }
            Code::EmptyPrompt => invalid(Some("empty_prompt"), named, message),
            Code::InvalidTemplateInput => invalid(None, named.or(Some("messages".into())), message),
            Code::PromptTooLong => invalid(Some("context_length_exceeded"), named, message),
            Code::UnknownModel => {
                let error = Self::new(404, "invalid_request_error", Some("model_not_found"), message);
                Self { param: Some("model".into()), ..error }
            }
            Code::Conflict => Self::new(409, "invalid_request_error", Some("conflict"), message),
            Code::Cancelled => Self::new(409, "invalid_request_error", Some("cancelled"), message),
            Code::DeadlineExceeded => Self::new(408, "invalid_request_error", Some("deadline_exceeded"), message),
            Code::AttemptsExhausted => Self::new(500, "server_error", Some("attempts_exhausted"), message),
            Code::NonFinite => Self::new(500, "server_error", Some("non_finite"), message),
            Code::ResultTooLarge => invalid(Some("result_too_large"), named, message),
            Code::Internal => Self::new(500, "server_error", Some("internal"), message),
        }
    }
}
