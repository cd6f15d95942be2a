//! What an engine's refusal means: by its status and by what its error says for programs, never by its prose.

use std::{path::Path, time::Duration};

use baton_contract::outcome::Code;
use serde_json::Value;

use crate::{Fault, Retry};

/// The longest pause that an engine may ask for.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// The pause after which an engine without room is asked again if it names none.
const PAUSE: Duration = Duration::from_secs(1);
/// What of an engine's own words is told.
const MOST_WORDS_BYTES: usize = 1_500;

/// Who refuses.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Site<'a> {
    /// Its URL, without secrets.
    pub(crate) url: &'a str,
    /// The file of the key that it was sent.
    pub(crate) key_file: Option<&'a Path>,
}

/// What a response with another status than of success says. Neither `words` nor anything else of it holds the key.
pub(crate) fn refused(site: Site<'_>, status: u16, pause: Option<Duration>, body: &Value) -> Fault {
    let (url, words) = (site.url, words(body));
    let said = if words.is_empty() { String::new() } else { format!(": {words}") };
    let pause = pause.map(|pause| pause.min(LONGEST_PAUSE));
    match status {
        300..400 => Fault::later(format!(
            "{url} answered {status}, a redirect, which is not followed; name the URL that it leads to in the pipeline{said}"
        )),
        401 | 403 => {
            let check = match site.key_file {
                Some(path) => format!("check the key in {}", path.display()),
                None => "name the file of its key as the model's api_key_file".to_owned(),
            };
            Fault::later(format!("{url} answered {status}; {check}{said}"))
        }
        429 | 503 | 529 => Fault::busy(pause.unwrap_or(PAUSE), format!("{url} has no room ({status}){said}")),
        402 | 408 | 425 | 502 | 504 => {
            Fault::new(Retry::Later(pause), Code::Internal, format!("{url} answered {status}{said}"))
        }
        404 | 405 | 410 => {
            let (unknown, there) = (is_model(body), format!("{url} answered {status}{said}"));
            match unknown {
                true => Fault::new(Retry::Elsewhere, Code::UnknownModel, there),
                false => Fault::elsewhere(format!("{there}; check the model's urls")),
            }
        }
        400..500 => {
            let code = if status == 413 || is_too_long(body) { Code::PromptTooLong } else { Code::InvalidValue };
            Fault::new(Retry::Never, code, format!("the engine refused the request ({status}){said}"))
        }
        _ => Fault::elsewhere(format!("{url} answered {status}{said}")),
    }
}

/// What an error says that came instead of an answer, or in the middle of one.
pub(crate) fn failed(site: Site<'_>, body: &Value) -> Fault {
    let error = error_of(body);
    let code = ["code", "status_code", "status"].iter().find_map(|name| error[*name].as_u64());
    match code.and_then(|code| u16::try_from(code).ok()) {
        Some(status @ 400..600) => refused(site, status, None, body),
        _ => Fault::elsewhere(format!("{} gave an error instead of an answer: {}", site.url, words(body))),
    }
}

/// Whether what came is an error, whatever its status says.
pub(crate) fn is_error(body: &Value) -> bool {
    body.get("error").is_some_and(|error| !error.is_null()) || body["object"] == "error"
}

/// The engine's own words.
fn words(body: &Value) -> String {
    let error = error_of(body);
    let text =
        match [&error["message"], &error["detail"], &error["error"], error].into_iter().find(|one| !one.is_null()) {
            Some(Value::String(text)) => text.trim().to_owned(),
            Some(other) => other.to_string(),
            None => String::new(),
        };
    match text.len() > MOST_WORDS_BYTES {
        true => format!("{}...", &text[..text.floor_char_boundary(MOST_WORDS_BYTES)]),
        false => text,
    }
}

/// Most engines wrap their errors.
fn error_of(body: &Value) -> &Value {
    body.get("error").filter(|error| error.is_object()).unwrap_or(body)
}

/// As OpenAI and those that follow it say for programs that there is no such model; vLLM names the parameter.
fn is_model(body: &Value) -> bool {
    let error = error_of(body);
    error["code"] == "model_not_found" || error["param"] == "model"
}

/// The same of a prompt that the context has no room for: OpenAI's code, llama.cpp's type, vLLM's parameter.
fn is_too_long(body: &Value) -> bool {
    let error = error_of(body);
    error["code"] == "context_length_exceeded"
        || error["type"] == "exceed_context_size_error"
        || matches!(error["param"].as_str(), Some("input_tokens" | "input_text"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const SITE: Site<'_> = Site { url: "http://gpu-1:8000", key_file: None };

    fn of(status: u16, body: &Value) -> (Retry, Code, String) {
        let Fault { retry, code, message } = refused(SITE, status, None, body);
        (retry, code, message)
    }

    #[test]
    fn what_a_refusal_means_is_told_by_its_status_and_its_codes() {
        let none = Value::Null;
        let (never, later, elsewhere) = (Retry::Never, Retry::Later(None), Retry::Elsewhere);
        let busy = Retry::Later(Some(PAUSE));
        for (status, body, retry, code) in [
            (
                400,
                json!({ "error": { "message": "m", "type": "BadRequestError", "code": 400 } }),
                never,
                Code::InvalidValue,
            ),
            (400, json!({ "error": { "code": "context_length_exceeded" } }), never, Code::PromptTooLong),
            (400, json!({ "error": { "type": "exceed_context_size_error" } }), never, Code::PromptTooLong),
            (400, json!({ "error": { "message": "m", "param": "input_tokens" } }), never, Code::PromptTooLong),
            (413, none.clone(), never, Code::PromptTooLong),
            (422, json!({ "detail": [{ "loc": ["body", "n"], "msg": "m" }] }), never, Code::InvalidValue),
            (404, json!({ "error": { "message": "m", "param": "model" } }), elsewhere, Code::UnknownModel),
            (404, json!({ "detail": "Not Found" }), elsewhere, Code::Internal),
            (401, none.clone(), later, Code::Internal),
            (403, none.clone(), later, Code::Internal),
            (302, none.clone(), later, Code::Internal),
            (429, none.clone(), busy, Code::Internal),
            (503, none.clone(), busy, Code::Internal),
            (502, none.clone(), later, Code::Internal),
            (504, none.clone(), later, Code::Internal),
            (500, none, elsewhere, Code::Internal),
        ] {
            let told = of(status, &body);
            assert_eq!((told.0, told.1), (retry, code), "{status} {body}: {}", told.2);
        }
        let within = |pause| refused(SITE, 429, Some(Duration::from_secs(pause)), &Value::Null).retry;
        assert_eq!(within(7), Retry::Later(Some(Duration::from_secs(7))));
        assert_eq!(within(7_000), Retry::Later(Some(LONGEST_PAUSE)));
    }

    #[test]
    fn an_engines_own_words_are_told_wherever_it_writes_them() {
        for (body, words) in [
            (json!({ "error": { "message": "too hot" } }), "too hot"),
            (json!({ "error": "too hot" }), "too hot"),
            (json!({ "object": "error", "message": "too hot" }), "too hot"),
            (json!({ "detail": "too hot" }), "too hot"),
            (json!("too hot"), "too hot"),
            (json!({ "detail": [{ "msg": "too hot" }] }), r#"[{"msg":"too hot"}]"#),
        ] {
            assert_eq!(of(400, &body).2, format!("the engine refused the request (400): {words}"));
        }
        assert!(of(400, &json!("a".repeat(1 << 20))).2.len() < 2_000);
        let told = of(401, &json!({ "error": { "message": "no" } })).2;
        assert!(told.contains("http://gpu-1:8000") && told.contains("api_key_file"), "{told}");
        let site = Site { key_file: Some(Path::new("/etc/key")), ..SITE };
        assert!(refused(site, 403, None, &Value::Null).message.contains("check the key in /etc/key"));
    }

    #[test]
    fn an_error_within_an_answer_means_what_its_code_says() {
        let with = |code: Value| failed(SITE, &json!({ "error": { "message": "m", "code": code } }));
        assert_eq!(with(json!(400)).retry, Retry::Never);
        assert_eq!(with(json!(503)).retry, Retry::Later(Some(PAUSE)));
        for code in [json!(500), json!(7), json!("odd"), Value::Null] {
            let fault = with(code);
            assert_eq!((fault.retry, fault.message.ends_with(": m")), (Retry::Elsewhere, true), "{fault}");
        }
        assert!(is_error(&json!({ "error": "m" })) && is_error(&json!({ "object": "error" })));
        assert!(!is_error(&json!({ "error": null, "choices": [] })));
    }
}
