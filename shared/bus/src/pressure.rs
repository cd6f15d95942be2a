//! Back-pressure: a queue that is full, or a broker that can't store, takes nothing for a while. Nothing is lost by that: who
//! submits is told to try later, and who works keeps what it has done until there is room.

use std::{error::Error as _, time::Duration};

use async_nats::jetstream::{self, ErrorCode, context::PublishError, context::PublishErrorKind};
use baton_contract::causes;
use tokio::time::sleep;

use crate::Error;

/// The most that the queue of each stage holds; beyond it the broker refuses what is new.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backlog {
    /// Messages of each stage.
    pub messages: u64,
    /// Bytes of each stage, which the broker sets aside; without it its disk is the limit.
    pub bytes: Option<u64>,
    /// Messages of each tenant, of each lane: requests, and of each model admitted jobs that wait. Without it the queue's own
    /// limits count.
    pub of_tenant: Option<u64>,
}

impl Default for Backlog {
    fn default() -> Self {
        Self { messages: 1_000_000, bytes: None, of_tenant: None }
    }
}

/// The pauses between tries: short ones first, for a queue that is full moves.
pub struct Pauses(Duration);

impl Default for Pauses {
    fn default() -> Self {
        Self(Duration::from_millis(50))
    }
}

impl Iterator for Pauses {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let pause = self.0;
        self.0 = (pause * 2).min(Duration::from_secs(3));
        Some(pause)
    }
}

/// Tries something until the broker has room for it. `told` hears of every refusal.
pub async fn patiently<T, F: Future<Output = Result<T, Error>>>(
    mut attempt: impl FnMut() -> F,
    mut told: impl FnMut(&Error),
) -> Result<T, Error> {
    let mut pauses = Pauses::default();
    loop {
        let pause = pauses.next().unwrap_or_default();
        match attempt().await {
            Err(error @ Error::TryLater { .. }) => {
                told(&error);
                sleep(pause).await;
            }
            done => return done,
        }
    }
}

/// What it means that the broker did not store a message.
pub(crate) fn refused(subject: String, error: &PublishError) -> Error {
    let message = causes(error);
    let code =
        error.source().and_then(|source| source.downcast_ref::<jetstream::Error>()).map(|error| error.error_code());
    let full = match error.kind() {
        // A full disk shows so.
        PublishErrorKind::TimedOut => true,
        PublishErrorKind::Other => matches!(
            code,
            Some(
                ErrorCode::STREAM_STORE_FAILED
                    | ErrorCode::INSUFFICIENT_RESOURCES
                    | ErrorCode::STORAGE_RESOURCES_EXCEEDED
                    | ErrorCode::MEMORY_RESOURCES_EXCEEDED
                    | ErrorCode::STREAM_TOO_MANY_REQUESTS
            )
        ),
        _ => false,
    };
    let large =
        matches!(code, Some(ErrorCode::STREAM_MESSAGE_EXCEEDS_MAXIMUM | ErrorCode::STREAM_HEADER_EXCEEDS_MAXIMUM));
    if large || error.kind() == PublishErrorKind::MaxPayloadExceeded {
        return Error::TooLarge { subject, message };
    }
    if full { Error::TryLater { subject, message } } else { Error::Publish { subject, message } }
}
