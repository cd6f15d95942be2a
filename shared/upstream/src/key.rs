//! The key that an engine asks for: read from a file, sent in a header, shown nowhere.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use reqwest::header::HeaderValue;

use crate::Error;

/// A key, and the file that it is in.
pub(crate) struct Key {
    path: PathBuf,
    value: Mutex<Value>,
}

#[derive(Clone, PartialEq, Eq)]
struct Value {
    text: String,
    header: HeaderValue,
}

impl Key {
    /// Reads a key.
    pub(crate) fn read(path: &Path) -> Result<Self, Error> {
        Ok(Self { path: path.to_owned(), value: Mutex::new(value(path)?) })
    }

    /// As in `Authorization`.
    pub(crate) fn header(&self) -> HeaderValue {
        self.value.lock().unwrap_or_else(PoisonError::into_inner).header.clone()
    }

    /// Reads the file again; whether it has another key than before.
    pub(crate) fn renew(&self) -> bool {
        // What can't be read now may be on its way: the old key stays.
        let Ok(now) = value(&self.path) else { return false };
        let mut before = self.value.lock().unwrap_or_else(PoisonError::into_inner);
        let other = *before != now;
        *before = now;
        other
    }

    /// A text without the key, in case that whoever was sent it repeats it.
    pub(crate) fn hide(&self, text: &str) -> String {
        text.replace(&self.value.lock().unwrap_or_else(PoisonError::into_inner).text, "[key]")
    }

    /// The file.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({})", self.path.display())
    }
}

fn value(path: &Path) -> Result<Value, Error> {
    let text = fs::read_to_string(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
    let text = text.trim();
    let printable = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
    let header = HeaderValue::from_str(&format!("Bearer {text}")).ok().filter(|_| printable);
    let mut header = header.ok_or_else(|| Error::Key { path: path.to_owned() })?;
    header.set_sensitive(true);
    Ok(Value { text: text.to_owned(), header })
}

#[cfg(test)]
mod tests {
    use baton_contract::causes;

    use super::*;

    #[test]
    fn a_key_is_one_printable_word_and_is_shown_nowhere() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        fs::write(&path, "  sk-secret\r\n").unwrap();
        let key = Key::read(&path).unwrap();
        assert_eq!(key.header().to_str().unwrap(), "Bearer sk-secret");
        let shown = format!("{key:?} {:?} {}", key.header(), key.hide("no such key: sk-secret!"));
        assert!(!shown.contains("secret") && shown.contains("no such key: [key]!"), "{shown}");
        assert!(!key.renew());
        fs::write(&path, "sk-other").unwrap();
        assert!(key.renew() && !key.renew());
        assert_eq!(key.header().to_str().unwrap(), "Bearer sk-other");
        fs::remove_file(&path).unwrap();
        assert!(!key.renew());
        for text in ["", "\n", "two words", "two\nlines", "schl\u{fc}ssel"] {
            fs::write(&path, text).unwrap();
            let error = causes(&Key::read(&path).unwrap_err());
            assert!(error.contains("expected a key of printable ASCII") && !error.contains("words"), "{error}");
        }
    }
}
