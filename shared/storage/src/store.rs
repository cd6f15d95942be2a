//! One place for objects: a local directory, S3, Google Cloud Storage, Azure, or memory, behind the few operations that
//! Baton needs.

mod backend;
mod conflict;
mod error;
mod range;
mod space;
#[cfg(target_os = "linux")]
mod spare;
mod touch;
mod touches;

use std::{
    fmt, io,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::SystemTime,
};

use bytes::Bytes;
use futures::{StreamExt, stream::BoxStream};
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutOptions, path::Path};
use tokio::time::{Instant, sleep};

pub use error::Error;
pub(crate) use range::Start;
pub use space::free;
pub use touches::TOUCH_EVERY;

use self::touches::Touches;
use crate::key::{ChunkId, PieceKind};

/// The directory of KV chunks.
pub(crate) const CHUNKS: &str = "kv";
/// The directory of tails, of which each serves one job.
pub(crate) const TAILS: &str = "tails";
/// The directory of marks: a small object per chunk whose time is that of the chunk's last use, where a chunk's own time
/// can't be set.
pub(crate) const MARKS: &str = "used";
/// The directory of probes.
pub(crate) const PROBES: &str = "probe";
/// The directory of pipelines' marks, which collection leaves alone.
pub(crate) const PIPELINES: &str = "pipelines";
/// The directory of users' files, which collection leaves alone.
pub(crate) const FILES: &str = "files";

/// Where an object lies. It is only ever built from a hash, so nothing a message says can lead elsewhere.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ObjectPath(Path);

impl ObjectPath {
    /// A KV chunk: `kv/ab/abcdef...`. The level between keeps local directories small.
    pub fn chunk(id: &ChunkId) -> Self {
        let hex = id.to_string();
        Self(Path::from_iter([CHUNKS, &hex[..2], &hex]))
    }

    /// The tail of a job's prompt: `tails/ab/abcdef...`. Apart from the chunks, so that a collection can tell them.
    pub fn tail(id: &ChunkId) -> Self {
        let hex = id.to_string();
        Self(Path::from_iter([TAILS, &hex[..2], &hex]))
    }

    /// A piece of a prompt.
    pub(crate) fn piece(id: &ChunkId, kind: PieceKind) -> Self {
        match kind {
            PieceKind::Chunk => Self::chunk(id),
            PieceKind::Tail => Self::tail(id),
        }
    }

    /// The mark of a chunk's last use.
    pub(crate) fn mark(id: &ChunkId) -> Self {
        let hex = id.to_string();
        Self(Path::from_iter([MARKS, &hex[..2], &hex]))
    }

    /// The hash that it ends with, if it does.
    pub(crate) fn id(&self) -> Option<ChunkId> {
        self.0.filename()?.parse().ok()
    }

    /// A part of a file's bytes: `files/ab/abcdef.../7`.
    pub(crate) fn part(blob: &blake3::Hash, number: u64) -> Self {
        let hex = blob.to_hex();
        Self(Path::from_iter([FILES, &hex[..2], &hex, &number.to_string()]))
    }

    /// The mark of a pipeline whose store it is.
    fn pipeline(name: &str) -> Self {
        Self(Path::from_iter([PIPELINES, blake3::hash(name.as_bytes()).to_hex().as_str()]))
    }

    fn probe(hash: blake3::Hash) -> Self {
        Self(Path::from_iter([PROBES, hash.to_hex().as_str()]))
    }
}

impl fmt::Display for ObjectPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a create-only put did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    /// The object is new.
    Created,
    /// An object of that path was there and stays as it is.
    Exists,
}

/// An object that a listing found.
#[derive(Clone, Debug)]
pub(crate) struct Listed {
    pub(crate) path: ObjectPath,
    pub(crate) bytes: u64,
    /// When it was put, or a local file was touched.
    pub(crate) modified: SystemTime,
}

/// An object store. Cheap to clone; clones share connections.
///
/// When [`Store::put_new`] returns, `Created` or `Exists`, the object survives a crash of this process and a loss of
/// power, as far as the store keeps its word: S3, GCS and Azure answer after the write is durable; in a local directory
/// the file, its name and its directories are fsynced, provided that the disk honours a flush, unless the store was opened
/// with [`Store::open_unsynced`]. `memory:` keeps nothing. Objects appear whole or not at all.
#[derive(Clone)]
pub struct Store {
    inner: Arc<dyn ObjectStore>,
    url: Arc<str>,
    /// The directory of a local store.
    root: Option<Arc<std::path::Path>>,
    /// Whether puts into it are flushed to the disk.
    synced: bool,
    #[cfg(target_os = "linux")]
    spares: Option<Arc<spare::Spares>>,
    touches: Arc<Touches>,
    /// What the store's clock showed at some moment.
    time: Arc<Mutex<Option<(SystemTime, Instant)>>>,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Store({})", self.url)
    }
}

impl Store {
    /// Opens a store with the settings in the process's environment; see [`Store::open_with`].
    pub fn open(url: &str) -> Result<Self, Error> {
        Self::open_with(url, environment())
    }

    /// As [`Store::open`], but a local store doesn't flush what is put: it survives a crash of any process, and may be lost
    /// or damaged by a loss of power. For what can be computed again, a third of a put's time.
    pub fn open_unsynced(url: &str) -> Result<Self, Error> {
        Self::opened(url, environment(), false)
    }

    /// Opens a store with explicit settings, named like environment variables. Nothing is contacted yet.
    ///
    /// | URL | store | settings |
    /// |---|---|---|
    /// | `/path`, `path`, `file:///path` (taken literally) | local directory, created if missing | |
    /// | `s3://bucket/prefix` | S3 and what speaks it | `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_REGION`, `AWS_ENDPOINT_URL`, `AWS_ALLOW_HTTP`, ... |
    /// | `gs://bucket/prefix` | Google Cloud Storage | `GOOGLE_SERVICE_ACCOUNT`, ... |
    /// | `az://container/prefix` | Azure Blob Storage | `AZURE_STORAGE_ACCOUNT_NAME`, `AZURE_STORAGE_ACCOUNT_KEY`, ... |
    /// | `memory:` | this process's memory, for tests | |
    ///
    /// An S3 endpoint without TLS needs `AWS_ALLOW_HTTP=true`, unless it is on this machine.
    pub fn open_with(url: &str, vars: impl IntoIterator<Item = (String, String)>) -> Result<Self, Error> {
        Self::opened(url, vars, true)
    }

    fn opened(url: &str, vars: impl IntoIterator<Item = (String, String)>, synced: bool) -> Result<Self, Error> {
        let backend::Opened { inner, root } = backend::open(url, vars, synced)?;
        Ok(Self {
            inner,
            url: baton_contract::without_secrets(url).into(),
            #[cfg(target_os = "linux")]
            spares: root.clone().filter(|_| !synced).map(spare::Spares::new),
            root: root.map(Into::into),
            synced,
            touches: Arc::default(),
            time: Arc::default(),
        })
    }

    /// Puts an object unless one of that path is there. Of many that try at once, exactly one creates it.
    ///
    /// If an answer was lost on the way and the put retried, `Exists` may mean this very put. What a remote store says of an
    /// object that is there is not believed before the object was seen: it also refuses a put that met another operation,
    /// and stores nothing then.
    pub async fn put_new(&self, path: &ObjectPath, bytes: Bytes) -> Result<Put, Error> {
        #[cfg(target_os = "linux")]
        if let (Some(spares), Some(file)) = (&self.spares, self.file(path))
            && let Some(put) = spares.put_new(file, bytes.clone()).await
        {
            return Ok(put);
        }
        let mut pauses = conflict::Pauses::default();
        loop {
            let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
            let refused = match self.inner.put_opts(&path.0, bytes.clone().into(), options).await {
                Ok(_) => return Ok(Put::Created),
                Err(refused @ object_store::Error::AlreadyExists { .. }) => refused,
                Err(source) => return Err(self.failed("put", path, source)),
            };
            if self.is_local() || self.exists(path).await? {
                self.sync_existing(path).await?;
                return Ok(Put::Exists);
            }
            match pauses.next() {
                Some(pause) => sleep(pause).await,
                None => return Err(self.failed("put", path, refused)),
            }
        }
    }

    /// The object, or `None` if there is none. One of more than `max_bytes` is refused before its body is read.
    pub async fn get(&self, path: &ObjectPath, max_bytes: u64) -> Result<Option<Bytes>, Error> {
        let result = match self.inner.get(&path.0).await {
            Ok(result) => result,
            Err(object_store::Error::NotFound { .. }) => return Ok(None),
            Err(source) => return Err(self.failed("get", path, source)),
        };
        let found = result.meta.size;
        if found > max_bytes {
            return Err(self.oversize(path, max_bytes, found));
        }
        match result.bytes().await {
            Ok(bytes) => Ok(Some(bytes)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(source) => Err(self.failed("read", path, source)),
        }
    }

    /// Bytes of an object that is there and durable, or `None` if there is none.
    pub(crate) async fn find_durable(&self, path: &ObjectPath) -> Result<Option<u64>, Error> {
        let size = self.size(path).await?;
        if size.is_some() && !path.id().is_some_and(|id| self.touched(&id)) {
            self.sync_existing(path).await?;
        }
        Ok(size)
    }

    /// Whether an object of that path is there.
    pub async fn exists(&self, path: &ObjectPath) -> Result<bool, Error> {
        Ok(self.size(path).await?.is_some())
    }

    /// Removes an object. One that is not there is no error.
    pub async fn delete(&self, path: &ObjectPath) -> Result<(), Error> {
        path.id().inspect(|id| self.touches.forget(id));
        match self.inner.delete(&path.0).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(source) => Err(self.failed("delete", path, source)),
        }
    }

    /// Notes that this process has put a chunk just now, which so needs no touch.
    pub(crate) fn note_put(&self, id: &ChunkId) {
        self.touches.due(id);
    }

    /// Whether a chunk was there when this process last touched it, less than [`TOUCH_EVERY`] ago.
    pub(crate) fn touched(&self, id: &ChunkId) -> bool {
        self.touches.recent(id)
    }

    /// When an object was put, or a local file was touched; `None` if there is none.
    pub(crate) async fn modified(&self, path: &ObjectPath) -> Result<Option<SystemTime>, Error> {
        match self.inner.head(&path.0).await {
            Ok(meta) => Ok(Some(meta.last_modified.into())),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(source) => Err(self.failed("look for", path, source)),
        }
    }

    /// All objects below one of the store's directories, as they are found, in no particular order.
    pub(crate) fn list(&self, directory: &'static str) -> BoxStream<'static, Result<Listed, Error>> {
        let (store, directory) = (self.clone(), ObjectPath(Path::from(directory)));
        let found = self.inner.list(Some(&directory.0)).map(move |found| match found {
            Ok(meta) => {
                Ok(Listed { path: ObjectPath(meta.location), bytes: meta.size, modified: meta.last_modified.into() })
            }
            Err(source) => Err(store.failed("list", &directory, source)),
        });
        found.boxed()
    }

    /// The directory of a local store.
    pub(crate) fn root(&self) -> Option<&std::path::Path> {
        self.root.as_deref()
    }

    /// The file that holds an object of a local store.
    fn file(&self, path: &ObjectPath) -> Option<PathBuf> {
        let root = self.root()?;
        Some(path.0.parts().fold(root.to_path_buf(), |file, part| file.join(part.as_ref())))
    }

    /// Checks that the store can be written to and honours create-only puts, by putting a small object twice. The object
    /// is removed again, also when the check fails.
    pub async fn probe_conditional_put(&self) -> Result<(), Error> {
        let path = ObjectPath::probe(blake3::hash(uuid::Uuid::now_v7().as_bytes()));
        self.put_new(&path, Bytes::from_static(b"first")).await?;
        let second = self.put_new(&path, Bytes::from_static(b"second")).await;
        let deleted = self.delete(&path).await;
        match second? {
            Put::Exists => deleted,
            Put::Created => Err(Error::Overwrites { url: self.url.clone() }),
        }
    }

    /// Notes that the store is a pipeline's, so that others can tell whether theirs is the same.
    pub async fn put_pipeline_mark(&self, pipeline: &str) -> Result<(), Error> {
        self.put_new(&ObjectPath::pipeline(pipeline), Bytes::from_static(b"this store is a pipeline's\n"))
            .await
            .map(drop)
    }

    /// Whether the store is the pipeline's.
    pub async fn has_pipeline_mark(&self, pipeline: &str) -> Result<bool, Error> {
        self.exists(&ObjectPath::pipeline(pipeline)).await
    }

    /// Whoever created a local file may still be at its fsync, and crash before it ends: so whoever relies on the file
    /// syncs its name too. The file's bytes were synced before it had one.
    async fn sync_existing(&self, path: &ObjectPath) -> Result<(), Error> {
        let (Some(root), Some(file), true) = (self.root.clone(), self.file(path), self.synced) else { return Ok(()) };
        let synced = tokio::task::spawn_blocking(move || {
            let dirs = file.ancestors().skip(1).take_while(|dir| dir.starts_with(&root));
            dirs.into_iter().try_for_each(|dir| std::fs::File::open(dir)?.sync_all())
        });
        let result = synced.await.unwrap_or_else(|lost| Err(io::Error::other(lost)));
        result.map_err(|error| self.failed_locally("sync", path, error))
    }

    fn oversize(&self, path: &ObjectPath, max: u64, found: u64) -> Error {
        Error::Oversize { path: path.to_string(), url: self.url.clone(), max, found }
    }

    fn failed_locally(&self, operation: &'static str, path: &ObjectPath, error: io::Error) -> Error {
        self.failed(operation, path, object_store::Error::Generic { store: "LocalFileSystem", source: error.into() })
    }
}

/// The process's environment. Variables that are not UTF-8 can't be settings of ours, and `env::vars` would panic on them.
fn environment() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os().filter_map(|(key, value)| Some((key.into_string().ok()?, value.into_string().ok()?)))
}
