//! Chores that one of many workers does now and then.

use std::time::Duration;

use async_nats::jetstream::kv;
use baton_contract::causes;

use crate::{Error, stage::jobs::Jobs};

/// Whose turn it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// The caller's.
    Mine,
    /// Nobody's before this long.
    In(Duration),
}

impl Jobs {
    /// Takes the turn at `chore` if the last was `every` ago; of many who ask at once, one gets it. Who dies in its turn
    /// leaves it to the next one. `chore` has no dot, which every key of a job has.
    pub async fn turn(&self, chore: &str, every: Duration) -> Result<Turn, Error> {
        let unreadable = |message| Error::Read { what: format!("the turn of {chore}"), message };
        let entry = self.bucket.entry(chore).await.map_err(|error| unreadable(causes(&error)))?;
        let entry = entry.filter(|entry| entry.operation == kv::Operation::Put);
        // When the last turn was taken is the broker's word, too, so that no worker's clock counts.
        let now = self.bus.clock().now_ms().await?;
        if let Some(entry) = &entry {
            let last = (entry.created.unix_timestamp_nanos() / 1_000_000) as u64;
            let waited = Duration::from_millis(now.saturating_sub(last));
            // The broker may have another clock than it had.
            if waited < every && last <= now + every.as_millis() as u64 {
                return Ok(Turn::In(every - waited));
            }
        }
        let revision = entry.map(|entry| entry.revision);
        let taken = self.put(chore, now.to_string().into_bytes(), revision).await;
        let failed = |message| Error::Publish { subject: format!("the turn of {chore}"), message };
        Ok(if taken.map_err(failed)? { Turn::Mine } else { Turn::In(every) })
    }
}
