//! Fields that are read alike for Baton's own models and for foreign ones.

use baton_contract::request::{Prompt, Request, Stop};
use serde_json::Value;

use crate::{
    error::ApiError,
    fields::{Fields, kind},
};

/// Alternatives to a token in the older endpoint.
const MAX_COMPLETION_LOGPROBS: u32 = 20;

/// How tokens are drawn: the same in both endpoints.
pub(crate) fn sampling(fields: &mut Fields, request: &mut Request) -> Result<(), ApiError> {
    request.temperature = fields.take("temperature")?;
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

/// The tokens that a chat's answer may have, by the older and the newer of two names; equal if both are there.
pub(crate) fn token_limits(fields: &mut Fields) -> Result<(Option<u32>, Option<u32>), ApiError> {
    let (old, new) = (fields.take::<u32>("max_tokens")?, fields.take::<u32>("max_completion_tokens")?);
    match (old, new) {
        (Some(old), Some(new)) if old != new => {
            let message =
                format!("max_completion_tokens: expected max_tokens, {old}, where both are there; found {new}");
            Err(ApiError::field("max_completion_tokens", message))
        }
        limits => Ok(limits),
    }
}

/// The older endpoint's prompt, and how many log-probabilities are told.
pub(crate) fn prompt(fields: &mut Fields, request: &mut Request) -> Result<(), ApiError> {
    let prompt = fields.raw("prompt");
    let prompt = prompt.ok_or_else(|| ApiError::field("prompt", "prompt: expected a text, found nothing"))?;
    request.prompt = Some(read_prompt(prompt)?);
    request.max_tokens = fields.take("max_tokens")?;
    if let Some(count) = fields.take::<u32>("logprobs")? {
        if count > MAX_COMPLETION_LOGPROBS {
            let message = format!("logprobs: expected 0 to {MAX_COMPLETION_LOGPROBS}, found {count}");
            return Err(ApiError::field("logprobs", message));
        }
        request.logprobs = Some(true);
        request.top_logprobs = Some(count);
    }
    Ok(())
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
