//! What a model is, and its text: tokens, chat template.

use serde::Serialize;

use crate::chat;
use crate::model::Spec;
use crate::tokenizer::{self, Tokenizer};

/// What a model is, its tokenizer and its chat template: all that is needed without computing.
pub struct Vocabulary {
    spec: Spec,
    tokenizer: Tokenizer,
    /// None if the model has none.
    template: Option<Result<chat::Template, chat::Unusable>>,
}

impl Vocabulary {
    /// Of a model that is `spec`. A template is none if the model has none.
    pub(crate) fn new(
        spec: Spec,
        tokenizer: Tokenizer,
        template: Option<Result<chat::Template, chat::Unusable>>,
    ) -> Vocabulary {
        Vocabulary { spec, tokenizer, template }
    }

    /// What the model is.
    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    /// Token ids of a text. Without `parse_special`, which is right for everything that users write, the text of a
    /// control token such as `<|im_end|>` is plain text. Text that can't fit the context is refused before any work.
    pub fn encode(&self, text: &str, parse_special: bool) -> Result<Vec<u32>, tokenizer::Error> {
        self.encode_guarded(text, parse_special, None)
    }

    /// The text that the chat template makes of messages (values with the fields `role` and `content`) at a time, in
    /// milliseconds since 1970: templates ask for the date.
    pub fn render<M: Serialize>(&self, messages: &[M], at_ms: u64) -> Result<String, chat::Error> {
        self.template()?.render(messages, at_ms, self.max_text_bytes())
    }

    fn template(&self) -> Result<&chat::Template, chat::Error> {
        let template = self.template.as_ref().ok_or(chat::Error::NoTemplate)?;
        template.as_ref().map_err(|unusable| unusable.clone().into())
    }

    /// Token ids of messages, rendered at a time (see [`Vocabulary::render`]). The control tokens of the template count as such; the same text inside a
    /// message is plain text, so a message can't pretend to be another role's.
    pub fn encode_chat<M: Serialize>(&self, messages: &[M], at_ms: u64) -> Result<Vec<u32>, chat::Error> {
        match chat::guard(messages, || self.tokenizer.control_texts())? {
            None => Ok(self.encode(&self.render(messages, at_ms)?, true)?),
            Some(guarded) => {
                // The guard characters go again before the length counts.
                let limit = self.max_text_bytes().saturating_mul(5);
                let text = self.template()?.render(&guarded.messages, at_ms, limit)?;
                Ok(self.encode_guarded(&text, true, Some(guarded.guard))?)
            }
        }
    }

    /// The bytes a token adds to a text: none for control tokens.
    pub fn token_bytes(&self, token: u32) -> &[u8] {
        self.tokenizer.token_bytes(token)
    }

    /// Whether the model ends an answer with this token.
    pub fn is_end(&self, token: u32) -> bool {
        self.tokenizer.is_end(token)
    }

    /// The text of tokens; what is not UTF-8 becomes U+FFFD.
    pub fn decode(&self, tokens: &[u32]) -> String {
        let bytes: Vec<u8> = tokens.iter().flat_map(|&token| self.token_bytes(token)).copied().collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    fn encode_guarded(
        &self,
        text: &str,
        parse_special: bool,
        guard: Option<char>,
    ) -> Result<Vec<u32>, tokenizer::Error> {
        let guards = guard.map_or(0, |guard| text.matches(guard).count() * guard.len_utf8());
        let (bytes, limit) = (text.len() - guards, self.max_text_bytes());
        if bytes > limit {
            return Err(tokenizer::Error::TooLong { bytes, limit });
        }
        let tokens = self.tokenizer.encode(text, parse_special, guard)?;
        let rows = self.spec.vocabulary;
        match tokens.iter().find(|token| **token as usize >= rows) {
            Some(&id) => {
                Err(tokenizer::Error::NotEmbedded { token: self.tokenizer.special_text(id).to_owned(), id, rows })
            }
            None => Ok(tokens),
        }
    }

    /// Longer texts have more tokens than the context.
    fn max_text_bytes(&self) -> usize {
        self.spec.context.saturating_mul(self.tokenizer.longest_token())
    }
}
