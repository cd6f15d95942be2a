//! A model on disk, whatever its format: typed key-values and tensors, both under GGUF's names.
//!
//! [`crate::gguf`] reads the format that gave the names, [`crate::hugging_face`] translates to it. The bytes of tensors stay
//! in memory maps until they are used, and all maps end with the checkpoint.

mod error;
mod tensor;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use memmap2::Mmap;

use crate::quants::Type;
pub use error::Error;
pub use tensor::Tensor;

/// A metadata value. Integers of every width become 64 bits, floats `f64`.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// A whole number from 0.
    Unsigned(u64),
    /// A whole number.
    Signed(i64),
    /// Any number.
    Float(f64),
    /// True or false.
    Bool(bool),
    /// Text.
    String(String),
    /// Values of one kind.
    Array(Vec<Value>),
}

impl Value {
    /// Its text, if it is text.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Value::String(value) => Some(value),
            _ => None,
        }
    }

    /// The value as an unsigned integer; signed ones that are not negative count.
    pub fn as_u64(&self) -> Option<u64> {
        match *self {
            Value::Unsigned(value) => Some(value),
            Value::Signed(value) => value.try_into().ok(),
            _ => None,
        }
    }

    /// The value as a signed integer; unsigned ones that fit count.
    pub fn as_i64(&self) -> Option<i64> {
        match *self {
            Value::Unsigned(value) => value.try_into().ok(),
            Value::Signed(value) => Some(value),
            _ => None,
        }
    }

    /// Its number, if it is one.
    pub fn as_f64(&self) -> Option<f64> {
        match *self {
            Value::Float(value) => Some(value),
            _ => None,
        }
    }

    /// Whether it is true, if it is a flag.
    pub fn as_bool(&self) -> Option<bool> {
        match *self {
            Value::Bool(value) => Some(value),
            _ => None,
        }
    }

    /// Its values, if it is a list.
    pub fn as_array(&self) -> Option<&[Value]> {
        match self {
            Value::Array(values) => Some(values),
            _ => None,
        }
    }

    fn kind(&self) -> &'static str {
        match self {
            Value::Unsigned(_) => "an unsigned integer",
            Value::Signed(_) => "a signed integer",
            Value::Float(_) => "a float",
            Value::Bool(_) => "a bool",
            Value::String(_) => "a string",
            Value::Array(_) => "an array",
        }
    }
}

/// Where a tensor's bytes are.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) dtype: Type,
    /// As [`Tensor::dims`].
    pub(crate) dims: Vec<usize>,
    pub(crate) bytes: Bytes,
}

#[derive(Debug)]
pub(crate) enum Bytes {
    /// Bytes of the checkpoint's file of that index.
    Mapped { file: usize, range: Range<usize> },
    /// Computed from what the files say.
    Owned(Vec<u8>),
}

/// An open model.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    metadata: BTreeMap<String, Value>,
    tensors: BTreeMap<String, Entry>,
    files: Vec<Mmap>,
    /// Digested before the files: what else decides the model.
    preface: Vec<u8>,
}

/// Maps a file for reading.
pub(crate) fn map(path: &Path) -> Result<Mmap, Error> {
    let io = |source| Error::Io { path: path.to_owned(), source };
    let file = std::fs::File::open(path).map_err(io)?;
    // SAFETY: the map is private and read-only. Should another process truncate or rewrite the file while it is
    // open, we could read torn data or be stopped by the system, as with any mapped file; model files are replaced
    // by renaming, never rewritten in place. No reference with a validity invariant beyond "bytes" is made from it.
    #[expect(unsafe_code, reason = "mapping a file has no safe form")]
    unsafe { Mmap::map(&file) }.map_err(io)
}

/// Two tensors that share bytes of a file. Such ones would let a small file stand for any amount of weights.
pub(crate) fn overlapping(tensors: &BTreeMap<String, Entry>) -> Option<[&str; 2]> {
    let mut places: Vec<_> = (tensors.iter())
        .filter_map(|(name, entry)| match &entry.bytes {
            Bytes::Mapped { file, range } => Some((*file, range.start, range.end, name.as_str())),
            Bytes::Owned(_) => None,
        })
        .collect();
    places.sort_unstable();
    places.windows(2).find(|pair| pair[0].0 == pair[1].0 && pair[1].1 < pair[0].2).map(|pair| [pair[0].3, pair[1].3])
}

impl Checkpoint {
    /// A checkpoint of what was read from `path`. Every mapped range must lie inside its file.
    pub(crate) fn new(
        path: &Path,
        metadata: BTreeMap<String, Value>,
        tensors: BTreeMap<String, Entry>,
        files: Vec<Mmap>,
        preface: Vec<u8>,
    ) -> Checkpoint {
        Checkpoint { path: path.to_owned(), metadata, tensors, files, preface }
    }

    /// Where the model was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// BLAKE3 of everything that decides the model: a GGUF file's is that of its bytes. Reads all of it.
    pub fn digest(&self) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.preface);
        for file in &self.files {
            hasher.update(file);
        }
        *hasher.finalize().as_bytes()
    }

    /// The value of a metadata key, if the model has it.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.metadata.get(key)
    }

    /// The value of a key that must be there and be a string.
    pub fn string(&self, key: &str) -> Result<&str, Error> {
        self.required(key, "a string", Value::as_str)
    }

    /// The value of a key that must be there and be an integer that is not negative.
    pub fn unsigned(&self, key: &str) -> Result<u64, Error> {
        self.required(key, "an unsigned integer", Value::as_u64)
    }

    /// The value of a key that must be there and be a float.
    pub fn float(&self, key: &str) -> Result<f64, Error> {
        self.required(key, "a float", Value::as_f64)
    }

    /// The tensor of that name, if the model has it.
    pub fn tensor(&self, name: &str) -> Option<Tensor<'_>> {
        let entry = self.tensors.get(name)?;
        let bytes = match &entry.bytes {
            Bytes::Mapped { file, range } => self.files.get(*file)?.get(range.clone())?,
            Bytes::Owned(bytes) => bytes,
        };
        Some(Tensor { dtype: entry.dtype, dims: &entry.dims, bytes })
    }

    /// The names of all tensors, in the order of the alphabet.
    pub fn tensor_names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    fn required<'a, T>(
        &'a self,
        key: &str,
        expected: &'static str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<T, Error> {
        let value = self.get(key).ok_or_else(|| Error::MissingKey { key: key.to_owned(), expected })?;
        read(value).ok_or_else(|| Error::WrongKind { key: key.to_owned(), expected, found: value.kind() })
    }
}
