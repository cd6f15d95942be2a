//! Back-pressure: a queue that is full, or a broker that can't store, takes nothing for a while. Nothing is lost by that: who
//! submits is told to try later, and who works keeps what it has done until there is room.

use std::time::Duration;

use async_nats::jetstream::{ErrorCode, context::PublishError, context::PublishErrorKind};
use baton_contract::{backoff::Backoff, causes};
use tokio::time::sleep;

use crate::{
    connection::{conflict, entropy::entropy},
    error::{Because, Error},
};

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
pub(crate) const PAUSES: Backoff = Backoff::doubling(Duration::from_millis(50), Duration::from_secs(3));

/// Tries something until the broker has room for it. `told` hears of every refusal.
pub async fn patiently<T, F: Future<Output = Result<T, Error>>>(
    mut attempt: impl FnMut() -> F,
    mut told: impl FnMut(&Error),
) -> Result<T, Error> {
    let mut pauses = PAUSES.pauses(entropy());
    loop {
        match attempt().await {
            Err(error @ Error::TryLater { .. }) => {
                told(&error);
                sleep(pauses.pause()).await;
            }
            done => return done,
        }
    }
}

/// What it means that the broker did not store a message.
pub(crate) fn refused(subject: String, error: &PublishError) -> Error {
    let message = causes(error);
    if is_too_large(error.kind(), conflict::code(error)) {
        return Error::TooLarge { subject, message };
    }
    match because(error.kind(), conflict::code(error)) {
        Some(because) => Error::TryLater { subject, message, because },
        None => Error::Publish { subject, message },
    }
}

fn is_too_large(kind: PublishErrorKind, code: Option<ErrorCode>) -> bool {
    let refused = [ErrorCode::STREAM_MESSAGE_EXCEEDS_MAXIMUM, ErrorCode::STREAM_HEADER_EXCEEDS_MAXIMUM];
    kind == PublishErrorKind::MaxPayloadExceeded || code.is_some_and(|code| refused.contains(&code))
}

/// Why a message was not stored, if that may pass.
fn because(kind: PublishErrorKind, code: Option<ErrorCode>) -> Option<Because> {
    match (kind, code) {
        (PublishErrorKind::TimedOut, _) => Some(Because::NoAnswer),
        (PublishErrorKind::StreamNotFound, _) => Some(Because::NobodyTakesIt),
        (_, Some(ErrorCode::STREAM_DUPLICATE_MESSAGE_CONFLICT | ErrorCode::STREAM_WRONG_LAST_SEQUENCE_CONSTANT)) => {
            Some(Because::OnItsWay)
        }
        (
            PublishErrorKind::Other,
            Some(
                ErrorCode::STREAM_STORE_FAILED
                | ErrorCode::INSUFFICIENT_RESOURCES
                | ErrorCode::STORAGE_RESOURCES_EXCEEDED
                | ErrorCode::MEMORY_RESOURCES_EXCEEDED
                | ErrorCode::STREAM_TOO_MANY_REQUESTS,
            ),
        ) => Some(Because::Full),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_pass_is_tried_again_and_what_stays_is_not() {
        use PublishErrorKind::{MaxPayloadExceeded, Other, StreamNotFound, TimedOut};
        for (kind, code, expected) in [
            (TimedOut, None, Some(Because::NoAnswer)),
            (StreamNotFound, None, Some(Because::NobodyTakesIt)),
            (Other, Some(ErrorCode::STREAM_STORE_FAILED), Some(Because::Full)),
            (Other, Some(ErrorCode::STREAM_DUPLICATE_MESSAGE_CONFLICT), Some(Because::OnItsWay)),
            (Other, Some(ErrorCode::STREAM_SEALED), None),
            (MaxPayloadExceeded, None, None),
        ] {
            assert_eq!(because(kind, code), expected, "{kind:?} {code:?}");
        }
        assert!(is_too_large(MaxPayloadExceeded, None));
        assert!(is_too_large(Other, Some(ErrorCode::STREAM_MESSAGE_EXCEEDS_MAXIMUM)));
        assert!(!is_too_large(Other, Some(ErrorCode::STREAM_STORE_FAILED)));
    }
}
