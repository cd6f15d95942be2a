//! Where a model comes from, and what is known of it without its weights.

use std::path::PathBuf;

use baton_contract::causes;

use crate::sim::{self, Sim};
use crate::tokenizer::{self, Tokenizer};
use crate::vocabulary::Vocabulary;
use crate::{chat, checkpoint, config, formats};

/// Where a model is, or how it is simulated.
#[derive(Clone, Debug, PartialEq)]
pub enum Source {
    /// A GGUF file or a Hugging Face folder.
    Checkpoint(PathBuf),
    /// The simulated model.
    Sim(sim::Options),
}

/// Why a source is no model.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say what the variants mean")]
pub enum Error {
    #[error("the tokenizer has {tokens} tokens, the model's embeddings only {rows}; fetch or convert the file again")]
    Vocabulary { tokens: usize, rows: usize },
    #[error(transparent)]
    File(#[from] checkpoint::Error),
    #[error(transparent)]
    Config(#[from] config::Error),
    #[error(transparent)]
    Tokenizer(#[from] tokenizer::Error),
    #[error(transparent)]
    Sim(#[from] sim::OptionsError),
}

/// Reads what a model is, without its weights.
pub fn vocabulary(source: &Source) -> Result<Vocabulary, Error> {
    match source {
        Source::Checkpoint(path) => {
            let file = formats::open(path)?;
            let tokenizer = Tokenizer::from_gguf(&file)?;
            let template = (file.get("tokenizer.chat_template").and_then(checkpoint::Value::as_str)).map(|text| {
                let (bos, eos) = (tokenizer.bos_text(), tokenizer.eos_text());
                chat::Template::new(text, bos.unwrap_or_default(), eos.unwrap_or_default())
            });
            if let Some(Err(unusable)) = &template {
                tracing::warn!(error = %causes(unusable), "requests with messages will be refused");
            }
            let spec = config::spec(&file)?;
            if tokenizer.words() > spec.vocabulary {
                return Err(Error::Vocabulary { tokens: tokenizer.words(), rows: spec.vocabulary });
            }
            Ok(Vocabulary::new(spec, tokenizer, template))
        }
        Source::Sim(options) => {
            let template = Some(chat::Template::new(Sim::CHAT_TEMPLATE, "", ""));
            Ok(Vocabulary::new(options.spec()?, Sim::tokenizer(), template))
        }
    }
}
