//! A duty that one of many workers has for as long as it lives. Who has it says so again and again; when nothing is heard any
//! more, another takes it over. Each counts by its own steady clock, so no two clocks are compared.
//!
//! Who was stopped for a while may believe for a moment that the duty is still its own, so two at once must do no harm.

use std::time::Duration;

use async_nats::jetstream::kv;
use baton_contract::causes;
use tokio::time::Instant;

use crate::{Error, connection::conflict, stage::jobs::Jobs};

/// How often who has the duty says so.
const RENEW: Duration = Duration::from_secs(1);
/// After so long without a word it is free.
const EXPIRES: Duration = Duration::from_secs(3);

/// A worker's view of a duty.
pub struct Lease {
    bucket: kv::Store,
    key: &'static str,
    state: State,
}

#[derive(Clone, Copy)]
enum State {
    Unknown,
    /// Another's, whose last word has this revision and was first seen then.
    Watched {
        revision: u64,
        since: Instant,
    },
    Held {
        revision: u64,
        renewed: Instant,
    },
}

impl Jobs {
    /// The duty under a `key` without a dot, which every key of a job has.
    pub fn lease(&self, key: &'static str) -> Lease {
        Lease { bucket: self.bucket.clone(), key, state: State::Unknown }
    }
}

impl Lease {
    /// Whether the duty is the caller's, which takes it if it is free. To be asked at least once a second.
    pub async fn hold(&mut self) -> Result<bool, Error> {
        match self.state {
            State::Held { renewed, .. } if renewed.elapsed() < RENEW => Ok(true),
            State::Held { revision, .. } => self.take(Some(revision)).await,
            State::Unknown | State::Watched { .. } => self.look().await,
        }
    }

    async fn look(&mut self) -> Result<bool, Error> {
        let entry = self.bucket.entry(self.key).await.map_err(|error| self.failed(error))?;
        let Some(entry) = entry.filter(|entry| entry.operation == kv::Operation::Put) else {
            return self.take(None).await;
        };
        match self.state {
            State::Watched { revision, since } if revision == entry.revision => {
                if since.elapsed() < EXPIRES {
                    Ok(false)
                } else {
                    self.take(Some(revision)).await
                }
            }
            _ => {
                self.state = State::Watched { revision: entry.revision, since: Instant::now() };
                Ok(false)
            }
        }
    }

    async fn take(&mut self, revision: Option<u64>) -> Result<bool, Error> {
        let word = "held".into();
        let taken = match revision {
            Some(revision) => {
                let taken = self.bucket.update(self.key, word, revision).await;
                conflict::unless_beaten(taken).map_err(|error| self.failed(error))?
            }
            None => {
                let taken = self.bucket.create(self.key, word).await;
                conflict::unless_beaten(taken).map_err(|error| self.failed(error))?
            }
        };
        self.state = match taken {
            Some(revision) => State::Held { revision, renewed: Instant::now() },
            None => State::Unknown,
        };
        Ok(taken.is_some())
    }

    /// Leaves the duty to others at once, if it is the caller's.
    pub async fn release(self) {
        if let State::Held { revision, .. } = self.state
            && let Err(error) = self.bucket.delete_expect_revision(self.key, Some(revision)).await
        {
            tracing::debug!(error = %causes(&error), key = self.key, "a duty was not given back, and is free after a while");
        }
    }

    fn failed(&self, error: impl std::error::Error + 'static) -> Error {
        Error::Read { what: format!("who has the duty {}", self.key), message: causes(&error) }
    }
}
