//! Writes the lines of a batch's answers.

use serde::Serialize;
use serde_json::Value;

use crate::error::ApiError;

/// One line of an output or error file.
#[derive(Clone, Debug, Serialize)]
pub struct AnswerLine<'a> {
    /// Names the line among all answers.
    pub id: &'a str,
    /// What the request was called.
    pub custom_id: Option<&'a str>,
    /// What the request came to, if it was answered at all.
    pub response: Option<LineResponse<'a>>,
    /// Why there is no answer.
    pub error: Option<LineError<'a>>,
}

/// What a request would have been answered over HTTP.
#[derive(Clone, Debug, Serialize)]
pub struct LineResponse<'a> {
    status_code: u16,
    request_id: Option<&'a str>,
    body: Value,
}

/// Why a line has no answer.
#[derive(Clone, Debug, Serialize)]
pub struct LineError<'a> {
    code: &'a str,
    message: &'a str,
    /// Left out where no field can be to blame.
    #[serde(skip_serializing_if = "Option::is_none")]
    param: Option<Value>,
}

impl AnswerLine<'_> {
    /// The line as it stands in its file, with its end.
    ///
    /// # Errors
    ///
    /// Never for a body that JSON can hold.
    pub fn bytes(&self) -> serde_json::Result<Vec<u8>> {
        let mut line = serde_json::to_vec(self)?;
        line.push(b'\n');
        Ok(line)
    }
}

impl<'a> LineResponse<'a> {
    /// The answer of a job.
    pub fn answer(job: Option<&'a str>, body: Value) -> Self {
        Self { status_code: 200, request_id: job, body }
    }

    /// What a request was refused for, or a job failed for.
    pub fn refused(job: Option<&'a str>, error: &ApiError) -> Self {
        Self { status_code: error.status, request_id: job, body: error.body() }
    }
}

impl<'a> LineError<'a> {
    /// A reason that lies in no field of the request.
    pub fn new(code: &'a str, message: &'a str) -> Self {
        Self { code, message, param: None }
    }

    /// What a request was refused for, or a job failed for.
    pub fn of(error: &'a ApiError) -> Self {
        let code = error.code.as_deref().unwrap_or(error.kind);
        Self { code, message: &error.message, param: Some(error.param.clone().into()) }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn lines_keep_their_fields_and_the_order_of_these() {
        let text = |response, error| {
            let line = AnswerLine { id: "i", custom_id: Some("c"), response, error };
            String::from_utf8(line.bytes().unwrap()).unwrap()
        };
        let response = LineResponse::answer(Some("j"), json!({ "z": 1, "a": 2 }));
        assert_eq!(
            text(Some(response), None),
            "{\"id\":\"i\",\"custom_id\":\"c\",\"response\":{\"status_code\":200,\"request_id\":\"j\",\
             \"body\":{\"z\":1,\"a\":2}},\"error\":null}\n"
        );
        let error = ApiError::invalid("no");
        assert_eq!(
            text(None, Some(LineError::of(&error))),
            "{\"id\":\"i\",\"custom_id\":\"c\",\"response\":null,\
             \"error\":{\"code\":\"invalid_request_error\",\"message\":\"no\",\"param\":null}}\n"
        );
        assert_eq!(
            text(None, Some(LineError::new("batch_expired", "late"))),
            "{\"id\":\"i\",\"custom_id\":\"c\",\"response\":null,\"error\":{\"code\":\"batch_expired\",\"message\":\"late\"}}\n"
        );
    }
}
