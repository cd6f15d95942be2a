//! The file of keys: TOML, one `[[keys]]` table each. It is read again when it changes.

use std::{
    fs,
    io::Write,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::{Duration, SystemTime},
};

use baton_contract::{Name, causes, objects::Objects};
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq;
use tokio::time::Instant;

use super::{KEY_PREFIX, Key, digest};
use crate::webhooks::{self, Secret};

/// How often the file is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// Entropy of a key.
const KEY_BYTES: usize = 32;

/// One key, as the file says it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// For people: logs and errors say it.
    pub name: String,
    /// SHA-256 of the key, in hex.
    pub sha256: String,
    /// Whose jobs they are that it asks for.
    pub tenant: Name,
    /// Requests that make work and come through one gateway in a minute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests_per_minute: Option<u32>,
    /// Requests that wait for their answers at one gateway at a time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_open: Option<u32>,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    webhooks: Vec<webhooks::Entry>,
    #[serde(default)]
    keys: Vec<Entry>,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot read the keys file {path}; `baton gateway key NAME --tenant TENANT` makes one")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("the keys file {path} is not what it should be: {message}")]
    Malformed { path: PathBuf, message: String },
    #[error("the keys file {path} has a key named {name:?} already; choose another name, or remove that one first")]
    Taken { path: PathBuf, name: String },
    #[error("cannot write the keys file {path}")]
    Write { path: PathBuf, source: std::io::Error },
}

/// What the file said when it was read last.
#[derive(Clone, Debug, Default)]
struct Contents {
    keys: Vec<([u8; 32], Arc<Key>)>,
    /// At most one a tenant.
    webhooks: Vec<webhooks::Entry>,
}

/// The keys that hold now. Cheap to share.
#[derive(Debug)]
pub struct KeysFile {
    path: PathBuf,
    contents: RwLock<Contents>,
    looked: Mutex<(Instant, Option<SystemTime>)>,
}

impl KeysFile {
    /// Reads the file.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let changed = changed_at(path);
        let contents = read(path, &[])?;
        warn_if_open(path);
        Ok(Self {
            path: path.to_owned(),
            contents: RwLock::new(contents),
            looked: Mutex::new((Instant::now(), changed)),
        })
    }

    /// The key of this digest. All keys are compared, each in constant time.
    pub(crate) fn find(&self, digest: &[u8; 32]) -> Option<Arc<Key>> {
        self.look();
        let contents = self.contents.read().unwrap_or_else(PoisonError::into_inner);
        let mut found = None;
        for (known, key) in &contents.keys {
            if bool::from(known.ct_eq(digest)) {
                found = Some(key.clone());
            }
        }
        found
    }

    /// Whom a tenant's events are told.
    pub(crate) fn webhook(&self, tenant: &Name) -> Option<webhooks::Entry> {
        self.look();
        let contents = self.contents.read().unwrap_or_else(PoisonError::into_inner);
        contents.webhooks.iter().find(|webhook| webhook.tenant == *tenant).cloned()
    }

    /// Reads the file again if it has changed. One that can't be read changes nothing.
    fn look(&self) {
        let mut looked = self.looked.lock().unwrap_or_else(PoisonError::into_inner);
        if looked.0.elapsed() < LOOK {
            return;
        }
        let changed = changed_at(&self.path);
        let as_before = changed == looked.1;
        *looked = (Instant::now(), changed);
        drop(looked);
        if as_before {
            return;
        }
        let present = self.contents.read().unwrap_or_else(PoisonError::into_inner).clone();
        match read(&self.path, &present.keys) {
            Ok(contents) => {
                tracing::info!(keys = contents.keys.len(), "the keys file was read again");
                *self.contents.write().unwrap_or_else(PoisonError::into_inner) = contents;
            }
            Err(error) => {
                tracing::error!(error = %causes(&error), "the keys file was not read again; the keys it had hold on")
            }
        }
    }
}

fn changed_at(path: &Path) -> Option<SystemTime> {
    fs::metadata(path).ok()?.modified().ok()
}

/// Digests of keys are of little use to a thief, secrets of webhooks are. Where such files are mounted for everybody to read, as in
/// containers, there is nobody else, so this is no reason to refuse it.
fn warn_if_open(path: &Path) {
    let mode = fs::metadata(path).map_or(0, |metadata| metadata.permissions().mode() & 0o777);
    if mode & 0o077 != 0 {
        let mode = format!("{mode:03o}");
        tracing::warn!(path = %path.display(), mode, "others may read the keys file; let only its owner read it, with chmod 600");
    }
}

/// Reads the file; an entry that is as before keeps what it has counted.
fn read(path: &Path, present: &[([u8; 32], Arc<Key>)]) -> Result<Contents, Error> {
    let text = fs::read_to_string(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
    let malformed = |message: String| Error::Malformed { path: path.to_owned(), message };
    let read = toml::Deserializer::parse(&text).and_then(|reader| File::deserialize(Objects(reader)));
    let file = read.map_err(|error| malformed(causes(&error)))?;
    let mut keys: Vec<([u8; 32], Arc<Key>)> = Vec::new();
    for entry in file.keys {
        let known = from_hex(&entry.sha256).ok_or_else(|| {
            malformed(format!("key {:?}: sha256: expected 64 hex digits, found {:?}", entry.name, entry.sha256))
        })?;
        for (field, value) in [("requests_per_minute", entry.requests_per_minute), ("max_open", entry.max_open)] {
            if value == Some(0) {
                return Err(malformed(format!("key {:?}: {field}: expected at least 1, found 0", entry.name)));
            }
        }
        if keys.iter().any(|(digest, key)| *digest == known || key.entry.name == entry.name) {
            return Err(malformed(format!("key {:?} is there twice", entry.name)));
        }
        let before = present.iter().find(|(_, key)| key.entry == entry).map(|(_, key)| key.clone());
        keys.push((known, before.unwrap_or_else(|| Arc::new(Key::new(entry)))));
    }
    let mut hooked: Vec<&Name> = Vec::new();
    for webhook in &file.webhooks {
        let tenant = &webhook.tenant;
        if Secret::read(&webhook.secret).is_none() {
            let expected = "expected whsec_ and 24 to 64 bytes in base64";
            return Err(malformed(format!("the webhook of tenant {tenant}: secret: {expected}")));
        }
        if hooked.contains(&tenant) {
            return Err(malformed(format!("tenant {tenant} has two webhooks; expected one at most")));
        }
        hooked.push(tenant);
    }
    Ok(Contents { keys, webhooks: file.webhooks })
}

/// Makes a new key for a tenant, adds its digest to the file (which is made if there is none) and returns the key, which is
/// written nowhere.
pub fn add(path: &Path, name: &str, tenant: &Name) -> Result<String, Error> {
    let present = if path.exists() { read(path, &[])? } else { Contents::default() };
    if present.keys.iter().any(|(_, key)| key.entry.name == name) {
        return Err(Error::Taken { path: path.to_owned(), name: name.to_owned() });
    }
    let key = format!("{KEY_PREFIX}{}", hex(&rand::random::<[u8; KEY_BYTES]>()));
    let entry = Entry {
        name: name.to_owned(),
        sha256: hex(&digest(&key)),
        tenant: tenant.clone(),
        requests_per_minute: None,
        max_open: None,
    };
    let malformed = |message: String| Error::Malformed { path: path.to_owned(), message };
    let table = toml::to_string(&File { keys: vec![entry], webhooks: Vec::new() })
        .map_err(|error| malformed(causes(&error)))?;
    // Appended, so that what people wrote there stays; for its owner only, since secrets of webhooks are in it, too.
    let written = fs::OpenOptions::new().create(true).append(true).mode(0o600).open(path).and_then(|mut file| {
        let between = if present.keys.is_empty() { "" } else { "\n" };
        file.write_all(format!("{between}{table}").as_bytes())?;
        file.sync_all()
    });
    written.map_err(|source| Error::Write { path: path.to_owned(), source })?;
    Ok(key)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hex(text: &str) -> Option<[u8; 32]> {
    if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let mut bytes = [0; 32];
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * at..2 * at + 2)?, 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn keys_are_made_found_by_their_digest_and_read_again_when_the_file_changes() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("keys.toml");
        assert!(matches!(KeysFile::open(&path), Err(Error::Read { .. })));
        let (acme, other) = (Name::new("acme").unwrap(), Name::new("other").unwrap());
        let first = add(&path, "first", &acme).unwrap();
        assert!(!fs::read_to_string(&path).unwrap().contains(&first), "the key itself is nowhere");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o077, 0, "others may not read it");
        assert!(matches!(add(&path, "first", &acme), Err(Error::Taken { .. })));
        let keys = KeysFile::open(&path).unwrap();
        let tenant = |key: &str| keys.find(&digest(key)).map(|key| key.entry.tenant.clone());
        assert_eq!(tenant(&first), Some(acme.clone()));
        assert_eq!(tenant("bt-"), None);

        fs::write(&path, format!("# ours\n{}", fs::read_to_string(&path).unwrap())).unwrap();
        let second = add(&path, "second", &other).unwrap();
        fs::File::open(&path).unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();
        assert_eq!(tenant(&second), None, "the file is not looked at so often");
        tokio::time::advance(LOOK).await;
        assert_eq!((tenant(&first), tenant(&second)), (Some(acme), Some(other)));

        for (text, expected) in [
            ("[[keys]]\nname = \"a\"\nsha256 = \"00\"\ntenant = \"acme\"\n", "64 hex digits"),
            ("[[keys]]\nname = \"a\"\nsha256 = \"00\"\ntenant = \"acme\"\nkey = \"x\"\n", "unknown field"),
            ("[[keys]]\nname = \"a\"\nsha256 = \"00\"\ntenant = \"A B\"\n", "a-z"),
            ("keys = [[\"a\", \"00\", \"acme\"]]\n", "expected an object"),
        ] {
            fs::write(&path, text).unwrap();
            let error = KeysFile::open(&path).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        // What is wrong now changes nothing.
        tokio::time::advance(LOOK).await;
        assert!(tenant(&first).is_some());
    }
}
