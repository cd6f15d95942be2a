//! Authenticated encryption of chunks, and of users' files, with one key of the pipeline. Whoever can read or write the store without the
//! key learns nothing of what chunks hold and can't forge one.
//!
//! Each chunk has a key of its own, derived from the pipeline's key, the chunk's name and 16 random bytes in its header; it
//! encrypts each frame with AES-256-GCM. The nonce is the layer's number and the header's fixed part is authenticated with
//! each frame: frames can't be swapped between layers, chunks or versions, and any of them is read alone.

use std::{
    fmt,
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use ring::{
    aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, Tag, UnboundKey},
    rand::{SecureRandom, SystemRandom},
};

use crate::id::ChunkId;

/// Separates what is derived from a key from every other use of BLAKE3, and from each other.
const FRAMES_CONTEXT: &str = "baton kv chunk seal, format 2";
const PARTS_CONTEXT: &str = "baton file part seal, format 1";
const NUMBER_CONTEXT: &str = "baton kv chunk seal, number of the key";
const NAMES_CONTEXT: &str = "baton kv chunk seal, secret of names";

/// Bytes of a key.
const KEY: usize = 32;
/// A key file with more bytes is none.
const FILE_LIMIT: u64 = 1024;

pub(crate) const SALT: usize = 16;
pub(crate) const TAG: usize = 16;
/// Bytes that tell keys apart.
pub(crate) const NUMBER: usize = 8;

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("cannot read the key file {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Others could read the file.
    #[error(
        "the key file {} may be read by others (its mode is {mode:03o}): let only its owner read it, with chmod 600", path.display()
    )]
    Open {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The file holds no key. What it holds is not told.
    #[error(
        "expected 32 bytes in hex (64 digits) or base64 (44 characters) in the key file {}, found {found} characters that \
         are neither: make a key with `openssl rand -hex 32`", path.display()
    )]
    Text {
        /// The file.
        path: PathBuf,
        /// Its characters, without white space around them.
        found: usize,
    },
}

/// The system gave no random bytes, or a frame is too large to be sealed.
#[derive(Debug, thiserror::Error)]
#[error("the frame cannot be sealed: no random bytes, or more than 64 GiB")]
pub struct Failed;

/// The key that seals a pipeline's chunks, and that their names depend on. All workers of a pipeline must have the same.
#[derive(Clone)]
pub struct SealKey([u8; KEY]);

/// Tells the key's number, never the key.
impl fmt::Debug for SealKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SealKey({})", self.number())
    }
}

/// Which key, without a hint of it. Printed as 16 hex digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyNumber(pub [u8; NUMBER]);

impl fmt::Display for KeyNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl SealKey {
    /// A key of 32 bytes that nobody can guess.
    pub fn new(bytes: [u8; KEY]) -> Self {
        Self(bytes)
    }

    /// Reads a key from a file that holds 32 bytes in hex or base64 and that, on Unix, nobody but its owner may read.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let read = |source| Error::Read { path: path.into(), source };
        let file = File::open(path).map_err(read)?;
        #[cfg(unix)]
        {
            let mode = std::os::unix::fs::MetadataExt::mode(&file.metadata().map_err(read)?) & 0o777;
            if mode & 0o077 != 0 {
                return Err(Error::Open { path: path.into(), mode });
            }
        }
        let mut bytes = Vec::new();
        file.take(FILE_LIMIT).read_to_end(&mut bytes).map_err(read)?;
        let text = bytes.trim_ascii();
        parse(text).map(Self).ok_or_else(|| Error::Text { path: path.into(), found: text.len() })
    }

    /// Tells this key from others.
    pub fn number(&self) -> KeyNumber {
        let mut number = [0; NUMBER];
        number.copy_from_slice(&blake3::derive_key(NUMBER_CONTEXT, &self.0)[..NUMBER]);
        KeyNumber(number)
    }

    /// What chunk names depend on, so that nobody without the key can compute those of a text.
    pub(crate) fn names(&self) -> [u8; 32] {
        blake3::derive_key(NAMES_CONTEXT, &self.0)
    }

    /// The key of a part of a user's file, whose blob has this name.
    pub(crate) fn parts(&self, blob: &[u8; 32], salt: &[u8; SALT]) -> Result<Frames, Failed> {
        self.derived(PARTS_CONTEXT, blob, salt)
    }

    /// The key of one chunk.
    pub(crate) fn frames(&self, id: &ChunkId, salt: &[u8; SALT]) -> Result<Frames, Failed> {
        self.derived(FRAMES_CONTEXT, &id.0, salt)
    }

    fn derived(&self, context: &str, name: &[u8; 32], salt: &[u8; SALT]) -> Result<Frames, Failed> {
        let mut hasher = blake3::Hasher::new_derive_key(context);
        let key = *hasher.update(&self.0).update(name).update(salt).finalize().as_bytes();
        Ok(Frames(LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &key).map_err(|_| Failed)?)))
    }
}

fn parse(text: &[u8]) -> Option<[u8; KEY]> {
    match text.len() {
        64 => blake3::Hash::from_hex(text).ok().map(|hash| *hash.as_bytes()),
        _ => BASE64.decode(text).ok()?.try_into().ok(),
    }
}

/// Random bytes for a chunk's header.
pub(crate) fn salt() -> Result<[u8; SALT], Failed> {
    let mut salt = [0; SALT];
    SystemRandom::new().fill(&mut salt).map_err(|_| Failed)?;
    Ok(salt)
}

/// Seals and opens the frames of one chunk, each once per key: the nonce is the layer's number.
pub(crate) struct Frames(LessSafeKey);

impl fmt::Debug for Frames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Frames(..)")
    }
}

impl Frames {
    /// Encrypts a frame where it lies and returns its tag.
    pub(crate) fn seal(&self, layer: usize, header: &[u8], frame: &mut [u8]) -> Result<[u8; TAG], Failed> {
        let tag = self.0.seal_in_place_separate_tag(nonce(layer), Aad::from(header), frame).map_err(|_| Failed)?;
        let mut bytes = [0; TAG];
        bytes.copy_from_slice(tag.as_ref());
        Ok(bytes)
    }

    /// Decrypts a frame where it lies. `false` if it or the header is not what was sealed; the frame is garbage then.
    pub(crate) fn open(&self, layer: usize, header: &[u8], tag: [u8; TAG], frame: &mut [u8]) -> bool {
        self.0.open_in_place_separate_tag(nonce(layer), Aad::from(header), Tag::from(tag), frame, 0..).is_ok()
    }
}

fn nonce(layer: usize) -> Nonce {
    let mut bytes = [0; 12];
    bytes[..8].copy_from_slice(&(layer as u64).to_le_bytes());
    Nonce::assume_unique_for_key(bytes)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_key_is_read_from_hex_and_base64_and_from_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("key");
        let read = |text: &str, mode: u32| {
            let _ = fs::remove_file(&file);
            fs::write(&file, text).unwrap();
            #[cfg(unix)]
            fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
            SealKey::read(&file)
        };
        let bytes = [0xab; KEY];
        for text in ["ab".repeat(KEY), format!("  {}\n", "AB".repeat(KEY)), BASE64.encode(bytes) + "\n"] {
            assert_eq!(read(&text, 0o600).unwrap().0, bytes, "{text}");
        }
        for text in ["", "secret", &"ab".repeat(31), &"xy".repeat(32), &BASE64.encode([1; 31]), &"a".repeat(4096)] {
            let error = read(text, 0o600).unwrap_err();
            assert!(matches!(error, Error::Text { .. }), "{error}");
            assert!(text.is_empty() || !error.to_string().contains(text), "the error tells what the file holds");
        }
        assert!(matches!(SealKey::read(&dir.path().join("none")), Err(Error::Read { .. })));
        #[cfg(unix)]
        for mode in [0o640, 0o604, 0o644] {
            let error = read(&"ab".repeat(KEY), mode).unwrap_err();
            assert!(error.to_string().contains("chmod 600"), "{error}");
        }
        assert!(!format!("{:?}", SealKey::new(bytes)).contains("abab"), "the key is printed");
    }
}
