//! Reads what is asked of Baton's own models, with vLLM's additions.

use baton_contract::request::{ChatMessage, FormatKind, JsonSchema, Request, ResponseFormat, StructuredOutputs};
use serde_json::{Value, json};

use crate::{
    alike::{prompt, token_limits},
    endpoint::Endpoint,
    error::ApiError,
    fields::{Fields, kind},
};

/// OpenAI's default, and not Baton's, which is greedy.
const DEFAULT_TEMPERATURE: f32 = 1.0;
/// OpenAI's default for the older endpoint.
const DEFAULT_COMPLETION_TOKENS: u32 = 16;
/// A chat's answer may have what the model's context leaves; of several answers each has this much by default.
const UNLIMITED: u32 = 1 << 30;
const DEFAULT_TOKENS_OF_MANY: u32 = 2_048;
/// Log-probabilities that an answer without `max_tokens` may have; a result can't hold many more.
const DEFAULT_LOGPROBS: u32 = 40_000;

/// Reads what depends on the endpoint, and the form of the answer.
pub(crate) fn read(endpoint: Endpoint, fields: &mut Fields, request: &mut Request) -> Result<(), ApiError> {
    request.temperature.get_or_insert(DEFAULT_TEMPERATURE);
    match endpoint {
        Endpoint::ChatCompletions => chat(fields, request)?,
        Endpoint::Completions => completion(fields, request)?,
    }
    form(fields, request)
}

fn chat(fields: &mut Fields, request: &mut Request) -> Result<(), ApiError> {
    let messages = fields.take::<Vec<Value>>("messages")?;
    let messages = messages.ok_or_else(|| ApiError::field("messages", "messages: expected a list, found nothing"))?;
    let read = messages.into_iter().enumerate().map(|(place, message)| read_message(message, place));
    request.messages = Some(read.collect::<Result<_, _>>()?);

    let (old, new) = token_limits(fields)?;
    request.logprobs = fields.take("logprobs")?;
    request.top_logprobs = fields.take("top_logprobs")?;
    request.max_tokens = Some(new.or(old).unwrap_or_else(|| default_tokens(request)));

    const TOOLS: &str = "models call no tools here";
    const TEXT: &str = "answers are text";
    fields.refuse("tools", &[json!([])], TOOLS)?;
    fields.refuse("tool_choice", &[json!("none"), json!("auto")], TOOLS)?;
    fields.refuse("parallel_tool_calls", &[json!(true), json!(false)], TOOLS)?;
    fields.refuse("functions", &[json!([])], TOOLS)?;
    fields.refuse("function_call", &[json!("none"), json!("auto")], TOOLS)?;
    fields.refuse("audio", &[], TEXT)?;
    fields.refuse("modalities", &[json!(["text"])], TEXT)?;
    fields.refuse("prediction", &[], "no answer is predicted")?;
    fields.refuse("reasoning_effort", &[json!("none")], "no model has an effort to set")?;
    fields.refuse("verbosity", &[], "no model has a verbosity to set")?;
    fields.refuse("web_search_options", &[], "nothing is searched")?;
    fields.refuse("moderation", &[], "nothing is moderated")?;
    const REUSE: &str = "a prompt's stored beginning is reused by itself, for as long as store.max_age says";
    fields.refuse("prompt_cache_key", &[], REUSE)?;
    fields.refuse("prompt_cache_options", &[json!({})], REUSE)?;
    fields.refuse("prompt_cache_retention", &[], REUSE)?;
    fields.refuse("store", &[json!(false)], "completions are not kept for later; a job's result is, see Baton-Job-Id")
}

/// What a chat's answers may have where the request does not say.
fn default_tokens(request: &Request) -> u32 {
    let n = request.n.unwrap_or(1).max(1);
    let most = if n > 1 { DEFAULT_TOKENS_OF_MANY } else { UNLIMITED };
    if request.logprobs != Some(true) {
        return most;
    }
    let told = request.top_logprobs.unwrap_or(0).saturating_add(1);
    most.min(DEFAULT_LOGPROBS / told.saturating_mul(n)).max(1)
}

fn completion(fields: &mut Fields, request: &mut Request) -> Result<(), ApiError> {
    prompt(fields, request)?;
    request.max_tokens.get_or_insert(DEFAULT_COMPLETION_TOKENS);
    let n = request.n.unwrap_or(1);
    fields.refuse("best_of", &[json!(n)], "every answer is returned; ask for them with n")?;
    fields.refuse("echo", &[json!(false)], "the answer has no prompt in it")?;
    fields.refuse("suffix", &[json!("")], "text is not inserted")
}

fn read_message(message: Value, place: usize) -> Result<ChatMessage, ApiError> {
    let place = format!("messages[{place}]");
    let mut fields = Fields::of(message, &place)?;
    let missing = |name: &str| ApiError::field(format!("{place}.{name}"), format!("{place}.{name}: expected a text"));
    let role: String = fields.take("role")?.ok_or_else(|| missing("role"))?;
    let role = match role.as_str() {
        // OpenAI's newer name of the same.
        "developer" => "system".to_owned(),
        "system" | "user" | "assistant" => role,
        other => {
            let path = format!("{place}.role");
            let other: String = other.chars().take(80).collect();
            let message = format!("{path}: expected system, developer, user or assistant, found {other:?}");
            return Err(ApiError::field(path, message));
        }
    };
    let content = fields.raw("content").ok_or_else(|| missing("content"))?;
    let content = read_content(content, &format!("{place}.content"))?;
    fields.refuse("name", &[], "templates have no names of participants")?;
    fields.refuse("refusal", &[], "a refusal is content")?;
    fields.refuse("audio", &[], "messages are text")?;
    fields.refuse("tool_calls", &[json!([])], "models call no tools here")?;
    fields.refuse("function_call", &[], "models call no tools here")?;
    // What the SDKs' messages have when they are sent back as they came.
    fields.refuse("annotations", &[json!([])], "messages are text")?;
    fields.finish()?;
    Ok(ChatMessage::text(role, content))
}

/// A text, or a list of texts, which are lines of one.
fn read_content(content: Value, place: &str) -> Result<String, ApiError> {
    let parts = match content {
        Value::String(text) => return Ok(text),
        Value::Array(parts) => parts,
        other => {
            return Err(ApiError::field(place, format!("{place}: expected a text or parts, found {}", kind(&other))));
        }
    };
    let part = |(at, part): (usize, Value)| {
        let place = format!("{place}[{at}]");
        let mut fields = Fields::of(part, &place)?;
        let found: String = fields.take("type")?.unwrap_or_default();
        if found != "text" {
            let path = format!("{place}.type");
            let found: String = found.chars().take(80).collect();
            let error = ApiError::field(
                &path,
                format!("{path}: expected \"text\", found {found:?}; images, audio and files are not supported"),
            );
            return Err(error);
        }
        let text: Option<String> = fields.take("text")?;
        fields.refuse("prompt_cache_breakpoint", &[], "what is stored of a prompt is cut every store.chunk_tokens")?;
        fields.finish()?;
        text.ok_or_else(|| ApiError::field(format!("{place}.text"), format!("{place}.text: expected a text")))
    };
    Ok(parts.into_iter().enumerate().map(part).collect::<Result<Vec<_>, _>>()?.join("\n"))
}

/// What form the answer must have: OpenAI's `response_format`, vLLM's `structured_outputs`, and that one's older names.
fn form(fields: &mut Fields, request: &mut Request) -> Result<(), ApiError> {
    request.response_format = fields.take::<ResponseFormat>("response_format")?;
    request.structured_outputs = fields.take::<StructuredOutputs>("structured_outputs")?;
    if let Some(regex) = fields.take::<String>("guided_regex")? {
        if request.structured_outputs.is_some() {
            let message = "guided_regex: expected it without structured_outputs, found both";
            return Err(ApiError::field("guided_regex", message));
        }
        request.structured_outputs = Some(StructuredOutputs { regex });
    }
    if let Some(schema) = fields.raw("guided_json") {
        if request.response_format.is_some() {
            let message = "guided_json: expected it without response_format, found both";
            return Err(ApiError::field("guided_json", message));
        }
        let schema = JsonSchema { schema, name: None, description: None, strict: None };
        request.response_format = Some(ResponseFormat { kind: FormatKind::JsonSchema, json_schema: Some(schema) });
    }
    Ok(())
}
