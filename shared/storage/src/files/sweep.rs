//! What nobody names any more.

use std::{
    collections::{HashMap, HashSet},
    time::{Duration, SystemTime},
};

use futures::{StreamExt, TryStreamExt, stream};

use super::{AT_ONCE, Blob, Error, Files};
use crate::store::{FILES, ObjectPath};

/// What a sweep did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Blobs that were found.
    pub blobs: u64,
    /// Parts that were removed.
    pub removed: u64,
}

/// The parts of a blob that a listing found.
struct Found {
    parts: Vec<u64>,
    /// When the last of them was put.
    newest: SystemTime,
}

impl Files {
    /// Removes the blobs that `named` does not have and that nobody has added to for `grace`. `named` is asked for after
    /// the store was listed, so that a file whose upload ends meanwhile is among them.
    pub async fn sweep<E: From<Error>>(
        &self,
        grace: Duration,
        now: SystemTime,
        named: impl Future<Output = Result<HashSet<Blob>, E>>,
    ) -> Result<Swept, E> {
        let found = self.census().await?;
        let named = named.await?;
        let mut swept = Swept { blobs: found.len() as u64, removed: 0 };
        let idle = |found: &Found| now.duration_since(found.newest).unwrap_or_default() >= grace;
        let orphans = found.into_iter().filter(|(blob, found)| !named.contains(blob) && idle(found));
        let paths = orphans.flat_map(|(blob, found)| found.parts.into_iter().map(move |part| blob.part(part)));
        let delete = |path: ObjectPath| async move { self.store.delete(&path).await.map_err(Error::from) };
        let mut deletions = stream::iter(paths).map(delete).buffer_unordered(AT_ONCE);
        while deletions.try_next().await?.is_some() {
            swept.removed += 1;
        }
        Ok(swept)
    }

    async fn census(&self) -> Result<HashMap<Blob, Found>, Error> {
        let mut blobs: HashMap<Blob, Found> = HashMap::new();
        let mut listed = self.store.list(FILES);
        while let Some(object) = listed.try_next().await? {
            // What does not look like ours stays.
            let Some((blob, part)) = parse(&object.path) else { continue };
            let found = blobs.entry(blob).or_insert(Found { parts: Vec::new(), newest: object.modified });
            found.parts.push(part);
            found.newest = found.newest.max(object.modified);
        }
        Ok(blobs)
    }
}

fn parse(path: &ObjectPath) -> Option<(Blob, u64)> {
    let text = path.to_string();
    let mut levels = text.rsplit('/');
    let (part, blob) = (levels.next()?.parse().ok()?, levels.next()?.parse::<Blob>().ok()?);
    (blob.part(part) == *path).then_some((blob, part))
}
