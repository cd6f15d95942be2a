//! Parts of objects.

use std::ops::Range;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream::BoxStream};
use object_store::{GetOptions, GetRange, ObjectStoreExt};

use super::{Error, ObjectPath, Store};

/// The first bytes of an object.
#[derive(Debug)]
pub(crate) struct Start {
    pub(crate) bytes: Bytes,
    /// Bytes of the whole object.
    pub(crate) size: u64,
    /// Which object it was, if the store tells.
    pub(crate) version: Option<String>,
}

impl Store {
    /// Whether reading an object as a whole costs no more than reading parts of it at once, since no network lies between.
    pub(crate) fn is_local(&self) -> bool {
        self.url.as_ref() == "memory:" || self.root().is_some()
    }

    /// Bytes of an object, or `None` if there is none.
    pub(crate) async fn size(&self, path: &ObjectPath) -> Result<Option<u64>, Error> {
        match self.inner.head(&path.0).await {
            Ok(meta) => Ok(Some(meta.size)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(source) => Err(self.failed("look for", path, source)),
        }
    }

    /// The first `most` bytes of an object, or all if it has fewer; `None` if there is none. One that has more than
    /// `max_bytes` altogether is refused before its body is read.
    pub(crate) async fn get_start(&self, path: &ObjectPath, most: u64, max_bytes: u64) -> Result<Option<Start>, Error> {
        let range = Some(GetRange::Bounded(0..most));
        let result = match self.inner.get_opts(&path.0, GetOptions { range, ..GetOptions::default() }).await {
            Ok(result) => result,
            Err(object_store::Error::NotFound { .. }) => return Ok(None),
            // An empty object has no first bytes to ask for.
            Err(source) => {
                return match self.size(path).await? {
                    Some(0) => Ok(Some(Start { bytes: Bytes::new(), size: 0, version: None })),
                    Some(_) => Err(self.failed("get", path, source)),
                    None => Ok(None),
                };
            }
        };
        // A local file's changes when its time of last use is set.
        let version = result.meta.e_tag.clone().filter(|_| self.root().is_none());
        let size = result.meta.size;
        if size > max_bytes {
            return Err(self.oversize(path, max_bytes, size));
        }
        match result.bytes().await {
            Ok(bytes) => Ok(Some(Start { bytes, size, version })),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(source) => Err(self.failed("read", path, source)),
        }
    }

    /// Some bytes of an object as they come; `None` if it is not there, or does not have them all.
    pub(crate) async fn stream_range(
        &self,
        path: &ObjectPath,
        range: Range<u64>,
    ) -> Result<Option<BoxStream<'static, Result<Bytes, Error>>>, Error> {
        let options = GetOptions { range: Some(GetRange::Bounded(range.clone())), ..GetOptions::default() };
        let result = match self.inner.get_opts(&path.0, options).await {
            Ok(result) if result.range == range => result,
            Ok(_) | Err(object_store::Error::NotFound { .. }) => return Ok(None),
            Err(source) => return Err(self.failed("get", path, source)),
        };
        let (store, path) = (self.clone(), path.clone());
        let bytes = result.into_stream().map_err(move |source| store.failed("read", &path, source));
        Ok(Some(bytes.boxed()))
    }

    /// Some bytes of an object of a known version; `None` if it is gone, or another's bytes have its name now.
    pub(crate) async fn get_range(
        &self,
        path: &ObjectPath,
        range: Range<u64>,
        version: Option<String>,
    ) -> Result<Option<Bytes>, Error> {
        let options = GetOptions { range: Some(GetRange::Bounded(range)), if_match: version, ..GetOptions::default() };
        let result = match self.inner.get_opts(&path.0, options).await {
            Ok(result) => result.bytes().await,
            Err(error) => Err(error),
        };
        match result {
            Ok(bytes) => Ok(Some(bytes)),
            Err(object_store::Error::NotFound { .. } | object_store::Error::Precondition { .. }) => Ok(None),
            Err(source) => Err(self.failed("get", path, source)),
        }
    }
}
