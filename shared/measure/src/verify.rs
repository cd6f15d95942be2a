//! How the engine compares with a reference, and its fast mode with the exact one.

use std::{fs::File, io::BufReader, path::PathBuf};

use baton_model::{
    model::{self, Compute},
    source::Source,
    verify::{self, Case, Divergence, Report},
};
use serde::Serialize;

use crate::{
    engine::{Engine, text_tokens},
    error::Error,
};

/// Tokens of each text that are compared on at most.
const TEXT_TOKENS: usize = 2048;

/// What is compared.
#[derive(Clone, Debug)]
pub struct Options {
    /// The model, and what computes it.
    pub engine: Engine,
    /// How it computes.
    pub compute: Compute,
    /// The reference engine's answers, a case a line.
    pub reference: PathBuf,
    /// Plain texts on which fast is compared with exact.
    pub texts: Vec<PathBuf>,
    /// The time that chat templates are given, in milliseconds since 1970.
    pub at_ms: u64,
}

/// What was found.
#[derive(Clone, Debug, Serialize)]
pub struct Verified {
    /// Against the reference.
    #[serde(flatten)]
    pub report: Report,
    /// Of fast from exact over the cases' tokens.
    #[serde(flatten)]
    pub divergence: Option<Divergence>,
    /// Of fast from exact, text by text.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub texts: Vec<TextVerified>,
}

/// Fast against exact on one text.
#[derive(Clone, Debug, Serialize)]
pub struct TextVerified {
    /// The text's file.
    pub text: String,
    /// Of fast from exact over its first tokens.
    #[serde(flatten)]
    pub divergence: Divergence,
}

/// Reads the reference's cases.
///
/// # Errors
///
/// If the file can't be read, or a line of it is no case.
pub fn cases(options: &Options) -> Result<Vec<Case>, Error> {
    let path = &options.reference;
    let file = File::open(path).map_err(|source| Error::Open { path: path.clone(), source })?;
    Ok(verify::cases(BufReader::new(file)).collect::<Result<_, _>>()?)
}

/// Replays the cases; in fast mode, compares with exact mode as well. Blocks.
///
/// # Errors
///
/// If the model can't be loaded, or a text can't be read.
pub fn verify(options: &Options, source: &Source, cases: &[Case]) -> Result<Verified, Error> {
    let Options { engine, compute, texts, at_ms, .. } = options;
    let load = |compute| engine.load(source, model::Options { compute, ..model::Options::default() });
    let vocabulary = engine.vocabulary(source)?;
    let texts = texts.iter().map(|path| Ok((path.display().to_string(), text_tokens(&vocabulary, path, TEXT_TOKENS)?)));
    let texts = texts.collect::<Result<Vec<_>, Error>>()?;

    let mut model = load(*compute)?;
    let report = verify::run(&vocabulary, model.as_mut(), *at_ms, cases.iter().cloned().map(Ok))?;
    let mut verified = Verified { report, divergence: None, texts: Vec::new() };
    if *compute == Compute::Fast && verified.report.non_finite == 0 {
        let mut exact = load(Compute::Exact)?;
        let tokens: Vec<_> = cases.iter().map(Case::tokens).collect();
        verified.divergence = Some(verify::divergence(exact.as_mut(), model.as_mut(), &tokens)?);
        for (text, tokens) in texts {
            let divergence = verify::divergence(exact.as_mut(), model.as_mut(), &[tokens])?;
            verified.texts.push(TextVerified { text, divergence });
        }
    }
    Ok(verified)
}
