//! Where a model comes from, and what can be known and done without its weights.

use std::path::PathBuf;

use baton_contract::causes;
use serde::Serialize;

use crate::model::{self, Model, Spec};
use crate::sim::{self, Sim};
use crate::tokenizer::{self, Tokenizer};
use crate::{allocator, chat, checkpoint, llama};

/// A model to load.
#[derive(Clone, Debug, PartialEq)]
pub enum Source {
    /// A GGUF file or a Hugging Face folder.
    Checkpoint(PathBuf),
    /// The simulated model.
    Sim(sim::Options),
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the tokenizer has {tokens} tokens, the model's embeddings only {rows}; fetch or convert the file again")]
    Vocabulary { tokens: usize, rows: usize },
    #[error(transparent)]
    File(#[from] checkpoint::Error),
    #[error(transparent)]
    Llama(#[from] llama::Error),
    #[error(transparent)]
    Tokenizer(#[from] tokenizer::Error),
    #[error(transparent)]
    Sim(#[from] sim::OptionsError),
}

/// What a model is, its tokenizer and its chat template: all that those need who don't compute with it.
pub struct Vocabulary {
    spec: Spec,
    tokenizer: Tokenizer,
    /// None if the model has none.
    template: Option<Result<chat::Template, chat::Unusable>>,
}

/// Reads what a model is, without its weights.
pub fn vocabulary(source: &Source) -> Result<Vocabulary, Error> {
    match source {
        Source::Checkpoint(path) => {
            let file = checkpoint::open(path)?;
            let tokenizer = Tokenizer::from_gguf(&file)?;
            let template = (file.get("tokenizer.chat_template").and_then(checkpoint::Value::as_str)).map(|text| {
                let (bos, eos) = (tokenizer.bos_text(), tokenizer.eos_text());
                chat::Template::new(text, bos.unwrap_or_default(), eos.unwrap_or_default())
            });
            if let Some(Err(unusable)) = &template {
                tracing::warn!(error = %causes(unusable), "requests with messages will be refused");
            }
            let spec = llama::spec(&file)?;
            if tokenizer.words() > spec.vocabulary {
                return Err(Error::Vocabulary { tokens: tokenizer.words(), rows: spec.vocabulary });
            }
            Ok(Vocabulary { spec, tokenizer, template })
        }
        Source::Sim(options) => {
            let template = Some(chat::Template::new(Sim::CHAT_TEMPLATE, "", ""));
            Ok(Vocabulary { spec: options.spec()?, tokenizer: Sim::tokenizer(), template })
        }
    }
}

/// Loads a model. The simulated model needs no device and takes any name.
pub fn load(source: &Source, options: &model::Options) -> Result<Box<dyn Model>, Error> {
    match source {
        Source::Checkpoint(path) => {
            let model = llama::Llama::load(checkpoint::open(path)?, options)?;
            // Not before: what loading took and gave back is not needed again.
            allocator::keep_freed_memory();
            Ok(Box::new(model))
        }
        Source::Sim(sim) => Ok(Box::new(Sim::new(sim.clone(), options.kv_bytes)?)),
    }
}

impl Vocabulary {
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
