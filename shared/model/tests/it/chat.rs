//! The shapes of chat templates, and what they have of Python.

mod python;
mod templates;

use baton_contract::causes;
use baton_model::chat::Template;
use serde_json::Value;

/// 2024-02-29 13:04:05.678 UTC.
const AT_MS: u64 = 1_709_211_845_678;

/// The text that a template makes of messages, or why it makes none.
fn render(source: &str, messages: &[Value]) -> Result<String, String> {
    let template = Template::new(source, "<bos>", "<eos>").map_err(|error| causes(&error))?;
    template.render(messages, AT_MS, 10_000).map_err(|error| causes(&error))
}
