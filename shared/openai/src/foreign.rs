//! Reads what is asked of models that foreign engines serve: what Baton has a meaning for is read as for its own models, but that
//! nothing is set that the request does not set; the rest is the engine's, if it is not known to lack it.

use baton_contract::{
    outcome::{Code, Failure},
    request::{ChatMessage, Content, Request, ResponseFormat},
    upstream::{Ask, Engine},
};
use serde_json::{Value, json};

use crate::{
    alike::{prompt, token_limits},
    endpoint::Endpoint,
    error::ApiError,
    fields::{Fields, kind},
};

/// Reads what depends on the endpoint, and all that is left.
pub(crate) fn read(
    endpoint: Endpoint,
    mut fields: Fields,
    request: &mut Request,
    engine: Engine,
) -> Result<(), ApiError> {
    match endpoint {
        Endpoint::ChatCompletions => chat(&mut fields, request)?,
        Endpoint::Completions => prompt(&mut fields, request)?,
    }
    if engine != Engine::OpenAi {
        // What says what is the case anyway; of an unknown engine's defaults nothing is known.
        fields.leave_out("store", &[json!(false)]);
        fields.leave_out("modalities", &[json!(["text"])]);
        fields.leave_out("functions", &[json!([])]);
        fields.leave_out("function_call", &[json!("none"), json!("auto")]);
        fields.leave_out("best_of", &[json!(request.n.unwrap_or(1))]);
        fields.leave_out("echo", &[json!(false)]);
        fields.leave_out("suffix", &[json!("")]);
    }
    form(&mut fields, request);
    request.engine = fields.rest();
    Ask::of(request, engine).map(drop).map_err(refused)
}

fn chat(fields: &mut Fields, request: &mut Request) -> Result<(), ApiError> {
    let messages = fields.take::<Vec<Value>>("messages")?;
    let messages = messages.ok_or_else(|| ApiError::field("messages", "messages: expected a list, found nothing"))?;
    let read = messages.into_iter().enumerate().map(|(place, message)| read_message(message, place));
    request.messages = Some(read.collect::<Result<_, _>>()?);
    let (old, new) = token_limits(fields)?;
    request.max_tokens = old;
    if let Some(new) = new {
        // Its name matters: some engines refuse the older.
        fields.put("max_completion_tokens", new.into());
    }
    request.logprobs = fields.take("logprobs")?;
    request.top_logprobs = fields.take("top_logprobs")?;
    Ok(())
}

/// Takes the form of the answer if it is one that Baton's own models know too, so that they can answer in the engine's stead. Engines
/// may know more.
fn form(fields: &mut Fields, request: &mut Request) {
    if let Some(value) = fields.raw("response_format") {
        match serde_json::from_value::<ResponseFormat>(value.clone()).ok().filter(ResponseFormat::can_be_followed) {
            Some(format) => request.response_format = Some(format),
            None => fields.put("response_format", value),
        }
    }
}

/// A message as it is, but for what is null.
fn read_message(message: Value, place: usize) -> Result<ChatMessage, ApiError> {
    let place = format!("messages[{place}]");
    let mut fields = Fields::of(message, &place)?;
    let missing = || ApiError::field(format!("{place}.role"), format!("{place}.role: expected a text"));
    let role = fields.take("role")?.ok_or_else(missing)?;
    let content = match fields.raw("content") {
        None => None,
        Some(Value::String(text)) => Some(Content::Text(text)),
        Some(Value::Array(parts)) => Some(Content::Parts(parts)),
        Some(other) => {
            let (path, found) = (format!("{place}.content"), kind(&other));
            return Err(ApiError::field(&path, format!("{path}: expected a text or parts, found {found}")));
        }
    };
    Ok(ChatMessage { role, content, more: fields.rest() })
}

/// Why the engine can't be asked, about the field as its sender wrote it.
fn refused(failure: Failure) -> ApiError {
    let message = failure.message.strip_prefix("engine.").unwrap_or(&failure.message).to_owned();
    let code = (failure.code == Code::UnknownField).then(|| "unsupported_parameter".to_owned());
    ApiError { code, ..ApiError::from(&Failure { message, ..failure }) }
}
