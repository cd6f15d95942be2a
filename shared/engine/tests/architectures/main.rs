//! Each architecture and tokenizer against another engine's answers on tiny models (`make.py` wrote both), and the shapes
//! of chat templates.

mod answers;
mod gemma;
mod python;
mod templates;

use baton_contract::causes;
use baton_engine::chat::Template;
use serde_json::Value;

/// 2024-02-29 13:04:05.678 UTC.
const AT_MS: u64 = 1_709_211_845_678;

/// The text that a template makes of messages, or why it makes none.
fn render(source: &str, messages: &[Value]) -> Result<String, String> {
    let template = Template::new(source, "<bos>", "<eos>").map_err(|error| causes(&error))?;
    template.render(messages, AT_MS, 10_000).map_err(|error| causes(&error))
}
