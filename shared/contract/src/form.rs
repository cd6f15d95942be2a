//! The forms that a request may ask its answer to have.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Bytes that the text of a JSON schema, without white space, and a regular expression may have.
pub const MAX_SCHEMA_BYTES: usize = 64 << 10;
/// Bytes that a regular expression may have.
pub const MAX_REGEX_BYTES: usize = 4 << 10;

/// The form of an answer, as OpenAI's requests say it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResponseFormat {
    /// What the answer must be.
    #[serde(rename = "type")]
    pub kind: FormatKind,
    /// Of kind `json_schema` only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub json_schema: Option<JsonSchema>,
}

/// What an answer must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FormatKind {
    /// Anything: the default.
    Text,
    /// Any JSON object.
    JsonObject,
    /// A value of the given JSON schema.
    JsonSchema,
}

/// A JSON schema with what OpenAI's API says about it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JsonSchema {
    /// The schema, a JSON object.
    pub schema: Value,
    /// For people, as the description.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// What the schema is for; not used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// A schema is always followed. With `strict`, objects have no other keys than those declared, unless the schema says
    /// what others may be (`additionalProperties`). Keys that it doesn't require may still be missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub strict: Option<bool>,
}

/// The form of an answer that OpenAI's requests have no word for, as vLLM's say it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StructuredOutputs {
    /// A regular expression in Rust's syntax, without look-around; the whole answer matches it.
    pub regex: String,
}
