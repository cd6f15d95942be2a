//! A line of a batch, whoever drives it.

use baton_contract::objects;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::{endpoint::Endpoint, error::ApiError};

/// Bytes of a line's name.
const MAX_CUSTOM_ID: usize = 512;

/// One request of a batch.
#[derive(Clone, Debug)]
pub struct BatchLine {
    /// What its answer is known by.
    pub custom_id: String,
    /// Where it would go over HTTP.
    pub endpoint: Endpoint,
    /// The request as it was written.
    pub body: Box<RawValue>,
}

/// What is wrong with a line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct LineProblem {
    /// As OpenAI's batches name it.
    pub code: &'static str,
    /// The field that is to blame.
    pub param: Option<&'static str>,
    /// For people.
    pub message: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Fields {
    custom_id: Option<String>,
    method: Option<String>,
    url: Option<String>,
    body: Option<Box<RawValue>>,
}

impl LineProblem {
    fn of(code: &'static str, param: &'static str, message: String) -> Self {
        Self { code, param: Some(param), message: format!("{param}: {message}") }
    }

    fn missing(name: &'static str) -> Self {
        Self::of("missing_required_parameter", name, "expected it, found nothing".into())
    }
}

impl From<LineProblem> for ApiError {
    fn from(problem: LineProblem) -> Self {
        let error = Self::new(400, "invalid_request_error", Some(problem.code), problem.message);
        Self { param: problem.param.map(str::to_owned), ..error }
    }
}

/// Reads a line: `{"custom_id": ..., "method": "POST", "url": ..., "body": {...}}` and nothing else.
///
/// # Errors
///
/// Names the field that is missing or wrong.
pub fn read_line(bytes: &[u8]) -> Result<BatchLine, LineProblem> {
    let unreadable = |error: serde_json::Error| LineProblem {
        code: "invalid_json_line",
        param: None,
        message: format!("this line is no request: {error}"),
    };
    let Fields { custom_id, method, url, body } = objects::from_slice::<Fields>(bytes).map_err(unreadable)?;
    let custom_id = custom_id.ok_or_else(|| LineProblem::missing("custom_id"))?;
    if !(1..=MAX_CUSTOM_ID).contains(&custom_id.len()) {
        let message = format!("expected 1 to {MAX_CUSTOM_ID} bytes, found {}", custom_id.len());
        return Err(LineProblem::of("invalid_custom_id", "custom_id", message));
    }
    match method.as_deref() {
        Some("POST") => {}
        Some(other) => {
            let found: String = other.chars().take(80).collect();
            return Err(LineProblem::of("invalid_method", "method", format!("expected \"POST\", found {found:?}")));
        }
        None => return Err(LineProblem::missing("method")),
    }
    let url = url.ok_or_else(|| LineProblem::missing("url"))?;
    let endpoint = Endpoint::from_path(&url).ok_or_else(|| {
        let (known, found) = (Endpoint::ALL.map(Endpoint::path).join(" or "), url.chars().take(80).collect::<String>());
        LineProblem::of("invalid_url", "url", format!("expected {known}, found {found:?}"))
    })?;
    let body = body.ok_or_else(|| LineProblem::missing("body"))?;
    Ok(BatchLine { custom_id, endpoint, body })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_an_object_of_four_fields() {
        let good = r#"{"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"prompt":  "x"}}"#;
        let line = read_line(good.as_bytes()).unwrap();
        assert_eq!((line.custom_id.as_str(), line.endpoint), ("a", Endpoint::Completions));
        assert_eq!(line.body.get(), r#"{"prompt":  "x"}"#, "as it was written");
        for (bad, code) in [
            (r#"["a", "POST", "/v1/completions", {"prompt": "x"}]"#.to_owned(), "invalid_json_line"),
            (format!("{good}{good}"), "invalid_json_line"),
            (good.replace("\"method\"", "\"custom_id\""), "invalid_json_line"),
            (good.replace("\"method\"", "\"verb\""), "invalid_json_line"),
            (good.replace("\"a\"", "7"), "invalid_json_line"),
            (good.replace("\"a\"", "\"\""), "invalid_custom_id"),
            (good.replace("POST", "post"), "invalid_method"),
            (good.replace("completions", "embeddings"), "invalid_url"),
            (good.replace("\"url\": \"/v1/completions\", ", ""), "missing_required_parameter"),
        ] {
            assert_eq!(read_line(bad.as_bytes()).unwrap_err().code, code, "{bad}");
        }
    }
}
