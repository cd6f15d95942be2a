//! Server-sent events of a streamed completion, as OpenAI's protocol has them.

use serde::Deserialize;

/// A line longer than this is no event of a completion.
const LONGEST_LINE: usize = 16 << 20;

/// One event.
#[derive(Debug, PartialEq)]
pub(super) enum Chunk {
    Part {
        /// Whether it has a piece of the answer.
        text: bool,
        /// Whether the answer is complete.
        finished: bool,
        usage: Option<Usage>,
    },
    /// The server gave up.
    Error(String),
    Done,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Usage {
    pub(super) prompt_tokens: u32,
    pub(super) completion_tokens: u32,
    pub(super) cached_tokens: u32,
}

/// Splits a body into events, wherever its pieces are cut.
#[derive(Default)]
pub(super) struct Events {
    line: Vec<u8>,
}

type Failed = (String, String);

impl Events {
    /// The events that end in the next piece of the body.
    pub(super) fn feed(&mut self, bytes: &[u8]) -> Result<Vec<Chunk>, Failed> {
        let mut chunks = Vec::new();
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            if self.line.len() + piece.len() > LONGEST_LINE {
                return Err(("protocol".into(), format!("a line of the stream is longer than {LONGEST_LINE} bytes")));
            }
            self.line.extend_from_slice(piece);
            if piece.ends_with(b"\n") {
                chunks.extend(read(self.line.trim_ascii())?);
                self.line.clear();
            }
        }
        Ok(chunks)
    }
}

/// A line's event. Comments, names and empty lines are none.
fn read(line: &[u8]) -> Result<Option<Chunk>, Failed> {
    let Some(data) = line.strip_prefix(b"data:").map(<[u8]>::trim_ascii) else { return Ok(None) };
    if data == b"[DONE]" {
        return Ok(Some(Chunk::Done));
    }
    let event: Event = serde_json::from_slice(data)
        .map_err(|error| ("protocol".to_owned(), format!("an event of the stream is no completion chunk: {error}")))?;
    if let Some(error) = event.error {
        let message = error.get("message").and_then(|message| message.as_str()).map(str::to_owned);
        return Ok(Some(Chunk::Error(message.unwrap_or_else(|| error.to_string()))));
    }
    // Of several answers the first is followed.
    let first = |choice: &&Choice| choice.index == 0;
    let text = event.choices.iter().filter(first).any(Choice::says_something);
    let finished = event.choices.iter().filter(first).any(|choice| choice.finish_reason.is_some());
    let usage = event.usage.map(|usage| Usage {
        prompt_tokens: usage.prompt_tokens,
        completion_tokens: usage.completion_tokens,
        cached_tokens: usage.prompt_tokens_details.and_then(|details| details.cached_tokens).unwrap_or(0),
    });
    Ok(Some(Chunk::Part { text, finished, usage }))
}

#[derive(Deserialize)]
struct Event {
    #[serde(default)]
    choices: Vec<Choice>,
    usage: Option<RawUsage>,
    error: Option<serde_json::Value>,
}

#[derive(Deserialize)]
struct Choice {
    #[serde(default)]
    index: u32,
    /// Text completions.
    text: Option<String>,
    /// Chat.
    delta: Option<Delta>,
    finish_reason: Option<String>,
}

#[derive(Deserialize)]
struct Delta {
    content: Option<String>,
    /// What a thinking model says before its answer.
    reasoning_content: Option<String>,
}

#[derive(Deserialize)]
struct RawUsage {
    prompt_tokens: u32,
    completion_tokens: u32,
    prompt_tokens_details: Option<Details>,
}

#[derive(Deserialize)]
struct Details {
    cached_tokens: Option<u32>,
}

impl Choice {
    fn says_something(&self) -> bool {
        let delta = self.delta.as_ref();
        let parts = [
            self.text.as_deref(),
            delta.and_then(|delta| delta.content.as_deref()),
            delta.and_then(|delta| delta.reasoning_content.as_deref()),
        ];
        parts.into_iter().flatten().any(|part| !part.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BODY: &str = concat!(
        ": a comment\n\n",
        "data: {\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"finish_reason\":null}]}\n\n",
        "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"h\u{e9}\"}}],\"usage\":null}\r\n\r\n",
        "data: {\"choices\":[{\"index\":1,\"delta\":{\"content\":\"x\"},\"finish_reason\":\"stop\"}]}\n\n",
        "data:{\"choices\":[{\"index\":0,\"text\":\"\",\"finish_reason\":\"length\"}]}\n\n",
        "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":2,\"prompt_tokens_details\":{\"cached_tokens\":4}}}\n\n",
        "data: [DONE]\n\n",
    );

    #[test]
    fn events_are_the_same_wherever_the_body_is_cut() {
        let part = |text, finished| Chunk::Part { text, finished, usage: None };
        let usage = Some(Usage { prompt_tokens: 7, completion_tokens: 2, cached_tokens: 4 });
        let expected = [
            part(false, false),
            part(true, false),
            part(false, false),
            part(false, true),
            Chunk::Part { text: false, finished: false, usage },
            Chunk::Done,
        ];
        for size in [1, 3, 50, BODY.len()] {
            let mut events = Events::default();
            let found: Vec<Chunk> =
                BODY.as_bytes().chunks(size).flat_map(|piece| events.feed(piece).unwrap()).collect();
            assert_eq!(found, expected, "pieces of {size} bytes");
        }
    }

    #[test]
    fn errors_within_the_stream_are_told_and_nonsense_is_refused() {
        let one = |text: &str| Events::default().feed(text.as_bytes());
        let error = one("data: {\"error\": {\"message\": \"no room\", \"code\": 503}}\n").unwrap();
        assert_eq!(error, [Chunk::Error("no room".into())]);
        assert_eq!(one("data: nonsense\n").unwrap_err().0, "protocol");
    }
}
