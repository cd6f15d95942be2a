//! One part of a blob as it lies in the store: its bytes, and behind them what proves that they are these bytes of this blob.
//!
//! ```text
//! checked:  bytes │ BLAKE3 of blob, number and bytes (32) │ magic (8)
//! sealed:   AES-256-GCM of the bytes │ salt (16) │ tag (16) │ magic (8)
//! ```
//!
//! A seal's key is derived from the pipeline's key, the blob and the salt; its nonce is the part's number, and that is all
//! there is to swap: blobs are written once. How many parts there are, and how long the last is, the index says.

use bytes::Bytes;

use super::{Blob, Form};
use crate::seal::{SALT, SealKey, TAG, salt};

const CHECKED: &[u8; 8] = b"BTNPART1";
const SEALED: &[u8; 8] = b"BTNPART2";
const DIGEST: usize = 32;

/// Bytes behind a part's own, in either form.
pub(super) const TRAILER: usize = 40;
const _: () = assert!(DIGEST + CHECKED.len() == TRAILER && SALT + TAG + SEALED.len() == TRAILER);

/// Which part of which blob.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) blob: Blob,
    pub(super) number: u64,
}

impl Place {
    fn digest(&self, bytes: &[u8]) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new_derive_key("baton part of a tenant's file, format 1");
        hasher.update(self.blob.0.as_bytes()).update(&self.number.to_le_bytes()).update(bytes).finalize()
    }

    /// What a seal holds for besides the bytes.
    fn described(&self) -> [u8; 48] {
        let mut described = [0; 48];
        described[..8].copy_from_slice(SEALED);
        described[8..40].copy_from_slice(self.blob.0.as_bytes());
        described[40..].copy_from_slice(&self.number.to_le_bytes());
        described
    }

    /// The part as it is stored: sealed if there is a key.
    pub(super) fn pack(&self, mut bytes: Vec<u8>, key: Option<&SealKey>) -> Result<Bytes, crate::seal::Failed> {
        bytes.reserve_exact(TRAILER);
        match key {
            None => {
                let digest = self.digest(&bytes);
                bytes.extend_from_slice(digest.as_bytes());
                bytes.extend_from_slice(CHECKED);
            }
            Some(key) => {
                let salt = salt()?;
                let frame = key.parts(self.blob.0.as_bytes(), &salt)?;
                let tag = frame.seal(self.number as usize, &self.described(), &mut bytes)?;
                bytes.extend_from_slice(&salt);
                bytes.extend_from_slice(&tag);
                bytes.extend_from_slice(SEALED);
            }
        }
        Ok(bytes.into())
    }

    /// The bytes of a stored part, if they are what was packed.
    pub(super) fn unpack(&self, stored: Bytes, form: Form, key: Option<&SealKey>) -> Option<Bytes> {
        let length = stored.len().checked_sub(TRAILER)?;
        let (bytes, trailer) = stored.split_at(length);
        match form {
            Form::Plain => None,
            Form::Checked => {
                let (digest, magic) = trailer.split_at(DIGEST);
                // Compared in constant time.
                let good = magic == CHECKED && self.digest(bytes) == blake3::Hash::from_slice(digest).ok()?;
                good.then(|| stored.slice(..length))
            }
            Form::Sealed => {
                let (salt, rest) = trailer.split_at(SALT);
                let (tag, magic) = rest.split_at(TAG);
                if magic != SEALED {
                    return None;
                }
                let frame = key?.parts(self.blob.0.as_bytes(), salt.try_into().ok()?).ok()?;
                let mut opened = bytes.to_vec();
                let good = frame.open(self.number as usize, &self.described(), tag.try_into().ok()?, &mut opened);
                good.then(|| opened.into())
            }
        }
    }
}
