//! An engine's chunks become events; pure. Chats and completions, streamed and whole, are read alike.

use std::collections::VecDeque;

use baton_contract::{
    outcome::{FinishReason, TokenLogprob, Usage},
    upstream::Engine,
};
use serde_json::{Map, Value};

use crate::{Event, Piece, logprobs, refusal};

/// What is kept of an answer may have so many bytes. An engine that goes on without end is stopped here.
const MOST_BYTES: usize = 64 << 20;

/// Why what came is no answer.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub(crate) enum Broken {
    #[error("an error in its place")]
    Error(Value),
    #[error("expected JSON, found {0:?}")]
    NoJson(String),
    #[error("expected a completion, found other JSON")]
    NoCompletion,
    #[error("the engine gave the answer up (finish_reason {0})")]
    GivenUp(String),
    #[error("the answer has a choice {0}, which was not asked for")]
    Choice(u64),
    #[error("the answer went on after its finish_reason")]
    WentOn,
    #[error("the answer has more than {MOST_BYTES} bytes")]
    TooLarge,
    #[error("the stream said [DONE] without a finish_reason")]
    Unfinished,
    #[error("the stream ended in the middle of the answer")]
    CutOff,
}

/// Reads the answer to one request.
#[derive(Debug)]
pub(crate) struct Reader {
    engine: Engine,
    choices: Vec<Choice>,
    /// Tokens of the answer that the engine takes for a part of the prompt; nothing if it began with this request.
    begun: Option<u32>,
    events: VecDeque<Event>,
    usage: Option<Usage>,
    kept_bytes: usize,
    has_prompt: bool,
    is_over: bool,
}

/// What of an answer waits for its text: an engine may tell a token before the text that it completes.
#[derive(Debug, Default)]
struct Choice {
    tokens: Vec<u32>,
    logprobs: Vec<TokenLogprob>,
    is_finished: bool,
}

impl Reader {
    /// Of a request for `choices` answers, of which the only one goes on after so many tokens.
    pub(crate) fn new(engine: Engine, choices: usize, begun: Option<u32>) -> Self {
        Self {
            engine,
            choices: (0..choices).map(|_| Choice::default()).collect(),
            begun,
            events: VecDeque::new(),
            usage: None,
            kept_bytes: 0,
            has_prompt: begun.is_some(),
            is_over: false,
        }
    }

    /// An answer that was whole before anything was asked.
    pub(crate) fn over(engine: Engine, finish_reason: FinishReason, usage: Usage) -> Self {
        let piece = Piece { finish_reason: Some(finish_reason), ..Piece::default() };
        let events = VecDeque::from([Event::Piece(piece), Event::Usage(usage)]);
        Self { events, is_over: true, ..Self::new(engine, 0, None) }
    }

    /// The next of what was read.
    pub(crate) fn next(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Whether nothing more is to come.
    pub(crate) fn is_over(&self) -> bool {
        self.is_over
    }

    /// Whether every answer has come to its end. Only the usage may be missing.
    pub(crate) fn is_finished(&self) -> bool {
        self.choices.iter().all(|choice| choice.is_finished)
    }

    /// Reads the data of an event.
    pub(crate) fn read(&mut self, data: &[u8], is_error: bool) -> Result<(), Broken> {
        match data.trim_ascii() {
            b"" => Ok(()),
            b"[DONE]" if self.is_finished() => self.end(),
            b"[DONE]" => Err(Broken::Unfinished),
            data => self.chunk(data, is_error),
        }
    }

    /// Reads an answer that is not streamed.
    pub(crate) fn whole(&mut self, body: &[u8]) -> Result<(), Broken> {
        self.chunk(body, false)?;
        if self.is_finished() { self.end() } else { Err(Broken::NoCompletion) }
    }

    /// The stream has ended.
    pub(crate) fn end(&mut self) -> Result<(), Broken> {
        if !self.is_finished() {
            return Err(Broken::CutOff);
        }
        if !self.is_over {
            self.is_over = true;
            self.events.extend(self.usage.map(Event::Usage));
        }
        Ok(())
    }

    fn chunk(&mut self, data: &[u8], is_error: bool) -> Result<(), Broken> {
        let found = || String::from_utf8_lossy(data).chars().take(60).collect();
        let mut chunk: Value = match serde_json::from_slice(data) {
            Ok(chunk) => chunk,
            Err(_) if is_error => Value::String(String::from_utf8_lossy(data).into_owned()),
            Err(_) => return Err(Broken::NoJson(found())),
        };
        if is_error || refusal::is_error(&chunk) {
            return Err(Broken::Error(chunk));
        }
        let Value::Object(chunk) = &mut chunk else { return Err(Broken::NoJson(found())) };
        self.prompt(chunk.get("prompt_token_ids"));
        if let Some(Value::Array(choices)) = chunk.get_mut("choices") {
            for choice in choices {
                if let Value::Object(choice) = choice {
                    self.choice(choice, data.len())?;
                }
            }
        }
        if let Some(Value::Object(usage)) = chunk.get("usage") {
            self.count(usage);
        }
        Ok(())
    }

    fn prompt(&mut self, ids: Option<&Value>) {
        if let Some(ids) = ids.and_then(token_ids)
            && !self.has_prompt
        {
            self.has_prompt = true;
            self.events.push_back(Event::Prompt(ids));
        }
    }

    fn choice(&mut self, choice: &mut Map<String, Value>, chunk_bytes: usize) -> Result<(), Broken> {
        self.prompt(choice.get("prompt_token_ids"));
        let index = choice.get("index").and_then(Value::as_u64).unwrap_or_default();
        let place = usize::try_from(index).ok().filter(|place| *place < self.choices.len());
        let place = place.ok_or(Broken::Choice(index))?;
        let (text, message) = parts(choice);
        let finish_reason = match choice.get("finish_reason") {
            Some(Value::String(reason)) => Some(finish_reason(reason)?),
            _ => None,
        };
        let tokens = choice.get("token_ids").and_then(token_ids).unwrap_or_default();
        let logprobs = choice.get("logprobs").map(|logprobs| logprobs::read(logprobs, &tokens)).unwrap_or_default();
        let is_empty = text.is_empty() && message.is_empty();
        if self.choices[place].is_finished {
            return if is_empty && tokens.is_empty() { Ok(()) } else { Err(Broken::WentOn) };
        }
        self.kept_bytes += text.len() + size_of_val(&*tokens);
        self.kept_bytes += logprobs.iter().map(TokenLogprob::json_bytes).sum::<usize>();
        self.kept_bytes += if message.is_empty() { 0 } else { chunk_bytes };
        if self.kept_bytes > MOST_BYTES {
            return Err(Broken::TooLarge);
        }
        let waiting = &mut self.choices[place];
        waiting.tokens.extend(tokens);
        waiting.logprobs.extend(logprobs);
        waiting.is_finished = finish_reason.is_some();
        if !is_empty || finish_reason.is_some() {
            let (tokens, logprobs) = (std::mem::take(&mut waiting.tokens), std::mem::take(&mut waiting.logprobs));
            let choice = place as u32;
            self.events.push_back(Event::Piece(Piece { choice, text, message, tokens, logprobs, finish_reason }));
        }
        Ok(())
    }

    /// An engine tells its usage once for all answers, or again and again as it grows; llama.cpp once for each answer.
    fn count(&mut self, usage: &Map<String, Value>) {
        let count =
            |value: Option<&Value>| value.and_then(Value::as_u64).unwrap_or_default().min(u32::MAX.into()) as u32;
        let begun = self.begun.unwrap_or_default();
        let before = self.usage.map(|usage| usage.completion_tokens).filter(|_| self.engine == Engine::LlamaCpp);
        let prompt_tokens = count(usage.get("prompt_tokens")).saturating_sub(begun);
        let cached = usage.get("prompt_tokens_details").and_then(|details| details.get("cached_tokens"));
        self.usage = Some(Usage {
            prompt_tokens,
            completion_tokens: count(usage.get("completion_tokens")).saturating_add(before.unwrap_or(begun)),
            cached_tokens: count(cached).min(prompt_tokens),
        });
    }
}

/// Text, and what else there is of a message: of a chat's delta, of a whole chat, or of a completion.
fn parts(choice: &mut Map<String, Value>) -> (String, Map<String, Value>) {
    let message = ["delta", "message"].iter().find_map(|name| choice.remove(*name).filter(Value::is_object));
    let (text, mut message) = match message {
        Some(Value::Object(mut message)) => match message.remove("content") {
            Some(Value::String(text)) => (Some(text), message),
            // Parts of several kinds are no text.
            Some(parts @ Value::Array(_)) => {
                message.insert("content".into(), parts);
                (None, message)
            }
            _ => (None, message),
        },
        _ => match choice.remove("text") {
            Some(Value::String(text)) => (Some(text), Map::new()),
            _ => (None, Map::new()),
        },
    };
    message.retain(|name, value| {
        let is_empty = match value {
            Value::Null => true,
            Value::String(text) => text.is_empty(),
            Value::Array(list) => list.is_empty(),
            Value::Object(object) => object.is_empty(),
            _ => false,
        };
        name != "role" && !is_empty
    });
    (text.unwrap_or_default(), message)
}

fn finish_reason(reason: &str) -> Result<FinishReason, Broken> {
    match reason {
        "length" => Ok(FinishReason::Length),
        "tool_calls" | "function_call" => Ok(FinishReason::ToolCalls),
        "content_filter" => Ok(FinishReason::ContentFilter),
        "abort" | "error" | "insufficient_system_resource" => Err(Broken::GivenUp(reason.to_owned())),
        // Engines have words of their own for an answer that came to its end.
        _ => Ok(FinishReason::Stop),
    }
}

fn token_ids(ids: &Value) -> Option<Vec<u32>> {
    ids.as_array()?.iter().map(|id| u32::try_from(id.as_u64()?).ok()).collect()
}

#[cfg(test)]
mod tests;
