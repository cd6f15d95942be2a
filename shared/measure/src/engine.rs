//! Which model is measured, and what computes it.

use std::{fs::File, io::Read, path::Path};

use baton_model::{
    model::{self, Compute, Model, Spec},
    source::{self, Source},
    vocabulary::Vocabulary,
};

use crate::error::Error;

/// Bytes of a text that are read for a token: no model has tokens of so many on average.
const TOKEN_BYTES: usize = 32;

/// A model, and what computes it.
#[derive(Clone, Debug)]
pub struct Engine {
    /// The model as it was named.
    pub model: String,
    /// `flex`, `cuda` or `wgpu`.
    pub device: String,
    /// CPU threads; 0 is all cores.
    pub threads: usize,
}

impl Engine {
    /// Loads the model from its source. Blocks.
    ///
    /// # Errors
    ///
    /// If the files can't be read, or hold no such model.
    pub fn load(&self, source: &Source, options: model::Options) -> Result<Box<dyn Model>, Error> {
        let options = model::Options { device: self.device.clone(), ..options };
        baton_engine::load(source, &options)
            .map_err(|source| Error::Load { model: self.model.clone(), source: source.into() })
    }

    /// Reads what the model is, without its weights. Blocks.
    ///
    /// # Errors
    ///
    /// If the files can't be read, or hold no such model.
    pub fn vocabulary(&self, source: &Source) -> Result<Vocabulary, Error> {
        source::vocabulary(source).map_err(|source| Error::Vocabulary { model: self.model.clone(), source })
    }
}

/// As `--compute` takes it.
pub(crate) fn name_of(compute: Compute) -> &'static str {
    match compute {
        Compute::Exact => "exact",
        Compute::Fast => "fast",
    }
}

/// Refuses lengths of sequences that the model can't have.
pub(crate) fn fits(spec: &Spec, lengths: &[usize], option: &'static str) -> Result<(), Error> {
    match lengths.iter().find(|length| **length > spec.context) {
        Some(&length) => Err(Error::TooLong { option, context: spec.context, length }),
        None => Ok(()),
    }
}

/// As many token ids as asked for, of no meaning, the same at every call with a seed.
pub(crate) fn tokens(model: &dyn Model, seed: u64, count: usize) -> Vec<u32> {
    let vocabulary = model.spec().vocabulary as u64;
    // Knuth's linear congruential generator; its high bits are the good ones.
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 33) % vocabulary) as u32
    };
    (0..count).map(|_| next()).collect()
}

/// The first tokens of a plain text, at least one and at most `most`, and no more than the model can attend to. Blocks.
///
/// # Errors
///
/// If the file can't be read, is no text in UTF-8, or holds no tokens.
pub(crate) fn text_tokens(vocabulary: &Vocabulary, path: &Path, most: usize) -> Result<Vec<u32>, Error> {
    let mut bytes = Vec::new();
    let enough = most.saturating_mul(TOKEN_BYTES) as u64;
    let file = File::open(path).map_err(|source| Error::Open { path: path.to_owned(), source })?;
    file.take(enough).read_to_end(&mut bytes).map_err(|source| Error::Read { path: path.to_owned(), source })?;
    // The cut may lie inside a character.
    let text = match str::from_utf8(&bytes) {
        Ok(text) => text,
        Err(error) if error.error_len().is_none() => str::from_utf8(&bytes[..error.valid_up_to()]).unwrap_or_default(),
        Err(error) => return Err(Error::NoText { path: path.to_owned(), at: error.valid_up_to() }),
    };
    let mut tokens =
        vocabulary.encode(text, false).map_err(|source| Error::Encode { path: path.to_owned(), source })?;
    tokens.truncate(most.min(vocabulary.spec().context));
    if tokens.is_empty() {
        return Err(Error::NoTokens { path: path.to_owned() });
    }
    Ok(tokens)
}
