//! What a store holds.

use std::{
    collections::HashMap,
    io,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use futures::TryStreamExt;

use super::Object;
use crate::key::ChunkId;
use crate::store::{CHUNKS, Error, FILES, Listed, MARKS, ObjectPath, PIPELINES, PROBES, Store, TAILS};

/// What a store holds: some 50 bytes of memory per chunk.
#[derive(Clone, Debug, Default)]
pub struct Census {
    /// The chunks, in no particular order.
    pub objects: Vec<Object>,
    /// The tails, of which each serves one job. Their uses are not noted, so their times are those of their puts.
    pub tails: Vec<Object>,
    /// What is of no use to anybody.
    pub leftovers: Vec<Leftover>,
}

/// Something that a crash or a lost race left behind: the file of a put that did not end, the mark of a chunk that is
/// gone, the object of a probe, the tail of a job that has ended.
#[derive(Clone, Debug)]
pub struct Leftover {
    pub(super) place: Place,
    modified: SystemTime,
    /// Bytes that it takes.
    pub bytes: u64,
}

#[derive(Clone, Debug)]
pub(super) enum Place {
    Object(ObjectPath),
    /// Below the directory of a local store.
    File(PathBuf),
}

impl Leftover {
    /// Whether it is too old to belong to something that still goes on.
    pub fn is_older_than(&self, grace: Duration, now: SystemTime) -> bool {
        now.duration_since(self.modified).unwrap_or_default() >= grace
    }

    /// A tail that no job needs any more.
    pub fn tail(tail: &Object) -> Self {
        let place = Place::Object(ObjectPath::tail(&tail.id));
        Self { place, modified: tail.used, bytes: tail.bytes }
    }
}

impl From<Listed> for Leftover {
    fn from(listed: Listed) -> Self {
        Self { place: Place::Object(listed.path), modified: listed.modified, bytes: listed.bytes }
    }
}

impl Census {
    /// Lists a store; `seen` hears of every object. What does not look like Baton's is left out.
    pub async fn take(store: &Store, mut seen: impl FnMut()) -> Result<Self, Error> {
        // Marks before chunks: a mark is put after its chunk, so one whose chunk is not found has none.
        let mut marks: HashMap<ChunkId, Listed> = HashMap::new();
        let mut listed = store.list(MARKS);
        while let Some(mark) = listed.try_next().await? {
            seen();
            if let Some(id) = mark.path.id().filter(|id| ObjectPath::mark(id) == mark.path) {
                marks.insert(id, mark);
            }
        }
        let mut census = Self::default();
        let mut listed = store.list(CHUNKS);
        while let Some(Listed { path, bytes, modified }) = listed.try_next().await? {
            seen();
            if let Some(id) = path.id().filter(|id| ObjectPath::chunk(id) == path) {
                let used = marks.remove(&id).map_or(modified, |mark| mark.modified.max(modified));
                census.objects.push(Object { id, bytes, used });
            }
        }
        let mut listed = store.list(TAILS);
        while let Some(Listed { path, bytes, modified }) = listed.try_next().await? {
            seen();
            if let Some(id) = path.id().filter(|id| ObjectPath::tail(id) == path) {
                census.tails.push(Object { id, bytes, used: modified });
            }
        }
        census.leftovers = marks.into_values().map(Leftover::from).collect();
        let probes: Vec<Listed> = store.list(PROBES).try_collect().await?;
        census.leftovers.extend(probes.into_iter().map(Leftover::from));
        census.leftovers.extend(store.staged_files().await?);
        Ok(census)
    }
}

impl Store {
    /// When a chunk was put or last used, or `None` if it is gone.
    pub(super) async fn last_use(&self, id: &ChunkId) -> Result<Option<SystemTime>, Error> {
        let Some(put) = self.modified(&ObjectPath::chunk(id)).await? else { return Ok(None) };
        if self.root().is_some() {
            return Ok(Some(put));
        }
        Ok(self.modified(&ObjectPath::mark(id)).await?.max(Some(put)))
    }

    /// The files of puts that did not end.
    async fn staged_files(&self) -> Result<Vec<Leftover>, Error> {
        let Some(root) = self.root() else { return Ok(Vec::new()) };
        let walked = root.to_path_buf();
        let found = tokio::task::spawn_blocking(move || {
            let mut found = Vec::new();
            for place in [CHUNKS, TAILS, MARKS, PROBES, FILES, PIPELINES] {
                find_staged(&walked.join(place), &mut found)?;
            }
            Ok(found)
        });
        let found = found.await.unwrap_or_else(|lost| Err(io::Error::other(lost)));
        found.map_err(|source| Error::Directory { path: root.to_path_buf(), source })
    }
}

/// The local store writes an object beside its name, as `NAME#NUMBER`, and gives it the name when it is whole.
fn find_staged(directory: &Path, found: &mut Vec<Leftover>) -> io::Result<()> {
    let gone = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if gone(&error) => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let entry = entry?;
        // Of a link this says that it is one: nothing outside the store is looked at.
        let metadata = match entry.metadata() {
            Ok(metadata) => metadata,
            Err(error) if gone(&error) => continue,
            Err(error) => return Err(error),
        };
        if metadata.is_dir() {
            find_staged(&entry.path(), found)?;
        } else if metadata.is_file() && entry.file_name().to_str().is_some_and(is_staged) {
            let (modified, bytes) = (metadata.modified()?, metadata.len());
            found.push(Leftover { place: Place::File(entry.path()), modified, bytes });
        }
    }
    Ok(())
}

fn is_staged(name: &str) -> bool {
    let numbered = |number: &str| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    name.split_once('#').is_some_and(|(name, number)| !name.is_empty() && numbered(number))
}
