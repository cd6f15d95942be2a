//! The small files of a folder, bounded.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::error::Error;
use crate::checkpoint;

/// Most bytes of a file of settings.
pub(super) const SMALL: u64 = 4 << 20;
/// Most bytes of a tokenizer: one with 262,144 tokens has 33 MB.
pub(super) const TOKENIZER: u64 = 64 << 20;

/// Reads files of a folder, and remembers them for the digest.
pub(super) struct Documents {
    folder: PathBuf,
    digested: Vec<u8>,
}

/// A file that was read.
pub(super) struct Document {
    pub(super) name: &'static str,
    pub(super) bytes: Vec<u8>,
}

impl Documents {
    pub(super) fn new(folder: &Path) -> Documents {
        Documents { folder: folder.to_owned(), digested: b"hugging face folder v1".to_vec() }
    }

    /// A file that must be there, of at most `limit` bytes.
    pub(super) fn required(&mut self, name: &'static str, limit: u64) -> Result<Document, checkpoint::Error> {
        Ok(self.optional(name, limit)?.ok_or(Error::MissingFile { file: name })?)
    }

    /// A file that may be missing, of at most `limit` bytes.
    pub(super) fn optional(&mut self, name: &'static str, limit: u64) -> Result<Option<Document>, checkpoint::Error> {
        let path = self.folder.join(name);
        let mut bytes = Vec::new();
        let read = File::open(&path).and_then(|file| file.take(limit + 1).read_to_end(&mut bytes));
        match read {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(checkpoint::Error::Io { path, source }),
            Ok(_) => {}
        }
        if bytes.len() as u64 > limit {
            let bytes = path.metadata().map_or(limit + 1, |data| data.len());
            return Err(Error::TooLarge { file: name.to_owned(), bytes, limit }.into());
        }
        self.digest(name, blake3::hash(&bytes).as_bytes());
        Ok(Some(Document { name, bytes }))
    }

    /// Makes the digest depend on `what`, under `name`.
    pub(super) fn digest(&mut self, name: &str, what: &[u8]) {
        for part in [name.as_bytes(), what] {
            self.digested.extend((part.len() as u64).to_le_bytes());
            self.digested.extend(part);
        }
    }

    pub(super) fn into_digested(self) -> Vec<u8> {
        self.digested
    }
}

impl Document {
    /// The file as JSON. Values may nest as deep as `serde_json` lets them, 128 levels.
    pub(super) fn json<T: DeserializeOwned>(&self) -> Result<T, Error> {
        serde_json::from_slice(&self.bytes).map_err(|source| Error::Json { file: self.name.to_owned(), source })
    }

    /// The file as an object.
    pub(super) fn settings(&self) -> Result<Settings, Error> {
        Ok(Settings { file: self.name, values: self.json()? })
    }
}

/// An object of settings, all of which may be missing or null.
#[derive(Default)]
pub(super) struct Settings {
    pub(super) file: &'static str,
    pub(super) values: serde_json::Map<String, Value>,
}

impl Settings {
    /// The value of `key`, unless there is none or null.
    pub(super) fn get(&self, key: &str) -> Option<&Value> {
        self.values.get(key).filter(|value| !value.is_null())
    }

    pub(super) fn unsigned(&self, key: &str) -> Result<Option<u64>, Error> {
        self.typed(key, "an unsigned integer", Value::as_u64)
    }

    pub(super) fn number(&self, key: &str) -> Result<Option<f64>, Error> {
        self.typed(key, "a number", Value::as_f64)
    }

    pub(super) fn flag(&self, key: &str) -> Result<Option<bool>, Error> {
        self.typed(key, "true or false", Value::as_bool)
    }

    pub(super) fn text(&self, key: &str) -> Result<Option<&str>, Error> {
        self.typed(key, "a text", Value::as_str)
    }

    /// The object under `key`, whose keys are then named without it.
    pub(super) fn object(&self, key: &str) -> Result<Option<Settings>, Error> {
        let values = self.typed(key, "an object", Value::as_object)?;
        Ok(values.map(|values| Settings { file: self.file, values: values.clone() }))
    }

    pub(super) fn required<T>(&self, key: &str, expected: &'static str, value: Option<T>) -> Result<T, Error> {
        value.ok_or_else(|| self.wrong(key, expected, "nothing"))
    }

    pub(super) fn wrong(&self, key: &str, expected: &'static str, found: impl ToString) -> Error {
        Error::Key { file: self.file, key: key.to_owned(), expected, found: found.to_string() }
    }

    pub(super) fn unsupported(&self, key: &str, expected: &'static str, found: impl ToString) -> Error {
        Error::Unsupported { file: self.file, key: key.to_owned(), expected, found: found.to_string() }
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        expected: &'static str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, Error> {
        let Some(value) = self.get(key) else { return Ok(None) };
        read(value).map(Some).ok_or_else(|| self.wrong(key, expected, shown(value)))
    }
}

/// A value in a message, cut short.
pub(super) fn shown(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(80) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}
