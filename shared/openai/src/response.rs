//! Writes results as OpenAI's answers.

use baton_contract::{
    outcome::{Alternative, Choice, Code, Failure, FinishReason, Outcome, Status, TokenLogprob, Usage},
    upstream::whole,
};
use serde_json::{Value, json};

use crate::{endpoint::Endpoint, error::ApiError};

/// The answer that a result is. One of a job that did not complete is an error.
pub fn response(call_endpoint: Endpoint, outcome: &Outcome) -> Result<Value, ApiError> {
    if let Some(error) = failure(outcome) {
        return Err(error);
    }
    let choices: Vec<Value> = choices(outcome).iter().map(|choice| of_choice(call_endpoint, choice)).collect();
    Ok(json!({
        "id": id(call_endpoint, outcome.id.as_str()),
        "object": object(call_endpoint, false),
        "created": created(outcome),
        "model": model(outcome),
        "system_fingerprint": system_fingerprint(outcome),
        "choices": choices,
        "usage": usage(&outcome.usage),
    }))
}

/// Why a result is no answer.
pub(crate) fn failure(outcome: &Outcome) -> Option<ApiError> {
    match (&outcome.error, outcome.status) {
        (Some(failure), _) => Some(ApiError::from(failure)),
        (None, Status::Completed) => None,
        (None, status) => {
            let code = match status {
                Status::Expired => Code::DeadlineExceeded,
                Status::Cancelled => Code::Cancelled,
                _ => Code::Internal,
            };
            Some(ApiError::from(&Failure::new(code, "the job did not complete")))
        }
    }
}

/// All answers of a result; the only one, if there is one only.
pub(crate) fn choices(outcome: &Outcome) -> Vec<Choice> {
    if !outcome.choices.is_empty() {
        return outcome.choices.clone();
    }
    vec![Choice {
        index: 0,
        text: outcome.text.clone(),
        tokens: outcome.tokens.clone(),
        finish_reason: outcome.finish_reason,
        logprobs: outcome.logprobs.clone(),
        message: outcome.message.clone(),
    }]
}

pub(crate) fn id(endpoint: Endpoint, job: &str) -> String {
    match endpoint {
        Endpoint::ChatCompletions => format!("chatcmpl-{job}"),
        Endpoint::Completions => format!("cmpl-{job}"),
    }
}

pub(crate) fn object(endpoint: Endpoint, chunk: bool) -> &'static str {
    match (endpoint, chunk) {
        (Endpoint::ChatCompletions, false) => "chat.completion",
        (Endpoint::ChatCompletions, true) => "chat.completion.chunk",
        (Endpoint::Completions, _) => "text_completion",
    }
}

/// Seconds since 1970.
fn created(outcome: &Outcome) -> u64 {
    outcome.timings.accepted_at_ms / 1_000
}

fn model(outcome: &Outcome) -> &str {
    outcome.model.as_ref().map_or("", |model| model.as_str())
}

/// Tells models of one name apart: the beginning of the result's fingerprint.
pub(crate) fn system_fingerprint(outcome: &Outcome) -> Option<String> {
    let fingerprint = outcome.model_fingerprint.as_ref()?;
    Some(format!("fp_{}", fingerprint.get(..16)?))
}

fn of_choice(endpoint: Endpoint, choice: &Choice) -> Value {
    let logprobs = choice.logprobs.as_ref().map(|logprobs| logprobs_of(endpoint, &logprobs.content, 0));
    let mut value =
        json!({ "index": choice.index, "logprobs": logprobs, "finish_reason": finish(choice.finish_reason) });
    match endpoint {
        Endpoint::ChatCompletions => value["message"] = message(choice),
        Endpoint::Completions => value["text"] = choice.text.as_str().into(),
    }
    value
}

/// A message without a text has none, and not an empty one, where it calls tools.
fn message(choice: &Choice) -> Value {
    let more = whole(&choice.message);
    let calls = ["tool_calls", "function_call"].iter().any(|name| more.contains_key(*name));
    let content = Some(choice.text.as_str()).filter(|text| !calls || !text.is_empty());
    let mut message = json!({ "role": "assistant", "content": content, "refusal": null });
    if let Value::Object(message) = &mut message {
        message.extend(more);
    }
    message
}

pub(crate) fn finish(reason: Option<FinishReason>) -> Option<&'static str> {
    reason.map(|reason| match reason {
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
        FinishReason::ToolCalls => "tool_calls",
        FinishReason::ContentFilter => "content_filter",
    })
}

pub(crate) fn usage(usage: &Usage) -> Value {
    json!({
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": u64::from(usage.prompt_tokens) + u64::from(usage.completion_tokens),
        "prompt_tokens_details": { "cached_tokens": usage.cached_tokens },
    })
}

/// The characters that tokens begin: a character may be several tokens, and then the first of them begins it.
pub(crate) fn characters(content: &[TokenLogprob]) -> usize {
    content.iter().flat_map(|logprob| &logprob.chosen.bytes).filter(|byte| begins(**byte)).count()
}

/// Whether a byte of UTF-8 is the first of its character.
fn begins(byte: u8) -> bool {
    byte & 0xc0 != 0x80
}

/// The character of the text in which a token begins, after tokens that began so many characters.
fn offset_of(token: &Alternative, before: usize) -> usize {
    match token.bytes.first() {
        Some(byte) if begins(*byte) => before,
        // It goes on with the character that a token before it began, or has no text, as one that ends the answer.
        _ => before.saturating_sub(1),
    }
}

/// Log-probabilities of tokens before which others began so many characters: a list in the newer endpoint, lists side by side in
/// the older.
pub(crate) fn logprobs_of(endpoint: Endpoint, content: &[TokenLogprob], before: usize) -> Value {
    match endpoint {
        Endpoint::ChatCompletions => {
            let content: Vec<Value> = content.iter().map(chat_logprob).collect();
            json!({ "content": content, "refusal": null })
        }
        Endpoint::Completions => {
            let mut before = before;
            let offsets: Vec<usize> = content
                .iter()
                .map(|logprob| {
                    let offset = offset_of(&logprob.chosen, before);
                    before += characters(std::slice::from_ref(logprob));
                    offset
                })
                .collect();
            let tops: Vec<Value> = content
                .iter()
                .map(|logprob| {
                    // As with OpenAI, the token that was drawn is always there, so there may be one more than was asked for.
                    let told = logprob.top_logprobs.iter().chain(std::iter::once(&logprob.chosen));
                    Value::Object(told.map(|token| (token.token.clone(), token.logprob.into())).collect())
                })
                .collect();
            json!({
                "tokens": content.iter().map(|logprob| logprob.chosen.token.as_str()).collect::<Vec<_>>(),
                "token_logprobs": content.iter().map(|logprob| logprob.chosen.logprob).collect::<Vec<_>>(),
                "top_logprobs": tops,
                "text_offset": offsets,
            })
        }
    }
}

fn chat_logprob(logprob: &TokenLogprob) -> Value {
    let one = |alternative: &Alternative| json!({ "token": alternative.token, "logprob": alternative.logprob, "bytes": alternative.bytes });
    let mut value = one(&logprob.chosen);
    value["top_logprobs"] = logprob.top_logprobs.iter().map(one).collect();
    value
}
