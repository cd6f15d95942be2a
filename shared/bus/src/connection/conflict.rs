//! Whether the broker refused to change something because somebody else was faster. Every compare-and-set and every create-only
//! publication is judged here: a conflict is an answer, and no fault that a pause would mend.

use std::{error::Error, time::Duration};

use async_nats::jetstream::{
    self, ErrorCode,
    context::{PublishError, PublishErrorKind},
    kv::{CreateError, CreateErrorKind, UpdateError, UpdateErrorKind},
};
use baton_contract::backoff::Backoff;
use tokio::time::sleep;

use crate::connection::entropy::entropy;

/// How often what others change meanwhile is read again.
pub(crate) const RACES: usize = 16;
/// The pauses after a change was beaten for the second time; the first retry comes at once.
const BEATEN: Backoff = Backoff::doubling(Duration::from_millis(4), Duration::from_millis(128));

/// What a compare-and-set came to: nothing if somebody else was faster.
pub(crate) fn unless_beaten<T, E: Error + 'static>(done: Result<T, E>) -> Result<Option<T>, E> {
    match done {
        Ok(done) => Ok(Some(done)),
        Err(error) if is_conflict(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Tries a compare-and-set again for as long as somebody else was faster, `races` times at most; then it is `contended`. An
/// attempt reads what there is, decides, and stores what it has decided; it returns nothing if it was beaten.
pub async fn until_unbeaten<T, E, F: Future<Output = Result<Option<T>, E>>>(
    races: usize,
    contended: impl FnOnce() -> E,
    attempt: impl Fn() -> F,
) -> Result<T, E> {
    for race in 0..races {
        breathe(race).await;
        if let Some(done) = attempt().await? {
            return Ok(done);
        }
    }
    Err(contended())
}

/// Lets others finish before a change that was beaten this many times is tried again: a change that is under way shows only
/// when all replicas have it.
pub(crate) async fn breathe(beaten: usize) {
    if let Some(retry) = beaten.checked_sub(2) {
        sleep(BEATEN.pause(u32::try_from(retry).unwrap_or(u32::MAX), entropy())).await;
    }
}

/// Whether a message that must be the first of its subject came too late: nothing if that is not known yet, for another one is
/// on its way there and may still not be stored.
pub(crate) fn came_second(error: &PublishError) -> Option<bool> {
    match code(error) {
        _ if error.kind() == PublishErrorKind::WrongLastSequence => Some(true),
        Some(code) if is_conflict_code(code) => None,
        _ => Some(false),
    }
}

/// Whether an error says that the present value is not the expected one. A stream of several replicas says so by other codes
/// where another change is under way (which the client library takes for faults).
pub(crate) fn is_conflict(error: &(dyn Error + 'static)) -> bool {
    chain(error).any(|error| {
        error.downcast_ref::<PublishError>().is_some_and(|error| error.kind() == PublishErrorKind::WrongLastSequence)
            || error.downcast_ref::<UpdateError>().is_some_and(|e| e.kind() == UpdateErrorKind::WrongLastRevision)
            || error.downcast_ref::<CreateError>().is_some_and(|e| e.kind() == CreateErrorKind::AlreadyExists)
    }) || code(error).is_some_and(is_conflict_code)
}

fn is_conflict_code(code: ErrorCode) -> bool {
    matches!(
        code,
        ErrorCode::STREAM_WRONG_LAST_SEQUENCE
            | ErrorCode::STREAM_WRONG_LAST_SEQUENCE_CONSTANT
            | ErrorCode::STREAM_DUPLICATE_MESSAGE_CONFLICT
    )
}

/// The code that JetStream gave an error.
pub(crate) fn code(error: &(dyn Error + 'static)) -> Option<ErrorCode> {
    chain(error).find_map(|error| error.downcast_ref::<jetstream::Error>()).map(jetstream::Error::error_code)
}

/// An error, and what caused it.
fn chain<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&error: &&'a (dyn Error + 'static)| error.source())
}

#[cfg(test)]
mod tests {
    use std::{
        future::ready,
        sync::atomic::{AtomicUsize, Ordering},
    };

    use serde_json::json;

    use super::*;

    /// What the client makes of an answer of the broker's.
    fn answered(code: u64) -> PublishError {
        let error = json!({ "code": 400, "err_code": code, "description": "wrong last sequence" });
        let error: jetstream::Error = serde_json::from_value(error).unwrap();
        let kind = match error.error_code() {
            ErrorCode::STREAM_WRONG_LAST_SEQUENCE => PublishErrorKind::WrongLastSequence,
            _ => PublishErrorKind::Other,
        };
        PublishError::with_source(kind, error)
    }

    #[test]
    fn every_code_for_a_faster_change_is_a_conflict_however_it_is_wrapped() {
        for code in [10071, 10164, 10158] {
            assert!(is_conflict(&answered(code)), "{code}");
            assert!(is_conflict(&UpdateError::from(answered(code))), "{code}");
            assert!(is_conflict(&CreateError::from(UpdateError::from(answered(code)))), "{code}");
        }
        assert!(is_conflict(&CreateError::new(CreateErrorKind::AlreadyExists)));
    }

    #[test]
    fn other_faults_are_none() {
        // A full stream, no leader, a disk that does not store.
        for code in [10077, 10008, 10047] {
            assert!(!is_conflict(&CreateError::from(UpdateError::from(answered(code)))), "{code}");
        }
        assert!(!is_conflict(&PublishError::new(PublishErrorKind::TimedOut)));
        let beaten = unless_beaten::<(), _>(Err(answered(10164))).unwrap();
        assert_eq!(beaten, None);
        assert!(unless_beaten::<(), _>(Err(answered(10077))).is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_is_tried_again_as_long_as_others_are_faster_and_no_longer() {
        for beaten in [0, 1, RACES - 1, RACES] {
            let tries = AtomicUsize::new(0);
            let attempt = || {
                let tried = tries.fetch_add(1, Ordering::Relaxed);
                ready(Ok((tried >= beaten).then_some(tried)))
            };
            let done = until_unbeaten(RACES, || "contended", attempt).await;
            assert_eq!(done, if beaten < RACES { Ok(beaten) } else { Err("contended") });
        }
        let tries = AtomicUsize::new(0);
        let attempt = || ready(Err::<Option<()>, _>(tries.fetch_add(1, Ordering::Relaxed)));
        assert_eq!(until_unbeaten(RACES, || usize::MAX, attempt).await, Err(0), "a fault is no conflict");
    }

    #[test]
    fn who_publishes_first_believes_only_what_is_stored() {
        assert_eq!(
            [10071, 10164, 10158, 10077].map(|code| came_second(&answered(code))),
            [Some(true), None, None, Some(false)]
        );
    }
}
