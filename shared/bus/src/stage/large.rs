//! Results that are too large for a message of the broker's. The whole result lies in JetStream's object store; the message, which
//! stays the one fence, lacks its large parts and names the object.
//!
//! An object is put before its message is published, under a name of its own, so that of two workers each may put one; the
//! one whose message comes too late removes its own. What a crash between the two leaves is removed by age.

use std::time::Duration;

use async_nats::jetstream::{
    self,
    object_store::{ObjectMetadata, ObjectStore},
    stream::{Config, DiscardPolicy},
};
use baton_contract::{
    JobId, Name, causes, envelope,
    outcome::{Outcome, Part, Status, StoredResult},
    subject::Layout,
};
use tokio::{io::AsyncReadExt, time::timeout};

use crate::{Because, Bus, Error, HeaderMap, provision::wanted::Wanted};

/// The largest result. Who reads one holds it in memory, and so does a batch's line.
const MAX_RESULT_BYTES: usize = 4 * envelope::MAX_BYTES;
/// Bytes of an object's parts, which are messages.
const PART_BYTES: usize = 128 << 10;
/// A character takes up to six bytes in JSON; and the other fields take some.
const TEXT_SHARE: usize = 8;
/// How long a whole result may take to come.
const PATIENCE: Duration = Duration::from_secs(60);

/// A result as it is published.
pub(crate) struct Packed {
    pub(crate) payload: Vec<u8>,
    pub(crate) status: Status,
    /// The object with the whole of it, if it is not all in the payload.
    object: Option<String>,
}

/// How the object store keeps results, by its own rules.
pub(crate) fn stream(layout: &Layout, max_age: Duration, replicas: usize) -> Config {
    Config {
        name: layout.large_stream(),
        description: Some("results that are too large for a message".into()),
        subjects: layout.large_subjects(),
        max_age,
        num_replicas: replicas,
        discard: DiscardPolicy::New,
        allow_rollup: true,
        allow_direct: true,
        ..Default::default()
    }
}

impl Bus {
    /// Makes a message of a result; puts what no message with these headers holds.
    pub(crate) async fn pack(&self, outcome: &Outcome, headers: &HeaderMap) -> Result<Packed, Error> {
        let subject = self.layout.result(&outcome.tenant, &outcome.id);
        let failed = |error: serde_json::Error| Error::Publish { subject: subject.clone(), message: causes(&error) };
        let whole = serde_json::to_vec(outcome).map_err(failed)?;
        let (room, bytes) = (self.payload_room(headers), whole.len());
        if bytes <= room {
            return Ok(Packed { payload: whole, status: outcome.status, object: None });
        }
        if bytes > MAX_RESULT_BYTES {
            tracing::warn!(bytes, most = MAX_RESULT_BYTES, job = %outcome.id, "a result is too large and was left out");
            let mut cut = outcome.too_large(bytes, MAX_RESULT_BYTES, room / TEXT_SHARE);
            let mut payload = serde_json::to_vec(&cut).map_err(failed)?;
            if payload.len() > room {
                cut.leave_out(Part::Metadata);
                payload = serde_json::to_vec(&cut).map_err(failed)?;
            }
            return Ok(Packed { payload, status: cut.status, object: None });
        }
        let stored = self.put_result(outcome, &whole).await?;
        drop(whole);
        let object = Some(stored.name.clone());
        let mut told = Outcome { stored: Some(stored), ..outcome.clone() };
        for part in Part::ALL {
            told.leave_out(part);
            told.stored.iter_mut().for_each(|stored| stored.left_out.push(part));
            let payload = serde_json::to_vec(&told).map_err(failed)?;
            if payload.len() <= room {
                return Ok(Packed { payload, status: outcome.status, object });
            }
        }
        let message = format!("a result without its large parts has more than the {room} bytes there is room for");
        Err(Error::TooLarge { subject, message })
    }

    /// Removes what a message that came too late names.
    pub(crate) async fn unpack(&self, packed: &Packed) {
        let Some(name) = &packed.object else { return };
        let removed = match self.large_results().await {
            Ok(bucket) => bucket.delete(name).await.map_err(|error| causes(&error)),
            Err(error) => Err(causes(&error)),
        };
        if let Err(error) = removed {
            tracing::debug!(error, name, "a large result that does not count was not removed; it expires");
        }
    }

    /// The whole of a result that a message tells.
    pub(crate) async fn whole(&self, told: Outcome) -> Result<Outcome, Error> {
        let Some(stored) = &told.stored else { return Ok(told) };
        let unreadable =
            |message: String| Error::Read { what: format!("the large result of job {}", told.id), message };
        // A message may name anything.
        if stored.bucket != self.layout.large_bucket() || !stored.name.starts_with(&prefix(&told.tenant, &told.id)) {
            return Err(unreadable(format!(
                "its message names {}/{}, which is none of the job's",
                stored.bucket, stored.name
            )));
        }
        let reading = async {
            let bucket = self.large_results().await?;
            let mut object = bucket.get(&stored.name).await.map_err(|error| unreadable(causes(&error)))?;
            let bytes = object.info().size;
            if bytes > MAX_RESULT_BYTES {
                return Err(unreadable(format!("expected at most {MAX_RESULT_BYTES} bytes, found {bytes}")));
            }
            let mut read = vec![0; bytes];
            object.read_exact(&mut read).await.map_err(|error| unreadable(causes(&error)))?;
            // The digest is compared at the end.
            object.read(&mut [0]).await.map_err(|error| unreadable(causes(&error)))?;
            Ok(read)
        };
        let read = timeout(PATIENCE, reading).await;
        let read = read.map_err(|_| unreadable(format!("it did not come within {PATIENCE:?}")))??;
        let whole: Outcome = serde_json::from_slice(&read).map_err(|error| unreadable(causes(&error)))?;
        let same = |whole: &Outcome| {
            (&whole.tenant, &whole.id, &whole.request_digest) == (&told.tenant, &told.id, &told.request_digest)
        };
        if same(&whole) { Ok(whole) } else { Err(unreadable("its object is another job's".into())) }
    }

    async fn put_result(&self, outcome: &Outcome, mut whole: &[u8]) -> Result<StoredResult, Error> {
        let bucket = self.large_results().await?;
        let name = format!("{}{}", prefix(&outcome.tenant, &outcome.id), self.unique());
        let chunk_size = PART_BYTES.min(self.payload_room(&HeaderMap::new()));
        let object = ObjectMetadata { name: name.clone(), chunk_size: Some(chunk_size), ..Default::default() };
        // The broker's room is what it may lack.
        let put = bucket.put(object, &mut whole).await.map_err(|error| Error::TryLater {
            subject: format!("object {name} in {}", self.layout.large_bucket()),
            message: causes(&error),
            because: Because::NoAnswer,
        })?;
        tracing::info!(job = %outcome.id, bytes = put.size, "a result is too large for a message and was put as an object");
        Ok(StoredResult {
            bucket: self.layout.large_bucket(),
            name,
            bytes: put.size as u64,
            digest: put.digest.unwrap_or_default(),
            left_out: Vec::new(),
        })
    }

    /// The bucket. One that is missing, as in a pipeline of an earlier release, is made for as long as results are kept.
    async fn large_results(&self) -> Result<ObjectStore, Error> {
        let name = self.layout.large_bucket();
        if let Ok(bucket) = self.jetstream.get_object_store(&name).await {
            return Ok(bucket);
        }
        let refused = |message: String| Error::TryLater {
            subject: format!("bucket {name}"),
            message,
            because: Because::NoAnswer,
        };
        let results = self.jetstream.get_stream(self.layout.result_stream()).await;
        let results = results.map_err(|error| refused(causes(&error)))?;
        let jetstream::stream::Config { max_age, num_replicas, .. } = results.cached_info().config.clone();
        let config = stream(&self.layout, max_age, num_replicas);
        self.create_missing(&Wanted::stream(config)).await.map_err(|error| refused(causes(&error)))?;
        self.jetstream.get_object_store(&name).await.map_err(|error| refused(causes(&error)))
    }

    /// What nobody else has for a name.
    fn unique(&self) -> String {
        let inbox = self.client.new_inbox();
        inbox.rsplit('.').next().unwrap_or_default().to_owned()
    }
}

/// What the names of a job's objects begin with.
fn prefix(tenant: &Name, job: &JobId) -> String {
    format!("{tenant}/{job}/")
}
