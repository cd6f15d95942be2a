//! The lines of a batch, read one by one: what each asks for, and under which id it is one and the same job on every run.

use std::io::{self, BufRead};

use baton_contract::{
    JobId, Name, envelope, objects::Objects, outcome::request_digest, request::Request, upstream::Engines,
};
use baton_openai::{ApiError, Endpoint, RawLine, Splitter};
use serde_json::Value;

/// The longest line: what the broker takes as one message.
const LONGEST: usize = envelope::MAX_BYTES;

/// What is the same for all lines of a run.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Makes other jobs of the same lines.
    pub salt: String,
    /// The model that answers, whatever the lines name.
    pub model: Option<Name>,
    /// Where a line names no lane.
    pub lane: Name,
    /// Those there are.
    pub lanes: Vec<Name>,
    /// Which models foreign engines serve.
    pub engines: Engines,
}

/// What tells lines apart: of what a line is called, or of a whole line. 128 bits of BLAKE3.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key([u64; 2]);

impl Key {
    /// The key of what has these parts.
    pub fn of(parts: &[&[u8]]) -> Self {
        let digest = digest(parts);
        let half = |at: usize| u64::from_le_bytes(std::array::from_fn(|byte| digest[at + byte]));
        Self([half(0), half(8)])
    }

    /// The key of a line that is called so; Baton's own lines are called by their ids.
    pub fn of_name(custom_id: Option<&str>, id: &str) -> Self {
        match custom_id {
            Some(custom) => Self::of(&[b"custom_id", custom.as_bytes()]),
            None => Self::of(&[b"id", id.as_bytes()]),
        }
    }
}

/// What an id that a digest makes begins with, and how many letters it has.
const MADE: &str = "batch-";
const MADE_ID: usize = MADE.len() + 32;

/// The id that a digest makes: `batch-` and 32 hexadecimal digits.
fn made_id(digest: &[u8; 32]) -> JobId {
    let hex: String = digest[..16].iter().map(|byte| format!("{byte:02x}")).collect();
    // These letters are good for an id.
    JobId::new(&format!("{MADE}{hex}")).unwrap_or_else(|_| JobId::generate(0, [0; 10]))
}

fn digest(parts: &[&[u8]]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_derive_key("baton batch line");
    for part in parts {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    *hasher.finalize().as_bytes()
}

/// One line that is not empty.
#[derive(Debug)]
pub struct Line {
    /// Its place in the file, from 1.
    pub number: u64,
    /// What its answer is known by.
    pub tag: Tag,
    /// The job that it asks for, or why it asks for none.
    pub asked: Result<Asked, ApiError>,
}

/// What a line's answer is known by.
#[derive(Clone, Debug, PartialEq)]
pub struct Tag {
    /// The job's id; of a bad line one that is made in the same way.
    pub id: JobId,
    pub custom_id: Option<String>,
    /// None if the line is a request of Baton's own kind.
    pub endpoint: Option<Endpoint>,
}

impl Tag {
    pub fn key(&self) -> Key {
        Key::of_name(self.custom_id.as_deref(), self.id.as_str())
    }

    /// A tag for a line at this place that can't have its own.
    pub fn spare(&self, number: u64) -> Self {
        let digest = digest(&[b"spare", self.id.as_str().as_bytes(), &number.to_le_bytes()]);
        Self { id: made_id(&digest), custom_id: None, endpoint: None }
    }
}

/// A job to be.
#[derive(Debug)]
pub struct Asked {
    pub lane: Name,
    request: Request,
    /// Whether the id is not the line's own word, so that it can be tried again under another.
    pub repeatable: bool,
}

impl Asked {
    /// The request as it is published under an id, and its digest.
    pub fn body(&self, id: &JobId) -> serde_json::Result<(Vec<u8>, String)> {
        let request = Request { id: Some(id.to_string()), ..self.request.clone() };
        let body = serde_json::to_vec(&request)?;
        let digest = request_digest(&body);
        Ok((body, digest))
    }
}

/// The id of a line's job when it is tried for the `attempt`th time, from 1.
pub(crate) fn attempt_id(id: &JobId, attempt: u32) -> Option<JobId> {
    if attempt <= 1 { Some(id.clone()) } else { JobId::new(&format!("{id}-{attempt}")).ok() }
}

/// What all attempts at a line have of an id that was made here; another id as it is.
pub(crate) fn first_of(id: &str) -> &str {
    if id.starts_with(MADE) { id.get(..MADE_ID).unwrap_or(id) } else { id }
}

/// Reads lines until there are no more. Blocks.
pub(crate) struct Lines<R> {
    input: R,
    splitter: Splitter,
    ended: bool,
    settings: Settings,
}

impl<R: BufRead> Lines<R> {
    pub(crate) fn new(input: R, settings: Settings) -> Self {
        Self { input, splitter: Splitter::new(LONGEST), ended: false, settings }
    }

    /// The next line that is not blank. What is too long is not kept in memory.
    pub(crate) fn next(&mut self) -> io::Result<Option<Line>> {
        loop {
            if let Some(raw) = self.splitter.next() {
                return Ok(Some(self.settings.line(&raw)));
            }
            if self.ended {
                return Ok(None);
            }
            let block = match self.input.fill_buf() {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                block => block?,
            };
            let length = block.len();
            self.splitter.push(block);
            if length == 0 {
                self.ended = true;
                self.splitter.end();
            }
            self.input.consume(length);
        }
    }
}

impl Settings {
    /// A line that can't be followed: its id depends on its bytes, and where it has no name, on its place.
    fn bad(&self, raw: &RawLine, custom_id: Option<String>, error: ApiError) -> Line {
        let name = custom_id.clone().unwrap_or_else(|| raw.number.to_string());
        let id = self.id(&name, raw.bytes.trim_ascii());
        Line { number: raw.number, tag: Tag { id, custom_id, endpoint: None }, asked: Err(error) }
    }

    fn id(&self, name: &str, content: &[u8]) -> JobId {
        let digest = digest(&[self.salt.as_bytes(), name.as_bytes(), content]);
        made_id(&digest)
    }

    /// What a line asks for.
    fn line(&self, raw: &RawLine) -> Line {
        if !raw.whole {
            let message = format!("the line is longer than {LONGEST} bytes");
            return self.bad(raw, None, ApiError::invalid(message));
        }
        let value: Value = match serde_json::from_slice(&raw.bytes) {
            Ok(value) => value,
            Err(error) => return self.bad(raw, None, ApiError::invalid(format!("the line is no JSON: {error}"))),
        };
        let Value::Object(object) = value else {
            return self.bad(raw, None, ApiError::invalid("expected a JSON object"));
        };
        if !["custom_id", "method", "url", "body"].iter().any(|key| object.contains_key(*key)) {
            return self.own(raw, Value::Object(object));
        }
        // Also a line that is bad keeps its name.
        let custom = match object.get("custom_id") {
            Some(Value::String(text)) if !text.is_empty() => text.clone(),
            _ => {
                return self.bad(
                    raw,
                    None,
                    ApiError::field("custom_id", "custom_id: expected a text that names the line"),
                );
            }
        };
        match self.openai(&raw.bytes) {
            Ok((endpoint, asked)) => {
                let id = self.id(&custom, &serde_json::to_vec(&asked.request).unwrap_or_default());
                let tag = Tag { id, custom_id: Some(custom), endpoint: Some(endpoint) };
                Line { number: raw.number, tag, asked: Ok(asked) }
            }
            Err(error) => self.bad(raw, Some(custom), error),
        }
    }

    /// A line as OpenAI's batches have it.
    fn openai(&self, bytes: &[u8]) -> Result<(Endpoint, Asked), ApiError> {
        let line = baton_openai::read_line(bytes)?;
        let call = baton_openai::read(line.endpoint, line.body.get().as_bytes(), &self.engines)?;
        if call.stream {
            return Err(ApiError::field("stream", "stream: answers of a batch come whole; leave it out"));
        }
        Ok((line.endpoint, self.asked(call.request, true)?))
    }

    /// A line as `baton submit --jsonl` takes it.
    fn own(&self, raw: &RawLine, value: Value) -> Line {
        let named = value.get("id").and_then(Value::as_str).map(str::to_owned);
        let read = serde_path_to_error::deserialize::<_, Request>(Objects(value));
        let request = match read {
            Ok(request) => request,
            Err(error) => return self.bad(raw, None, ApiError::invalid(format!("the line is no request: {error}"))),
        };
        let id = match named {
            Some(named) => JobId::new(&named),
            None => Ok(self.id("", &serde_json::to_vec(&request).unwrap_or_default())),
        };
        let repeatable = request.id.is_none();
        let asked = id.map_err(|error| ApiError::field("id", format!("id: {error}")));
        match asked.and_then(|id| Ok((id, self.asked(request, repeatable)?))) {
            Ok((id, asked)) => {
                Line { number: raw.number, tag: Tag { id, custom_id: None, endpoint: None }, asked: Ok(asked) }
            }
            Err(error) => self.bad(raw, None, error),
        }
    }

    fn asked(&self, mut request: Request, repeatable: bool) -> Result<Asked, ApiError> {
        if let Some(model) = &self.model {
            request.model = Some(model.to_string());
        }
        let lane = match &request.lane {
            None => self.lane.clone(),
            Some(lane) => {
                let known = self.lanes.iter().find(|known| known.as_str() == lane);
                let unknown = || ApiError::field("lane", format!("lane: the pipeline has no lane {lane:?}"));
                known.cloned().ok_or_else(unknown)?
            }
        };
        Ok(Asked { lane, request, repeatable })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str, salt: &str) -> Vec<Line> {
        let lane = Name::new("batch").unwrap();
        let settings =
            Settings { salt: salt.into(), model: None, lanes: vec![lane.clone()], lane, engines: Engines::default() };
        let mut lines = Lines::new(text.as_bytes(), settings);
        std::iter::from_fn(|| lines.next().unwrap()).collect()
    }

    fn line(custom_id: &str, content: &str) -> String {
        let body = serde_json::json!({ "model": "sim", "messages": [{ "role": "user", "content": content }] });
        let line = serde_json::json!({
            "custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body,
        });
        format!("{line}\n")
    }

    #[test]
    fn a_line_is_the_same_job_wherever_it_stands_and_another_line_is_another() {
        let all = [line("a", "x"), line("b", "x"), line("a", "y")].concat();
        let first = lines(&all, "");
        let windows = lines(&format!("\u{feff}{}", all.replace('\n', "\r\n")), "");
        assert!(windows.iter().zip(&first).all(|(one, other)| one.tag == other.tag), "{windows:?}");
        let moved = lines(&format!("\n\n{}", line("b", "x")), "");
        assert_eq!(moved[0].number, 3);
        assert_eq!(moved[0].tag, first[1].tag);
        let ids: std::collections::BTreeSet<_> =
            first.iter().chain(&lines(&all, "again")).map(|line| line.tag.id.as_str().to_owned()).collect();
        assert_eq!(ids.len(), 6, "{ids:?}");
        assert_eq!(first[0].tag.key(), first[2].tag.key(), "one name, whatever it asks for");
        let (body, digest) = first[0].asked.as_ref().unwrap().body(&first[0].tag.id).unwrap();
        assert!(String::from_utf8_lossy(&body).contains(first[0].tag.id.as_str()));
        assert_eq!(digest, request_digest(&body));
    }

    #[test]
    fn each_bad_line_tells_what_is_wrong_and_keeps_its_name() {
        let long = "x".repeat(LONGEST + 10);
        let bad = [
            ("{", None, "no JSON"),
            ("[1]", None, "JSON object"),
            (r#"{"method": "POST"}"#, None, "custom_id"),
            (r#"{"custom_id": "m", "method": "GET", "url": "/v1/completions", "body": {}}"#, Some("m"), "POST"),
            (r#"{"custom_id": "u", "method": "POST", "url": "/v1/embeddings", "body": {}}"#, Some("u"), "url"),
            (r#"{"custom_id": "b", "method": "POST", "url": "/v1/completions"}"#, Some("b"), "body"),
            (
                r#"{"custom_id": "f", "method": "POST", "url": "/v1/completions", "body": {"prompt": "a", "best_off": 2}}"#,
                Some("f"),
                "best_off",
            ),
            (r#"{"prompt": "a", "best_off": 2}"#, None, "best_off"),
            (r#"{"prompt": "a", "lane": "nowhere"}"#, None, "nowhere"),
            (&long, None, "longer than"),
        ];
        let text: String = bad.iter().map(|(line, ..)| format!("{line}\n")).collect();
        let read = lines(&format!("{text}{{\"id\": \"own\", \"prompt\": \"a\"}}"), "");
        assert_eq!(read.len(), bad.len() + 1);
        for (read, (_, custom_id, part)) in read.iter().zip(bad) {
            let error = read.asked.as_ref().unwrap_err();
            assert!(error.message.contains(part), "{part}: {error}");
            assert_eq!(read.tag.custom_id.as_deref(), custom_id, "{error}");
        }
        let own = read.last().unwrap();
        assert!(own.tag.id.as_str() == "own" && own.tag.endpoint.is_none() && own.asked.is_ok());
    }
}
