//! Why a file is no model that we can run.

use crate::checkpoint;

/// What to say of models that are none of [`Architecture`].
pub(super) const ARCHITECTURES: &str = "llama (mistral too), qwen2, qwen3, gemma3";

/// Why a file is no model that we can run.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say what the variants mean")]
pub enum Error {
    #[error(transparent)]
    File(#[from] checkpoint::Error),
    #[error("the model's architecture is {found:?}, supported are {ARCHITECTURES}; choose another model")]
    Architecture { found: String },
    #[error("{key} is {found}, supported is only {expected}; choose another model")]
    Unsupported { key: String, found: String, expected: String },
    #[error("the file has no tensor {tensor}; fetch or convert it again")]
    MissingTensor { tensor: String },
    #[error("tensor {tensor} must have the dimensions {expected:?}, found {found:?}; fetch or convert the file again")]
    TensorShape { tensor: String, expected: Vec<usize>, found: Vec<usize> },
}

pub(super) fn unsupported(key: &str, found: impl ToString, expected: impl ToString) -> Error {
    Error::Unsupported { key: key.to_owned(), found: found.to_string(), expected: expected.to_string() }
}

pub(super) fn require(key: &str, found: usize, holds: bool, expected: impl FnOnce() -> String) -> Result<(), Error> {
    if holds { Ok(()) } else { Err(unsupported(key, found, expected())) }
}
