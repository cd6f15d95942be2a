//! What time it is for a store, and which chunks are in use.

use std::{
    io,
    path::PathBuf,
    sync::PoisonError,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use object_store::ObjectStoreExt;
use tokio::time::Instant;

use super::{Error, ObjectPath, Store, TOUCH_EVERY};
use crate::key::ChunkId;

/// How long what the store's clock showed serves.
const TIME_SERVES: Duration = Duration::from_secs(600);

impl Store {
    /// The time by the clock that stamps what is put, or a little less: ages of objects are told by no other, for the clocks
    /// of those who use a store may be wrong, and they may differ. A small object is put and removed again for it now and then;
    /// in between time goes on steadily.
    pub async fn now(&self) -> Result<SystemTime, Error> {
        let lock = || self.time.lock().unwrap_or_else(PoisonError::into_inner);
        let known = lock().map(|(time, at)| (time, at.elapsed()));
        if let Some((time, since)) = known.filter(|(_, since)| *since < TIME_SERVES) {
            return Ok(time + since);
        }
        let path = ObjectPath::probe(blake3::hash(uuid::Uuid::now_v7().as_bytes()));
        self.put_new(&path, Bytes::from_static(b"time")).await?;
        let modified = self.modified(&path).await;
        let at = Instant::now();
        // If it stays, a collection takes it.
        let deleted = self.delete(&path).await;
        let lost = || self.failed_locally("look for", &path, io::Error::from(io::ErrorKind::NotFound));
        let time = modified?.ok_or_else(lost)?;
        deleted?;
        *lock() = Some((time, at));
        Ok(time + at.elapsed())
    }

    /// Notes that a chunk is in use now, by the store's clock; see [`Store::touch`].
    pub(crate) async fn note_use(&self, id: &ChunkId) -> Result<bool, Error> {
        if !self.touches.due(id) {
            return Ok(true);
        }
        let touched = match self.now().await {
            Ok(now) => self.touch_due(id, now).await,
            Err(error) => Err(error),
        };
        self.settle_touch(id, touched)
    }

    /// Notes that a chunk is in use at `now`, so that collection does not take it for forgotten. Each process tells the
    /// store at most once in [`TOUCH_EVERY`] per chunk, and other calls return at once. Where it needs an object of its
    /// own, a chunk that was put less than that ago gets none.
    ///
    /// Returns whether the chunk is there, or was at the last touch.
    pub async fn touch(&self, id: &ChunkId, now: SystemTime) -> Result<bool, Error> {
        if !self.touches.due(id) {
            return Ok(true);
        }
        let touched = self.touch_due(id, now).await;
        self.settle_touch(id, touched)
    }

    async fn touch_due(&self, id: &ChunkId, now: SystemTime) -> Result<bool, Error> {
        let path = ObjectPath::chunk(id);
        match self.file(&path) {
            Some(file) => set_modified(file, now).await.map_err(|error| self.failed_locally("touch", &path, error)),
            None => self.mark(id, &path, now).await,
        }
    }

    /// One that failed, or found no chunk, is to be done again.
    fn settle_touch(&self, id: &ChunkId, touched: Result<bool, Error>) -> Result<bool, Error> {
        if !matches!(touched, Ok(true)) {
            self.touches.forget(id);
        }
        touched
    }

    async fn mark(&self, id: &ChunkId, path: &ObjectPath, now: SystemTime) -> Result<bool, Error> {
        let Some(put) = self.modified(path).await? else { return Ok(false) };
        // A store whose clock is ahead of ours gives no age; it is young enough.
        if now.duration_since(put).unwrap_or_default() < TOUCH_EVERY {
            return Ok(true);
        }
        let mark = ObjectPath::mark(id);
        match self.inner.put(&mark.0, Bytes::from_static(b"used").into()).await {
            Ok(_) => Ok(true),
            Err(source) => Err(self.failed("touch", &mark, source)),
        }
    }
}

/// Sets a file's time; `false` if it is not there.
async fn set_modified(file: PathBuf, time: SystemTime) -> io::Result<bool> {
    let set = tokio::task::spawn_blocking(move || {
        let file = match std::fs::File::open(file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            opened => opened?,
        };
        file.set_times(std::fs::FileTimes::new().set_modified(time))?;
        Ok(true)
    });
    set.await.unwrap_or_else(|lost| Err(io::Error::other(lost)))
}
