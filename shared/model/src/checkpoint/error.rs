//! Why a model on disk can't be used.

use std::path::PathBuf;

use crate::gguf::error::Error as GgufError;
use crate::hugging_face::error::Error as HuggingFaceError;

/// Why a model on disk can't be used.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say what the variants mean")]
pub enum Error {
    #[error("{} can't be read", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error(transparent)]
    Gguf(#[from] GgufError),
    #[error(transparent)]
    HuggingFace(#[from] HuggingFaceError),
    #[error("the file has no {key}, which must be {expected}; use a file with complete metadata")]
    MissingKey { key: String, expected: &'static str },
    #[error("{key} must be {expected}, found {found}")]
    WrongKind { key: String, expected: &'static str, found: &'static str },
}
