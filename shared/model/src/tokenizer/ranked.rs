//! Pieces with `▁` for a space, joined by ranked merges over the whole text; what is no piece falls back to bytes. That is
//! how `tokenizer.json` describes models that were trained with SentencePiece.

use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::tokenizer::Model as _;

use super::error::Error;
use super::keys::SPACE_PREFIX;

const SPACE: char = '\u{2581}';

pub(super) struct Ranked {
    merges: BPE,
    prefix: Prefix,
}

/// When a space goes before a text that begins a sequence or follows a special token.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Prefix {
    Never,
    Always,
    /// Unless it begins with one.
    Each,
    /// As `Each`, but only at a sequence's beginning.
    First,
}

impl Ranked {
    /// The encoder for tokens by id, of which `unknown` stands for what has none, and the merges by rank, each two tokens
    /// with a space between them.
    pub(super) fn new(
        tokens: &[&str],
        merges: &[&str],
        unknown: Option<u32>,
        prefix: Option<&str>,
    ) -> Result<Ranked, Error> {
        let prefix = match prefix {
            Some("never") => Prefix::Never,
            Some("always") => Prefix::Always,
            Some("each") => Prefix::Each,
            Some("first") => Prefix::First,
            _ => return Err(Error::Metadata { key: SPACE_PREFIX, expected: "never, always, each or first" }),
        };
        let vocabulary: Vocab = (0..).zip(tokens).map(|(id, token)| ((*token).to_owned(), id)).collect();
        let merges = (merges.iter())
            .map(|merge| merge.split_once(' ').map(|(left, right)| (left.to_owned(), right.to_owned())))
            .collect::<Option<Vec<_>>>()
            .ok_or(Error::Metadata { key: "tokenizer.ggml.merges", expected: "two tokens and a space between them" })?;
        let mut builder = BPE::builder().vocab_and_merges(vocabulary, merges).byte_fallback(true).fuse_unk(true);
        if let Some(unknown) = unknown.and_then(|id| tokens.get(id as usize)) {
            builder = builder.unk_token((*unknown).to_owned());
        }
        Ok(Ranked { merges: builder.build().map_err(|error| Error::Merges(error.to_string()))?, prefix })
    }

    /// Appends the tokens of `text`, which begins a sequence, if `out` is empty, or follows a special token.
    pub(super) fn encode(&self, text: &str, out: &mut Vec<u32>) -> Result<(), Error> {
        if text.is_empty() {
            return Ok(());
        }
        let prefixed = match self.prefix {
            Prefix::Never => false,
            Prefix::Always => true,
            Prefix::Each => !text.starts_with([' ', SPACE]),
            Prefix::First => out.is_empty() && !text.starts_with([' ', SPACE]),
        };
        let mut escaped = String::with_capacity(text.len() + text.len() / 3);
        escaped.extend(prefixed.then_some(SPACE));
        escaped.extend(text.chars().map(|character| if character == ' ' { SPACE } else { character }));
        let tokens = self.merges.tokenize(&escaped).map_err(|error| Error::Word(error.to_string()))?;
        out.extend(tokens.iter().map(|token| token.id));
        Ok(())
    }
}
