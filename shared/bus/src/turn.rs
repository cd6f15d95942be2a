//! Chores that one of many workers does now and then.

use std::time::Duration;

use async_nats::jetstream::kv;
use baton_contract::causes;

use crate::{Error, jobs::Jobs, unix_ms};

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
        let now = unix_ms();
        if let Some(entry) = &entry {
            let last = std::str::from_utf8(&entry.value).ok().and_then(|text| text.parse().ok()).unwrap_or(0u64);
            let waited = Duration::from_millis(now.saturating_sub(last));
            // A turn in the future was taken by a clock that was wrong.
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
