//! What is known about users' files. Their bytes lie in the object store, under the blob that is named here.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{
    Bus, Error,
    gateways::shelf::{Keeping, Shelf},
};

/// A file as its tenant sees it, and where its bytes are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct File {
    /// Its id, as clients know it.
    pub id: String,
    /// As its sender called it; never a path of ours.
    pub filename: String,
    /// What it is for.
    pub purpose: Purpose,
    /// Its size.
    pub bytes: u64,
    /// Seconds since 1970.
    pub created_at: u64,
    /// When it is removed, in seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<u64>,
    /// The name of its bytes in the store, in hex.
    pub blob: String,
    /// Bytes of each of its parts but the last; 0 of a sealed one, so that releases which can't open it take it for damaged.
    pub part_bytes: u64,
    /// How its parts are stored.
    #[serde(default)]
    pub form: Form,
    /// The same as `part_bytes` of a sealed one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sealed_part_bytes: Option<u64>,
}

/// How a file's parts are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Form {
    /// Without a proof of what they are, as earlier releases did.
    #[default]
    Plain,
    /// Each part has a checksum.
    Checked,
    /// Each part is encrypted.
    Sealed,
}

/// What a file is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Purpose {
    /// Requests, one a line.
    Batch,
    /// What came of them.
    BatchOutput,
}

impl Bus {
    /// What is known about users' files; creates what it needs.
    pub async fn files(&self, replicas: usize) -> Result<Shelf<File>, Error> {
        Shelf::open(self, self.file_keeping(replicas)).await
    }

    pub(crate) fn file_keeping(&self, replicas: usize) -> Keeping {
        Keeping { bucket: self.layout.file_bucket(), description: "users' files", max_age: Duration::ZERO, replicas }
    }
}
