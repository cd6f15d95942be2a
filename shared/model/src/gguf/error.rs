//! Why a GGUF file can't be used.

use std::io;
use std::path::PathBuf;

use crate::quants::Type;

/// What every GGUF file begins with.
pub(super) const MAGIC: &[u8; 4] = b"GGUF";

/// Why a file can't be used.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say what the variants mean")]
pub enum Error {
    #[error("not a GGUF file: it starts with {found:02x?}, expected {MAGIC:02x?} (\"GGUF\")")]
    Magic { found: Vec<u8> },
    #[error("GGUF version {found} is not supported: expected little-endian version 2 or 3; convert the model again")]
    Version { found: u32 },
    #[error("the file ends early: {what} at byte {at} needs {needed} bytes, {left} are left; fetch the file again")]
    Truncated { what: &'static str, at: usize, needed: u64, left: usize },
    #[error("the file is damaged: {what}, found {found}; fetch or convert the file again")]
    Damaged { what: &'static str, found: String },
    #[error("tensor {tensor} has type {found}; supported are {}; convert the model to one of these", Type::SUPPORTED)]
    UnsupportedType { tensor: String, found: String },
    #[error(
        "the file is part {part} of a model of {count} parts, which are found by their names: this one's must end in \
         {expected}; give all parts their own names again"
    )]
    PartName { part: u64, count: u64, expected: String },
    #[error("{}, a part of the model, is missing; put all {count} parts into one folder", path.display())]
    MissingPart { path: PathBuf, count: usize, source: io::Error },
    #[error("{}, a part of the model, can't be used", path.display())]
    Part { path: PathBuf, source: Box<Error> },
    #[error("{what}: expected {expected}, found {found}; put the parts of one model into the folder")]
    OtherPart { what: &'static str, expected: u64, found: u64 },
    #[error("a model may have {limit} parts, found {found}; merge them, or convert the model again")]
    TooManyParts { limit: u64, found: u64 },
}

pub(super) fn damaged(what: &'static str, found: impl Into<String>) -> Error {
    Error::Damaged { what, found: found.into() }
}
