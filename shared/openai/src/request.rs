//! Reads OpenAI's requests, with vLLM's additions.

use std::collections::BTreeMap;

use baton_contract::{
    Name, causes,
    outcome::Code,
    request::{
        ChatMessage, FormatKind, JsonSchema, MAX_METADATA, MAX_METADATA_VALUE_BYTES, Prompt, Request, ResponseFormat,
        Stop, StructuredOutputs,
    },
};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
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
/// Alternatives to a token in the older endpoint.
const MAX_COMPLETION_LOGPROBS: u32 = 20;

/// One request, understood.
#[derive(Clone, Debug, PartialEq)]
pub struct Call {
    /// Which way it came.
    pub endpoint: Endpoint,
    /// Without an id. `lane` is what `service_tier` said, unless that was `auto` or `default`; whether the pipeline has such
    /// a lane or model is not yet known.
    pub request: Request,
    /// Whether the answer is wanted in pieces.
    pub stream: bool,
    /// Whether a stream ends with the usage.
    pub include_usage: bool,
    /// The model as the request named it.
    pub model: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct StreamOptions {
    #[serde(default)]
    include_usage: Option<bool>,
    #[serde(default)]
    include_obfuscation: Option<bool>,
}

/// Reads a request: every field of it is understood, or a 400 names the one that is not.
pub fn read(endpoint: Endpoint, body: &[u8]) -> Result<Call, ApiError> {
    let mut fields = Fields::root(body)?;
    let mut request = Request::default();
    let model: Option<String> = fields.take("model")?;
    request.model = model.clone();
    let stream = fields.take::<bool>("stream")?.unwrap_or(false);
    let include_usage = match fields.take::<StreamOptions>("stream_options")? {
        Some(_) if !stream => {
            return Err(ApiError::field("stream_options", "stream_options: expected it with stream: true only"));
        }
        Some(StreamOptions { include_obfuscation: Some(true), .. }) => {
            let param = "stream_options.include_obfuscation";
            return Err(ApiError::field(param, format!("{param}: not supported: streams carry no padding")));
        }
        options => options.unwrap_or_default().include_usage.unwrap_or(false),
    };
    sampling(&mut fields, &mut request)?;
    match endpoint {
        Endpoint::ChatCompletions => chat(&mut fields, &mut request)?,
        Endpoint::Completions => completion(&mut fields, &mut request)?,
    }
    form(&mut fields, &mut request)?;
    about_the_job(&mut fields, &mut request)?;
    fields.finish()?;
    check(endpoint, &request)?;
    Ok(Call { endpoint, request, stream, include_usage, model })
}

/// What a request must hold whatever the pipeline is.
fn check(endpoint: Endpoint, request: &Request) -> Result<(), ApiError> {
    // The lane is checked against the pipeline's later.
    let mut request = request.clone();
    let lane = request.lane.take().and_then(|lane| Name::new(&lane).ok());
    let unnamed = || Name::new("unnamed").map_err(|error| ApiError::internal(causes(&error)));
    let lane = lane.map_or_else(unnamed, Ok)?;
    request.check(&lane, 0).map(drop).map_err(|failure| {
        let error = ApiError::from(&failure);
        match (failure.code, endpoint) {
            (Code::EmptyPrompt, Endpoint::ChatCompletions) => ApiError { param: Some("messages".into()), ..error },
            (Code::EmptyPrompt, Endpoint::Completions) => ApiError { param: Some("prompt".into()), ..error },
            _ => error,
        }
    })
}

/// How tokens are drawn: the same in both endpoints.
fn sampling(fields: &mut Fields, request: &mut Request) -> Result<(), ApiError> {
    request.temperature = Some(fields.take("temperature")?.unwrap_or(DEFAULT_TEMPERATURE));
    request.top_p = fields.take("top_p")?;
    request.top_k = match fields.take::<i64>("top_k")? {
        None => None,
        // vLLM's word for all tokens.
        Some(-1) => Some(0),
        Some(count) => Some(u32::try_from(count).map_err(|_| {
            ApiError::field("top_k", format!("top_k: expected -1 or more, and less than 2^32, found {count}"))
        })?),
    };
    request.min_p = fields.take("min_p")?;
    request.repetition_penalty = fields.take("repetition_penalty")?;
    request.presence_penalty = fields.take("presence_penalty")?;
    request.frequency_penalty = fields.take("frequency_penalty")?;
    request.logit_bias = fields.take("logit_bias")?;
    request.n = fields.take("n")?;
    request.stop = fields.take::<Stop>("stop")?;
    request.seed = match fields.raw("seed") {
        None => None,
        Some(value) => Some(seed(&value)?),
    };
    Ok(())
}

/// A seed is any integer of 64 bits; a negative one is the unsigned one of the same bits.
fn seed(value: &Value) -> Result<u64, ApiError> {
    let seed = value.as_u64().or_else(|| value.as_i64().map(|seed| seed as u64));
    seed.ok_or_else(|| ApiError::field("seed", format!("seed: expected an integer of 64 bits, found {}", kind(value))))
}

fn chat(fields: &mut Fields, request: &mut Request) -> Result<(), ApiError> {
    let messages = fields.take::<Vec<Value>>("messages")?;
    let messages = messages.ok_or_else(|| ApiError::field("messages", "messages: expected a list, found nothing"))?;
    let read = messages.into_iter().enumerate().map(|(place, message)| read_message(message, place));
    request.messages = Some(read.collect::<Result<_, _>>()?);

    let (old, new) = (fields.take::<u32>("max_tokens")?, fields.take::<u32>("max_completion_tokens")?);
    if let (Some(old), Some(new)) = (old, new)
        && old != new
    {
        let message = format!("max_completion_tokens: expected max_tokens, {old}, where both are there; found {new}");
        return Err(ApiError::field("max_completion_tokens", message));
    }
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
    let prompt = fields.raw("prompt");
    let prompt = prompt.ok_or_else(|| ApiError::field("prompt", "prompt: expected a text, found nothing"))?;
    request.prompt = Some(read_prompt(prompt)?);
    request.max_tokens = Some(fields.take("max_tokens")?.unwrap_or(DEFAULT_COMPLETION_TOKENS));
    if let Some(count) = fields.take::<u32>("logprobs")? {
        if count > MAX_COMPLETION_LOGPROBS {
            let message = format!("logprobs: expected 0 to {MAX_COMPLETION_LOGPROBS}, found {count}");
            return Err(ApiError::field("logprobs", message));
        }
        request.logprobs = Some(true);
        request.top_logprobs = Some(count);
    }
    let n = request.n.unwrap_or(1);
    fields.refuse("best_of", &[json!(n)], "every answer is returned; ask for them with n")?;
    fields.refuse("echo", &[json!(false)], "the answer has no prompt in it")?;
    fields.refuse("suffix", &[json!("")], "text is not inserted")
}

fn read_prompt(value: Value) -> Result<Prompt, ApiError> {
    let refused = |found: &str| {
        let message = format!("prompt: expected one text or one list of token ids, found {found}");
        Err(ApiError::field("prompt", message))
    };
    match value {
        Value::String(text) => Ok(Prompt::Text(text)),
        Value::Array(mut items) => match items.first() {
            Some(Value::Number(_)) => tokens(items, "prompt").map(Prompt::Tokens),
            Some(Value::String(_) | Value::Array(_)) if items.len() > 1 => {
                refused("several prompts; send one request for each, or a batch")
            }
            // A list of one prompt is that prompt.
            Some(Value::String(_) | Value::Array(_)) => match items.swap_remove(0) {
                Value::Array(items) => tokens(items, "prompt[0]").map(Prompt::Tokens),
                Value::String(text) => Ok(Prompt::Text(text)),
                other => refused(kind(&other)),
            },
            Some(other) => refused(&format!("a list that begins with {}", kind(other))),
            None => refused("an empty list"),
        },
        other => refused(kind(&other)),
    }
}

fn tokens(items: Vec<Value>, place: &str) -> Result<Vec<u32>, ApiError> {
    let token = |(at, item): (usize, Value)| {
        item.as_u64().and_then(|id| u32::try_from(id).ok()).ok_or_else(|| {
            let path = format!("{place}[{at}]");
            ApiError::field(&path, format!("{path}: expected a token id, found {}", kind(&item)))
        })
    };
    items.into_iter().enumerate().map(token).collect()
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

/// Whose the job is, how urgent, and what comes back with it.
fn about_the_job(fields: &mut Fields, request: &mut Request) -> Result<(), ApiError> {
    request.metadata = fields.take("metadata")?.unwrap_or_default();
    for name in ["user", "safety_identifier"] {
        if let Some(value) = fields.take::<String>(name)? {
            label(&mut request.metadata, name, value)?;
        }
    }
    request.lane = fields.take::<String>("service_tier")?.filter(|tier| tier != "auto" && tier != "default");
    request.deadline = fields.take("deadline")?;
    Ok(())
}

/// Keeps a field that only says whose the request is as a pair of the metadata, under its own name.
fn label(metadata: &mut BTreeMap<String, String>, name: &str, value: String) -> Result<(), ApiError> {
    let refuse = |found: String| Err(ApiError::field(name, format!("{name}: {found}")));
    if value.len() > MAX_METADATA_VALUE_BYTES {
        return refuse(format!("expected at most {MAX_METADATA_VALUE_BYTES} bytes, found {}", value.len()));
    }
    if let Some(other) = metadata.get(name).filter(|other| **other != value) {
        return refuse(format!("is kept in the metadata, expected no other value there, found {other:?}"));
    }
    if metadata.len() == MAX_METADATA && !metadata.contains_key(name) {
        return refuse(format!(
            "is kept in the metadata, expected less than {MAX_METADATA} pairs there, found as many"
        ));
    }
    metadata.insert(name.to_owned(), value);
    Ok(())
}
