//! One place for objects: a local directory, S3, Google Cloud Storage, Azure, or memory, behind the few operations that
//! Baton needs.

use std::{fmt, io, path::PathBuf, sync::Arc};

use bytes::Bytes;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutOptions, path::Path};

use crate::backend;
use crate::key::ChunkId;

/// Why a store could not be opened or used. Network faults and overloaded servers were retried before one is reported.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The URL names no store.
    #[error("store url {url:?}: {problem}")]
    Url {
        /// As given.
        url: String,
        /// What was expected, and what to do.
        problem: String,
    },
    /// The local directory cannot be used.
    #[error("cannot use {} as a store: create the directory or make it writable", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The store's client could not be set up.
    #[error("cannot set up the store {url:?}: check its url and the credentials in the environment")]
    Setup {
        /// As given.
        url: String,
        /// What the client said.
        #[source]
        source: Box<object_store::Error>,
    },
    /// An operation failed.
    #[error("cannot {operation} {path} in {url}")]
    Operation {
        /// What was tried.
        operation: &'static str,
        /// The object.
        path: String,
        /// The store.
        url: Arc<str>,
        /// What the store said.
        #[source]
        source: Box<object_store::Error>,
    },
    /// An object is larger than the reader allows; its body was not read.
    #[error("object {path} in {url} has {found} bytes, more than the {max} that it may have")]
    Oversize {
        /// The object.
        path: String,
        /// The store.
        url: Arc<str>,
        /// The reader's limit in bytes.
        max: u64,
        /// The object's bytes.
        found: u64,
    },
    /// A second create-only put of one object went through.
    #[error(
        "the store {url} ignores create-only puts (If-None-Match: *), so a job that runs twice could replace what its \
         first run stored; use a store that honours them, such as a local directory, AWS S3 or a current MinIO or SeaweedFS"
    )]
    Overwrites {
        /// The store.
        url: Arc<str>,
    },
}

/// Where an object lies. It is only ever built from a hash, so nothing a message says can lead elsewhere.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ObjectPath(Path);

impl ObjectPath {
    /// A KV chunk: `kv/ab/abcdef...`. The level between keeps local directories small.
    pub fn chunk(id: &ChunkId) -> Self {
        let hex = id.to_string();
        Self(Path::from_iter(["kv", &hex[..2], &hex]))
    }

    fn probe(hash: blake3::Hash) -> Self {
        Self(Path::from_iter(["probe", hash.to_hex().as_str()]))
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

/// An object store. Cheap to clone; clones share connections.
///
/// When [`Store::put_new`] returns, `Created` or `Exists`, the object survives a crash of this process and a loss of
/// power, as far as the store keeps its word: S3, GCS and Azure answer after the write is durable; in a local directory
/// the file, its name and its directories are fsynced, provided that the disk honours a flush. `memory:` keeps nothing.
/// Objects appear whole or not at all.
#[derive(Clone)]
pub struct Store {
    inner: Arc<dyn ObjectStore>,
    url: Arc<str>,
    /// The directory of a local store.
    root: Option<Arc<std::path::Path>>,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Store({})", self.url)
    }
}

impl Store {
    /// Opens a store with the settings in the process's environment; see [`Store::open_with`].
    pub fn open(url: &str) -> Result<Self, Error> {
        // Variables that are not UTF-8 can't be settings of ours, and `env::vars` would panic on them.
        let vars = std::env::vars_os();
        Self::open_with(url, vars.filter_map(|(key, value)| Some((key.into_string().ok()?, value.into_string().ok()?))))
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
        let backend::Opened { inner, root } = backend::open(url, vars)?;
        Ok(Self { inner, url: url.into(), root: root.map(Into::into) })
    }

    /// Puts an object unless one of that path is there. Of many who try at once, exactly one creates it.
    ///
    /// If an answer was lost on the way and the put retried, `Exists` may mean this very put.
    pub async fn put_new(&self, path: &ObjectPath, bytes: Bytes) -> Result<Put, Error> {
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        match self.inner.put_opts(&path.0, bytes.into(), options).await {
            Ok(_) => Ok(Put::Created),
            Err(object_store::Error::AlreadyExists { .. }) => {
                self.sync_existing(path).await?;
                Ok(Put::Exists)
            }
            Err(source) => Err(self.failed("put", path, source)),
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
            return Err(Error::Oversize { path: path.to_string(), url: self.url.clone(), max: max_bytes, found });
        }
        match result.bytes().await {
            Ok(bytes) => Ok(Some(bytes)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(source) => Err(self.failed("read", path, source)),
        }
    }

    /// Whether an object of that path is there.
    pub async fn exists(&self, path: &ObjectPath) -> Result<bool, Error> {
        match self.inner.head(&path.0).await {
            Ok(_) => Ok(true),
            Err(object_store::Error::NotFound { .. }) => Ok(false),
            Err(source) => Err(self.failed("look for", path, source)),
        }
    }

    /// Removes an object. One that is not there is no error.
    pub async fn delete(&self, path: &ObjectPath) -> Result<(), Error> {
        match self.inner.delete(&path.0).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(source) => Err(self.failed("delete", path, source)),
        }
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

    /// Whoever created a local file may still be at its fsync, and crash before it ends: so whoever relies on the file
    /// syncs its name too. The file's bytes were synced before it had one.
    async fn sync_existing(&self, path: &ObjectPath) -> Result<(), Error> {
        let Some(root) = self.root.clone() else { return Ok(()) };
        let file = path.0.parts().fold(root.to_path_buf(), |file, part| file.join(part.as_ref()));
        let synced = tokio::task::spawn_blocking(move || {
            let dirs = file.ancestors().skip(1).take_while(|dir| dir.starts_with(&root));
            dirs.into_iter().try_for_each(|dir| std::fs::File::open(dir)?.sync_all())
        });
        let result = synced.await.unwrap_or_else(|lost| Err(io::Error::other(lost)));
        result.map_err(|error| {
            self.failed("sync", path, object_store::Error::Generic { store: "LocalFileSystem", source: error.into() })
        })
    }

    fn failed(&self, operation: &'static str, path: &ObjectPath, source: object_store::Error) -> Error {
        Error::Operation { operation, path: path.to_string(), url: self.url.clone(), source: Box::new(source) }
    }
}
