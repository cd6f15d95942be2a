//! The part of a cache that survives its worker: a file a chunk, named by the chunk's id.

use std::{
    fs::{self, File, TryLockError},
    io::{self, Read},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::SystemTime,
};

use baton_contract::causes;

use super::Index;
use crate::key::ChunkId;

/// Workers that can share a directory.
const FOLDERS: usize = 1024;
/// Whoever has locked this file owns the folder.
const LOCK: &str = "lock";

#[derive(Debug)]
pub(super) struct Disk {
    folder: PathBuf,
    index: Mutex<Index<ChunkId>>,
    /// Held as long as the folder is ours; the system lets go of it when the process ends, however it does.
    _lock: File,
}

impl Disk {
    /// Takes the first folder in `path` that no other worker has, and what is in it.
    pub(super) fn open(path: &Path, budget: u64) -> io::Result<Self> {
        for folder in (0..FOLDERS).map(|number| path.join(number.to_string())) {
            let mut private = fs::DirBuilder::new();
            #[cfg(unix)]
            std::os::unix::fs::DirBuilderExt::mode(&mut private, 0o700);
            private.recursive(true).create(&folder)?;
            let lock = File::options().create(true).truncate(false).write(true).open(folder.join(LOCK))?;
            match lock.try_lock() {
                Ok(()) => return Ok(Self { index: Mutex::new(take_over(&folder, budget)?), folder, _lock: lock }),
                Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(error)) => return Err(error),
            }
        }
        Err(io::Error::other(format!("{FOLDERS} workers use it already")))
    }

    pub(super) fn contains(&self, id: &ChunkId) -> bool {
        self.with_index(|index| index.contains(id))
    }

    /// A chunk's bytes, if its file can be read and has at most `max`; otherwise the file goes.
    pub(super) fn get(&self, id: &ChunkId, max: u64) -> Option<Vec<u8>> {
        if !self.with_index(|index| index.touch(id)) {
            return None;
        }
        let read = || {
            let mut file = File::open(self.file(id))?;
            let len = file.metadata()?.len();
            if len > max {
                return Err(io::Error::other(format!("expected at most {max} bytes, found {len}")));
            }
            let mut bytes = Vec::with_capacity(len as usize);
            file.by_ref().take(len).read_to_end(&mut bytes)?;
            // So that a later worker knows what was used last; if this fails, it knows a little less.
            let _ = file.set_modified(SystemTime::now());
            Ok(bytes)
        };
        read()
            .inspect_err(|error| {
                tracing::warn!(chunk = %id, error = %causes(error), "a cached chunk was dropped");
                self.remove(id);
            })
            .ok()
    }

    pub(super) fn insert(&self, id: ChunkId, bytes: &[u8]) -> io::Result<()> {
        if self.contains(&id) {
            return Ok(());
        }
        let file = self.file(&id);
        // Two writers of one chunk have one temporary file each, and whichever is renamed last stays.
        let temporary = file.with_extension(uuid::Uuid::now_v7().simple().to_string());
        let written = fs::write(&temporary, bytes).and_then(|()| fs::rename(&temporary, &file));
        if let Err(error) = written {
            let _ = fs::remove_file(&temporary);
            return Err(error);
        }
        let evicted = self.with_index(|index| index.insert(id, bytes.len() as u64));
        for id in evicted {
            remove(&self.file(&id));
        }
        Ok(())
    }

    pub(super) fn remove(&self, id: &ChunkId) {
        self.with_index(|index| index.remove(id));
        remove(&self.file(id));
    }

    fn file(&self, id: &ChunkId) -> PathBuf {
        self.folder.join(id.to_string())
    }

    fn with_index<T>(&self, work: impl FnOnce(&mut Index<ChunkId>) -> T) -> T {
        work(&mut self.index.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Enters what lies in a folder, the oldest first, and removes what exceeds the budget or was left half written.
fn take_over(folder: &Path, budget: u64) -> io::Result<Index<ChunkId>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let (name, metadata) = (PathBuf::from(entry.file_name()), entry.metadata()?);
        let Some(id) = name.file_stem().and_then(|stem| stem.to_str()?.parse::<ChunkId>().ok()) else { continue };
        match name.extension() {
            None => found.push((metadata.modified()?, id, metadata.len())),
            // A writer's temporary file: it died.
            Some(_) => remove(&entry.path()),
        }
    }
    found.sort();
    let mut index = Index::new(budget);
    for (_, id, bytes) in found {
        for evicted in index.insert(id, bytes) {
            remove(&folder.join(evicted.to_string()));
        }
    }
    Ok(index)
}

fn remove(file: &Path) {
    if let Err(error) = fs::remove_file(file)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(file = %file.display(), error = %causes(&error), "a cached file stayed");
    }
}
