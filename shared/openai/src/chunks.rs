//! Streams: a job's tokens and result as OpenAI's chunks, so that the chunks are the whole answer exactly once, whatever of
//! the tokens was missing or came twice.

use std::collections::VecDeque;

use baton_contract::{
    outcome::{Choice, Delta, Outcome, TokenLogprob},
    upstream::whole,
};
use serde_json::{Map, Value, json};

use crate::{
    endpoint::Endpoint,
    error::ApiError,
    response::{characters, choices, failure, finish, id, logprobs_of, object, system_fingerprint, usage},
    told::{Text, Told},
};

/// One stream.
#[derive(Debug)]
pub struct Chunks {
    endpoint: Endpoint,
    /// What every chunk has.
    frame: Value,
    include_usage: bool,
    progress: Vec<Progress>,
}

/// What was sent of one answer.
#[derive(Clone, Debug, Default)]
struct Progress {
    begun: bool,
    /// The next token's place, or the next piece's.
    next: u32,
    /// Whether the answer has begun again before that place: what was sent can't be taken back, so it waits for the result.
    restarted: bool,
    /// Log-probabilities that were sent, and those that wait for their text to be final: no more than a stop text has tokens.
    told: usize,
    held: VecDeque<TokenLogprob>,
    text: Text,
    /// What else the message has.
    message: Told,
    /// Characters that its tokens have begun, where log-probabilities tell them.
    characters: usize,
}

impl Chunks {
    /// A stream of `n` answers to a call of the `job`, which was `created` at so many seconds since 1970.
    pub fn new(endpoint: Endpoint, job: &str, model: &str, created: u64, n: u32, include_usage: bool) -> Self {
        let mut frame = json!({
            "id": id(endpoint, job),
            "object": object(endpoint, true),
            "created": created,
            "model": model,
        });
        if include_usage {
            frame["usage"] = Value::Null;
        }
        Self { endpoint, frame, include_usage, progress: vec![Progress::default(); n as usize] }
    }

    /// The chunks that a token or a piece makes. One that came before makes none; neither does one that others are missing before,
    /// or before which the answer has begun again: from then on its answer waits for the result.
    pub fn token(&mut self, delta: &Delta) -> Vec<Value> {
        let Some(progress) = self.progress.get_mut(delta.choice as usize) else { return Vec::new() };
        if delta.restart {
            progress.restarted |= delta.index < progress.next;
            return Vec::new();
        }
        if progress.restarted || progress.next != delta.index {
            return Vec::new();
        }
        progress.held.extend(delta.logprobs.clone());
        let settled = delta.settled.unwrap_or(delta.index + 1) as usize;
        let settled = settled.saturating_sub(progress.told).min(progress.held.len());
        let logprobs: Vec<_> = progress.held.drain(..settled).collect();
        let message = delta.message.as_ref().map(|part| progress.message.tell(part)).unwrap_or_default();
        self.piece(delta.choice, &delta.text, message, &logprobs, 1)
    }

    /// The chunks that are left when the result is there: what of each answer was not sent, and how it ended.
    pub fn end(&mut self, outcome: &Outcome) -> Result<Vec<Value>, ApiError> {
        if let Some(error) = failure(outcome) {
            return Err(error);
        }
        // It is known now.
        self.frame["system_fingerprint"] = system_fingerprint(outcome).into();
        let mut chunks = Vec::new();
        for choice in choices(outcome) {
            chunks.extend(self.rest(&choice)?);
        }
        if self.include_usage {
            let mut last = self.frame.clone();
            last["choices"] = json!([]);
            last["usage"] = usage(&outcome.usage);
            chunks.push(last);
        }
        Ok(chunks)
    }

    fn rest(&mut self, choice: &Choice) -> Result<Vec<Value>, ApiError> {
        let unlike = || ApiError::internal("the result is not what was streamed; read it anew by the job's id");
        let sent = self.progress.get_mut(choice.index as usize).ok_or_else(unlike)?;
        sent.held.clear();
        // It may have begun again, with another model or in other words.
        let text = sent.text.rest(&choice.text).ok_or_else(unlike)?;
        let message = sent.message.rest(&whole(&choice.message)).ok_or_else(unlike)?;
        let logprobs = choice.logprobs.as_ref().map_or(&[][..], |logprobs| &logprobs.content);
        let logprobs = logprobs.get(sent.told..).unwrap_or_default();
        let tokens = (choice.tokens.len() as u32).saturating_sub(sent.next);
        let mut chunks = self.piece(choice.index, text, message, logprobs, tokens);
        chunks.push(self.chunk(choice.index, "", Map::new(), Value::Null, finish(choice.finish_reason)));
        Ok(chunks)
    }

    /// The next piece of an answer, after the role if it is the first.
    fn piece(
        &mut self,
        choice: u32,
        text: &str,
        message: Map<String, Value>,
        logprobs: &[TokenLogprob],
        tokens: u32,
    ) -> Vec<Value> {
        let mut chunks = Vec::new();
        let Some(progress) = self.progress.get_mut(choice as usize) else { return chunks };
        let first = !std::mem::replace(&mut progress.begun, true);
        let offset = progress.characters;
        progress.next += tokens;
        progress.told += logprobs.len();
        progress.text.add(text);
        progress.characters += characters(logprobs);
        if first && self.endpoint == Endpoint::ChatCompletions {
            let mut chunk = self.frame.clone();
            let delta = json!({ "role": "assistant", "content": "", "refusal": null });
            chunk["choices"] = json!([{ "index": choice, "delta": delta, "logprobs": null, "finish_reason": null }]);
            chunks.push(chunk);
        }
        if !text.is_empty() || !message.is_empty() || !logprobs.is_empty() {
            let logprobs = match logprobs {
                [] => Value::Null,
                some => logprobs_of(self.endpoint, some, offset),
            };
            chunks.push(self.chunk(choice, text, message, logprobs, None));
        }
        chunks
    }

    fn chunk(
        &self,
        choice: u32,
        text: &str,
        mut message: Map<String, Value>,
        logprobs: Value,
        finish: Option<&str>,
    ) -> Value {
        let mut value = json!({ "index": choice, "logprobs": logprobs, "finish_reason": finish });
        match self.endpoint {
            Endpoint::ChatCompletions => {
                if finish.is_none() && (!text.is_empty() || message.is_empty()) {
                    message.insert("content".into(), text.into());
                }
                value["delta"] = message.into();
            }
            Endpoint::Completions => value["text"] = text.into(),
        }
        let mut chunk = self.frame.clone();
        chunk["choices"] = json!([value]);
        chunk
    }
}
