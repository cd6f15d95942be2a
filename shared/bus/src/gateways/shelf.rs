//! Things that are kept for tenants: JSON values of one kind under `<tenant>.<id>`, changed by compare-and-set.

use std::{collections::HashMap, marker::PhantomData, time::Duration};

use async_nats::jetstream::kv;
use baton_contract::{JobId, Name, causes, header, subject::broker};
use futures::TryStreamExt;
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    Bus, Error,
    connection::{clock::Clock, conflict},
    inspect::scan::{self, Scan},
};

/// How often a value that others change meanwhile is read again.
const RACES: usize = 64;

/// All values of one kind. Cheap to clone.
#[derive(Debug)]
pub struct Shelf<T> {
    bus: Bus,
    bucket: kv::Store,
    holds: PhantomData<fn() -> T>,
}

impl<T> Clone for Shelf<T> {
    fn clone(&self) -> Self {
        Self { bus: self.bus.clone(), bucket: self.bucket.clone(), holds: PhantomData }
    }
}

/// A value, with the revision that a change must name.
#[derive(Clone, Debug)]
pub struct Kept<T> {
    /// The value.
    pub value: T,
    revision: u64,
}

/// How a kind of things is kept.
pub(crate) struct Keeping {
    pub(crate) bucket: String,
    pub(crate) description: &'static str,
    /// What nobody has changed for this long is forgotten; zero keeps it.
    pub(crate) max_age: Duration,
    pub(crate) replicas: usize,
}

impl Keeping {
    pub(crate) fn config(self) -> kv::Config {
        let Self { bucket, description, max_age, replicas } = self;
        let description = description.to_owned();
        kv::Config { bucket, description, history: 1, max_age, num_replicas: replicas, ..Default::default() }
    }
}

impl<T: Serialize + DeserializeOwned> Shelf<T> {
    /// Creates what it needs.
    pub(crate) async fn open(bus: &Bus, keeping: Keeping) -> Result<Self, Error> {
        let bucket = bus.bucket(keeping.config()).await?;
        Ok(Self { bus: bus.clone(), bucket, holds: PhantomData })
    }

    /// The clock by which times of these things are told.
    pub(crate) fn clock(&self) -> Clock {
        self.bus.clock()
    }

    /// The value under an id.
    pub async fn get(&self, tenant: &Name, id: &JobId) -> Result<Option<Kept<T>>, Error> {
        let key = self.bus.layout.job_key(tenant, id);
        let entry = self.bucket.entry(&key).await.map_err(|error| self.unreadable(&key, error))?;
        let Some(entry) = entry.filter(|entry| entry.operation == kv::Operation::Put) else { return Ok(None) };
        let value = serde_json::from_slice(&entry.value).map_err(|error| self.unreadable(&key, error))?;
        Ok(Some(Kept { value, revision: entry.revision }))
    }

    /// Keeps a value under an id, whatever was there.
    pub async fn put(&self, tenant: &Name, id: &JobId, value: &T) -> Result<(), Error> {
        let key = self.bus.layout.job_key(tenant, id);
        let put = self.bucket.put(&key, self.bytes(&key, value)?.into()).await;
        put.map(drop).map_err(|error| self.unstored(&key, error))
    }

    /// Changes a value by compare-and-set; `change` is asked again when others were faster, and says `None` to leave it as it
    /// is. Returns the value as it then is, or nothing if there is none.
    pub async fn change(
        &self,
        tenant: &Name,
        id: &JobId,
        change: impl Fn(&T) -> Option<T>,
    ) -> Result<Option<T>, Error> {
        let key = self.bus.layout.job_key(tenant, id);
        conflict::until_unbeaten(
            RACES,
            || Error::contended(&key),
            || async {
                let Some(kept) = self.get(tenant, id).await? else { return Ok(Some(None)) };
                let Some(next) = change(&kept.value) else { return Ok(Some(Some(kept.value))) };
                let put = self.bucket.update(&key, self.bytes(&key, &next)?.into(), kept.revision).await;
                let put = conflict::unless_beaten(put).map_err(|error| self.unstored(&key, error))?;
                Ok(put.map(|_| Some(next)))
            },
        )
        .await
    }

    /// Forgets a value, and leaves no marker that it was there. One that is not there is no error.
    pub async fn remove(&self, tenant: &Name, id: &JobId) -> Result<(), Error> {
        let key = self.bus.layout.job_key(tenant, id);
        let purged = self.bucket.stream.purge().filter(format!("{}{key}", self.bucket.prefix)).await;
        purged.map(drop).map_err(|error| self.unstored(&key, error))
    }

    /// All values of a tenant, in no particular order.
    pub async fn of_tenant(&self, tenant: &Name) -> Result<Vec<T>, Error> {
        Ok(self.matching(&format!("{tenant}.*"), |_| true).await?.into_values().collect())
    }

    /// All values, with their tenants and ids, in no particular order.
    pub async fn all(&self) -> Result<Vec<(Name, JobId, T)>, Error> {
        self.select(|_| true).await
    }

    /// Those of them that are `wanted`; no other is held in memory.
    pub async fn select(&self, wanted: impl Fn(&T) -> bool) -> Result<Vec<(Name, JobId, T)>, Error> {
        let named = |(key, value): (String, T)| {
            let (tenant, id) = key.split_once('.')?;
            Some((Name::new(tenant).ok()?, JobId::new(id).ok()?, value))
        };
        Ok(self.matching("*.*", wanted).await?.into_iter().filter_map(named).collect())
    }

    async fn matching(&self, keys: &str, wanted: impl Fn(&T) -> bool) -> Result<HashMap<String, T>, Error> {
        let prefix = &self.bucket.prefix;
        let scan = Scan::all(broker::bucket_stream(&self.bucket.name));
        let mut messages = scan::messages_of(&self.bus, scan, format!("{prefix}{keys}")).await?;
        let mut found = HashMap::new();
        while let Some(message) = messages.try_next().await? {
            let Some(key) = message.subject.as_str().strip_prefix(prefix.as_str()) else { continue };
            // One that changes meanwhile comes again, the latest last.
            if message.headers.get(header::KEY_OPERATION).is_some() {
                found.remove(key);
                continue;
            }
            let value = serde_json::from_slice(&message.payload).map_err(|error| self.unreadable(key, error))?;
            match wanted(&value) {
                true => found.insert(key.to_owned(), value),
                false => found.remove(key),
            };
        }
        Ok(found)
    }

    fn bytes(&self, key: &str, value: &T) -> Result<Vec<u8>, Error> {
        serde_json::to_vec(value).map_err(|error| self.unstored(key, error))
    }

    fn unreadable(&self, key: &str, error: impl std::error::Error + 'static) -> Error {
        Error::Read { what: format!("{key} in {}", self.bucket.name), message: causes(&error) }
    }

    fn unstored(&self, key: &str, error: impl std::error::Error + 'static) -> Error {
        Error::Publish { subject: format!("{key} in {}", self.bucket.name), message: causes(&error) }
    }
}
