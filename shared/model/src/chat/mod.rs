//! Chat templates: a list of messages to the text that a model was trained to see.

mod printf;
mod python;

use std::io;
use std::sync::Arc;

use minijinja::value::Serde;
use minijinja::{Environment, Value, context};
use serde::Serialize;

use crate::tokenizer;

/// Instructions of the template engine that one rendering may take: thousands of messages, but no endless loop.
const FUEL: u64 = 5_000_000;
const NAME: &str = "chat_template";

/// Why a conversation does not become a prompt.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say what the variants mean")]
pub enum Error {
    #[error("the model file has no chat template; send a prompt instead of messages")]
    NoTemplate,
    #[error(transparent)]
    Unusable(#[from] Unusable),
    #[error("the chat template refused the messages")]
    Render(#[source] minijinja::Error),
    #[error("the rendered messages exceed {limit} bytes, more can't fit the model's context; shorten them")]
    TooLong { limit: usize },
    #[error("the messages can't be read")]
    Messages(#[from] serde_json::Error),
    #[error("the messages contain special tokens and every private-use character besides; leave either out")]
    NoGuard,
    #[error(transparent)]
    Encode(#[from] tokenizer::Error),
}

/// A template that can't be compiled. The model is of use without it.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the model file's chat template can't be used, send a prompt instead of messages or use another file")]
pub struct Unusable(#[source] Arc<minijinja::Error>);

impl From<minijinja::Error> for Unusable {
    fn from(error: minijinja::Error) -> Unusable {
        Unusable(Arc::new(error))
    }
}

/// A compiled chat template.
pub struct Template {
    environment: Environment<'static>,
    bos: String,
    eos: String,
}

impl Template {
    /// Compiles the text of a model file's `tokenizer.chat_template`. `bos` and `eos` are the texts of the tokens that
    /// begin and end a sequence, empty if the model has none.
    pub fn new(source: &str, bos: &str, eos: &str) -> Result<Template, Unusable> {
        let mut environment = python::environment()?;
        environment.set_fuel(Some(FUEL));
        let source = printf::with_format_filters(&python::without_generation_blocks(source));
        environment.add_template_owned(NAME, source)?;
        Ok(Template { environment, bos: bos.to_owned(), eos: eos.to_owned() })
    }

    /// The text for `messages`, ready for the model's answer, at a time in milliseconds since 1970. At most `limit` bytes.
    pub fn render<M: Serialize>(&self, messages: &[M], at_ms: u64, limit: usize) -> Result<String, Error> {
        let template = self.environment.get_template(NAME).map_err(Unusable::from)?;
        let context = context! {
            messages => Value::from(Serde(messages)),
            tools => (),
            documents => (),
            bos_token => self.bos.as_str(),
            eos_token => self.eos.as_str(),
            add_generation_prompt => true,
            strftime_now => python::strftime_at(at_ms),
        };
        let mut out = Capped { bytes: Vec::new(), limit, exceeded: false };
        let rendered = template.render_captured_to(context, &mut out).map(|_| ());
        if out.exceeded {
            return Err(Error::TooLong { limit });
        }
        rendered.map_err(Error::Render)?;
        Ok(String::from_utf8_lossy(&out.bytes).into_owned())
    }
}

/// Collects output up to a limit.
struct Capped {
    bytes: Vec<u8>,
    limit: usize,
    exceeded: bool,
}

impl io::Write for Capped {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() > self.limit - self.bytes.len() {
            self.exceeded = true;
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Messages in which no text can pass for one of the control tokens: behind every character that such a token begins
/// with stands a guard character, which the tokenizer takes out again.
pub(crate) struct Guarded {
    pub(crate) messages: Vec<serde_json::Value>,
    pub(crate) guard: char,
}

/// Guards `messages` if any of their texts contains a control token's text.
pub(crate) fn guard<'t, M: Serialize, T: Iterator<Item = &'t str>>(
    messages: &[M],
    control_texts: impl Fn() -> T,
) -> Result<Option<Guarded>, Error> {
    let mut messages = messages.iter().map(serde_json::to_value).collect::<Result<Vec<_>, _>>()?;
    let mut forged = false;
    for_each_text(&mut messages, &mut |text| forged |= control_texts().any(|control| text.contains(control)));
    if !forged {
        return Ok(None);
    }
    let mut used = std::collections::BTreeSet::new();
    for_each_text(&mut messages, &mut |text| {
        used.extend(text.chars().filter(|character| ('\u{f0000}'..='\u{ffffd}').contains(character)));
    });
    let guard = ('\u{f0000}'..='\u{ffffd}').find(|character| !used.contains(character)).ok_or(Error::NoGuard)?;
    let first_characters: Vec<char> = control_texts().filter_map(|text| text.chars().next()).collect();
    for_each_text(&mut messages, &mut |text| {
        let mut guarded = String::with_capacity(text.len() + text.len() / 8);
        for character in text.chars() {
            guarded.push(character);
            if first_characters.contains(&character) {
                guarded.push(guard);
            }
        }
        *text = guarded;
    });
    Ok(Some(Guarded { messages, guard }))
}

/// Visits every text inside the values.
fn for_each_text(values: &mut [serde_json::Value], visit: &mut impl FnMut(&mut String)) {
    for value in values {
        match value {
            serde_json::Value::String(text) => visit(text),
            serde_json::Value::Array(values) => for_each_text(values, visit),
            serde_json::Value::Object(fields) => {
                for value in fields.values_mut() {
                    for_each_text(std::slice::from_mut(value), visit);
                }
            }
            _ => {}
        }
    }
}
