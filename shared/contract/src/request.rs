//! The public request: one JSON object, published to `<root>.req.<tenant>.<lane>`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{
    JobId, Name,
    objects::{self, Objects},
    outcome::{Code, Failure},
    sampling::Sampling,
};

pub use crate::{
    controls::MAX_LOGIT_BIAS,
    form::{FormatKind, JsonSchema, MAX_REGEX_BYTES, MAX_SCHEMA_BYTES, ResponseFormat, StructuredOutputs},
};

/// Tokens an answer may have when the request sets no `max_tokens`.
pub const DEFAULT_MAX_TOKENS: u32 = 256;
/// Stop strings a request may name, and the bytes each may have.
pub const MAX_STOPS: usize = 16;
/// Bytes that one of them may have.
pub const MAX_STOP_BYTES: usize = 256;
/// Pairs of metadata a request may carry, and the bytes of a key and a value.
pub const MAX_METADATA: usize = 16;
/// Bytes that a key may have.
pub const MAX_METADATA_KEY_BYTES: usize = 64;
/// Bytes that a value may have.
pub const MAX_METADATA_VALUE_BYTES: usize = 512;
/// Answers to one prompt that a request may ask for.
pub const MAX_SAMPLES: u32 = 16;

/// A request as its sender writes it. Fields that are not listed here are refused by name.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// The job's id and idempotency key. Without it the job gets a UUID of version 7.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// A model of the pipeline. Without it the pipeline's default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// A conversation, rendered with the model's chat template. Either this or `prompt`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub messages: Option<Vec<ChatMessage>>,
    /// Raw text, or token ids. Either this or `messages`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt: Option<Prompt>,
    /// Tokens the answer may have at most; 256 without it. Never more than the model's context leaves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<u32>,
    /// 0 (the default) is greedy; up to 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f32>,
    /// Above 0, up to 1 (the default: all tokens).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top_p: Option<f32>,
    /// 0 (the default) keeps all tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top_k: Option<u32>,
    /// 0 (the default) to 1: keeps the tokens that have at least this share of the likeliest one's probability.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_p: Option<f32>,
    /// Above 0, up to 10; above 1 (the default) makes tokens of prompt and answer less likely.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repetition_penalty: Option<f32>,
    /// -2 to 2; above 0 (the default) makes tokens that the answer has less likely.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub presence_penalty: Option<f32>,
    /// -2 to 2; the same, once for each time that the answer has the token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frequency_penalty: Option<f32>,
    /// Token ids, and -100 to 100 that is added to their logits; up to 1,024.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logit_bias: Option<BTreeMap<String, f32>>,
    /// Whether the result has the log-probability of each of its tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logprobs: Option<bool>,
    /// With `logprobs`: those of how many of the likeliest tokens too, 0 (the default) to 20.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top_logprobs: Option<u32>,
    /// The form of the answer: text (the default), a JSON object, or JSON that a schema describes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub response_format: Option<ResponseFormat>,
    /// A regular expression that the answer matches. Either this or a `response_format`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub structured_outputs: Option<StructuredOutputs>,
    /// Equal seeds give equal answers. Without it a seed is drawn from the job's id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// Answers to the prompt, 1 (the default) to 16, each with a seed of its own; the first has the request's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub n: Option<u32>,
    /// Up to 16 texts that end the answer; they are not part of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop: Option<Stop>,
    /// The lane, if named here too, must be that of the subject.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lane: Option<String>,
    /// When the answer is of no use any more: seconds after submission, or a time as in RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<Deadline>,
    /// Up to 16 pairs that come back with the result.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
    /// Fields that only the model's engine has a meaning for, as in `tools`: passed on as they are. Only for models of foreign
    /// engines, see [`crate::upstream`].
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub engine: Map<String, Value>,
}

/// A message of a chat as it may be written. Baton's own models take a role and a text; foreign engines take more.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ChatMessage {
    /// The part of the conversation that says it.
    pub role: String,
    /// A text, or for foreign engines a list of parts: texts, images, audio. None beside `tool_calls`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<Content>,
    /// What else a message has, for foreign engines: `tool_calls`, `tool_call_id`, `name`.
    #[serde(flatten)]
    pub more: Map<String, Value>,
}

/// What a message says, as it may be written.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged, expecting = "expected a text or a list of parts")]
pub enum Content {
    /// A text.
    Text(String),
    /// Parts of several kinds.
    Parts(Vec<Value>),
}

/// A message of a chat as templates render it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Message {
    /// The part of the conversation that says it.
    pub role: String,
    /// What is said.
    pub content: String,
}

impl ChatMessage {
    /// A message that is a text.
    pub fn text(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: Some(Content::Text(content.into())), more: Map::new() }
    }

    /// The message if it is a role and a text; else what it has that is not.
    fn plain(self) -> Result<Message, String> {
        match (self.content, self.more.keys().next()) {
            (Some(Content::Text(content)), None) => Ok(Message { role: self.role, content }),
            (_, Some(name)) => Err(name.chars().take(80).collect()),
            (_, None) => Err("content".into()),
        }
    }
}

/// A prompt as it may be written.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged, expecting = "expected text or a list of token ids")]
pub enum Prompt {
    /// A text.
    Text(String),
    /// Token ids.
    Tokens(Vec<u32>),
}

/// Stop texts as they may be written.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged, expecting = "expected a text or a list of texts")]
pub enum Stop {
    /// A single one.
    One(String),
    /// A list.
    Many(Vec<String>),
}

/// A deadline as it may be written.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged, expecting = "expected seconds, or a time as in RFC 3339")]
pub enum Deadline {
    /// Seconds after the broker has stored the request.
    After(f64),
    /// A time as in RFC 3339.
    At(String),
}

/// A request whose every field holds, with defaults filled in. What depends on the model comes later.
#[derive(Clone, Debug, PartialEq)]
pub struct Checked {
    /// The id that its sender chose.
    pub id: Option<JobId>,
    /// The model that is to answer.
    pub model: Option<Name>,
    /// What is to be answered.
    pub input: Input,
    /// Tokens that each answer may have.
    pub max_tokens: u32,
    /// But for the seed.
    sampling: Sampling,
    /// The seed of the random numbers.
    pub seed: Option<u64>,
    /// Answers to the prompt: 1 to [`MAX_SAMPLES`].
    pub n: u32,
    /// Texts that end an answer.
    pub stop: Vec<String>,
    /// Milliseconds since 1970.
    pub deadline_ms: Option<u64>,
    /// What its sender noted about it.
    pub metadata: BTreeMap<String, String>,
    /// The first of the fields that only a foreign engine has a meaning for.
    pub engine_field: Option<String>,
}

/// What is to be answered.
#[derive(Clone, Debug, PartialEq)]
pub enum Input {
    /// A chat.
    Messages(Vec<Message>),
    /// A chat with more than roles and texts, which only foreign engines take.
    Rich {
        /// The path of the first thing that is neither.
        at: String,
    },
    /// A text.
    Text(String),
    /// Token ids.
    Tokens(Vec<u32>),
}

impl Checked {
    /// The sampling parameters of job `id`.
    pub fn sampling(&self, id: &JobId) -> Sampling {
        let drawn = || {
            let digest = blake3::derive_key("baton seed of a job", id.as_str().as_bytes());
            u64::from_le_bytes(std::array::from_fn(|i| digest[i]))
        };
        Sampling { seed: self.seed.unwrap_or_else(drawn), ..self.sampling.clone() }
    }
}

/// Reads and checks a request that was published on `lane` and accepted by the broker at `accepted_ms` (since 1970).
pub fn parse(body: &[u8], lane: &Name, accepted_ms: u64) -> Result<Checked, Failure> {
    read(body)?.check(lane, accepted_ms)
}

/// Reads a request, and checks none of its values.
pub fn read(body: &[u8]) -> Result<Request, Failure> {
    let text = std::str::from_utf8(body)
        .map_err(|error| Failure::new(Code::InvalidUtf8, format!("the request is not UTF-8: {error}")))?;
    let mut reader = serde_json::Deserializer::from_str(text);
    let request: Request = serde_path_to_error::deserialize(Objects(&mut reader)).map_err(unreadable)?;
    reader.end().map_err(|error| Failure::new(Code::InvalidJson, format!("after the request: {error}")))?;
    Ok(request)
}

/// The id that a request names for itself, for reporting on one that is otherwise unreadable.
pub fn id_hint(body: &[u8]) -> Option<JobId> {
    #[derive(Deserialize)]
    struct Hint {
        id: String,
    }
    JobId::new(&objects::from_slice::<Hint>(body).ok()?.id).ok()
}

fn unreadable(error: serde_path_to_error::Error<serde_json::Error>) -> Failure {
    let path = error.path().to_string();
    let inner = error.into_inner();
    let code = match inner.classify() {
        serde_json::error::Category::Data => {
            if inner.to_string().starts_with("unknown field") {
                Code::UnknownField
            } else {
                Code::InvalidValue
            }
        }
        _ => Code::InvalidJson,
    };
    let at = if path == "." { String::new() } else { format!("{path}: ") };
    Failure::new(code, format!("{at}{inner}"))
}

pub(crate) fn invalid(message: String) -> Failure {
    Failure::new(Code::InvalidValue, message)
}

impl Request {
    /// Tokens that an answer may have, as far as the request says so to a foreign engine.
    pub fn most_tokens(&self) -> Option<u32> {
        let newer_name = || self.engine.get("max_completion_tokens")?.as_u64()?.try_into().ok();
        self.max_tokens.or_else(newer_name)
    }

    /// Checks every field of a request that was published on `lane` and accepted by the broker at `accepted_ms` (since 1970).
    pub fn check(self, lane: &Name, accepted_ms: u64) -> Result<Checked, Failure> {
        // Told after what comes before it in a request; taken first, because the rest takes the request apart.
        let sampling = self.sampling();
        let id = self.id.map(|id| JobId::new(&id).map_err(|error| invalid(format!("id: {error}")))).transpose()?;
        let model = self
            .model
            .map(|model| {
                let unknown =
                    |_| Failure::new(Code::UnknownModel, format!("model: the pipeline has no model {model:?}"));
                Name::new(&model).map_err(unknown)
            })
            .transpose()?;
        if let Some(own) = &self.lane
            && own != lane.as_str()
        {
            return Err(invalid(format!("lane: the request was published on lane {lane}, but names {own:?}")));
        }
        let empty = || Failure::new(Code::EmptyPrompt, "the prompt is empty");
        let input = match (self.messages, self.prompt) {
            (Some(messages), None) if messages.is_empty() => return Err(empty()),
            (Some(messages), None) => messages_of(messages),
            (None, Some(Prompt::Text(text))) if text.is_empty() => return Err(empty()),
            (None, Some(Prompt::Text(text))) => Input::Text(text),
            (None, Some(Prompt::Tokens(tokens))) if tokens.is_empty() => return Err(empty()),
            (None, Some(Prompt::Tokens(tokens))) => Input::Tokens(tokens),
            (None, None) => return Err(Failure::new(Code::EmptyPrompt, "expected messages or prompt, found neither")),
            (Some(_), Some(_)) => return Err(invalid("expected either messages or prompt, found both".into())),
        };
        let max_tokens = self.max_tokens.unwrap_or(DEFAULT_MAX_TOKENS);
        if max_tokens == 0 {
            return Err(invalid("max_tokens: expected at least 1, found 0".into()));
        }
        let n = self.n.unwrap_or(1);
        if !(1..=MAX_SAMPLES).contains(&n) {
            return Err(invalid(format!("n: expected 1 to {MAX_SAMPLES}, found {n}")));
        }
        let sampling = sampling?;
        let stop = match self.stop {
            None => Vec::new(),
            Some(Stop::One(text)) => vec![text],
            Some(Stop::Many(texts)) => texts,
        };
        if stop.len() > MAX_STOPS {
            return Err(invalid(format!("stop: expected at most {MAX_STOPS} texts, found {}", stop.len())));
        }
        if let Some(text) = stop.iter().find(|text| text.is_empty() || text.len() > MAX_STOP_BYTES) {
            return Err(invalid(format!("stop: expected 1 to {MAX_STOP_BYTES} bytes, found {}", text.len())));
        }
        let deadline_ms = self.deadline.map(|deadline| deadline.resolve(accepted_ms)).transpose()?;
        check_metadata(&self.metadata)?;
        Ok(Checked {
            id,
            model,
            input,
            max_tokens,
            sampling,
            seed: self.seed,
            n,
            stop,
            deadline_ms,
            metadata: self.metadata,
            engine_field: self.engine.keys().next().cloned(),
        })
    }
}

pub(crate) fn messages_of(messages: Vec<ChatMessage>) -> Input {
    let mut plain = Vec::with_capacity(messages.len());
    for (place, message) in messages.into_iter().enumerate() {
        match message.plain() {
            Ok(message) => plain.push(message),
            Err(name) => return Input::Rich { at: format!("messages[{place}].{name}") },
        }
    }
    Input::Messages(plain)
}

fn check_metadata(metadata: &BTreeMap<String, String>) -> Result<(), Failure> {
    if metadata.len() > MAX_METADATA {
        return Err(invalid(format!("metadata: expected at most {MAX_METADATA} pairs, found {}", metadata.len())));
    }
    for (key, value) in metadata {
        if key.len() > MAX_METADATA_KEY_BYTES || value.len() > MAX_METADATA_VALUE_BYTES {
            return Err(invalid(format!(
                "metadata: expected keys of at most {MAX_METADATA_KEY_BYTES} and values of at most \
                 {MAX_METADATA_VALUE_BYTES} bytes, found {} and {}",
                key.len(),
                value.len()
            )));
        }
    }
    Ok(())
}

impl Deadline {
    fn resolve(&self, accepted_ms: u64) -> Result<u64, Failure> {
        let invalid = |found: String| {
            Failure::new(
                Code::InvalidValue,
                format!(
                    "deadline: expected seconds above 0 or a time as in RFC 3339 (2026-01-31T12:00:00Z), found {found}"
                ),
            )
        };
        match self {
            Self::After(seconds) if *seconds > 0.0 && *seconds <= 1e9 => Ok(accepted_ms + (seconds * 1000.0) as u64),
            Self::After(seconds) => Err(invalid(seconds.to_string())),
            Self::At(text) => {
                let time = humantime::parse_rfc3339(text).map_err(|_| invalid(format!("{text:?}")))?;
                let since = time.duration_since(std::time::UNIX_EPOCH).map_err(|_| invalid(format!("{text:?}")))?;
                Ok(since.as_millis() as u64)
            }
        }
    }
}
