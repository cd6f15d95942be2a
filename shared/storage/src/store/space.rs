//! How much room a store has, and what it says when it has none.

use std::{error::Error as _, io, io::ErrorKind};

use super::{Error, ObjectPath, Store};

impl Store {
    /// Bytes that are free where a local store lies; none for other stores, and where the system does not tell.
    pub fn free_bytes(&self) -> Option<u64> {
        free(self.root()?)
    }

    pub(super) fn failed(&self, operation: &'static str, path: &ObjectPath, source: object_store::Error) -> Error {
        match is_full(&source) {
            true => Error::Full { url: self.url.clone(), free: self.free_bytes(), source: Box::new(source) },
            false => {
                Error::Operation { operation, path: path.to_string(), url: self.url.clone(), source: Box::new(source) }
            }
        }
    }
}

/// Bytes that are free in the file system of a directory.
pub fn free(directory: &std::path::Path) -> Option<u64> {
    #[cfg(target_os = "linux")]
    return rustix::fs::statvfs(directory).ok().map(|found| found.f_bavail.saturating_mul(found.f_frsize));
    #[cfg(not(target_os = "linux"))]
    return None;
}

/// Whether the system had no room for what was written.
fn is_full(error: &object_store::Error) -> bool {
    let full = |kind| matches!(kind, ErrorKind::StorageFull | ErrorKind::QuotaExceeded);
    let mut source = error.source();
    while let Some(cause) = source {
        if cause.downcast_ref::<io::Error>().is_some_and(|cause| full(cause.kind())) {
            return true;
        }
        source = cause.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_told_from_other_failures() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path().to_str().unwrap()).unwrap();
        let path = ObjectPath::probe(blake3::hash(b"probe"));
        let failed = |kind: ErrorKind| store.failed_locally("put", &path, kind.into());
        assert!(matches!(failed(ErrorKind::StorageFull), Error::Full { .. }));
        assert!(matches!(failed(ErrorKind::QuotaExceeded), Error::Full { .. }));
        assert!(matches!(failed(ErrorKind::PermissionDenied), Error::Operation { operation: "put", .. }));
        let text = baton_contract::causes(&failed(ErrorKind::StorageFull));
        assert!(text.contains(directory.path().to_str().unwrap()) && text.contains("no storage space"), "{text}");
    }
}
