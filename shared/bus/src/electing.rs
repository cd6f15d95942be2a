//! Waiting for a cluster that has just started, or has lost a node: until it has elected who decides, it does not answer or says
//! that it cannot; and of several that create the same stream, some may get no answer.

use std::{
    hash::{BuildHasher, RandomState},
    time::Duration,
};

use async_nats::jetstream::context::{
    CreateKeyValueError, CreateKeyValueErrorKind, CreateStreamError, CreateStreamErrorKind,
};
use baton_contract::causes;
use tokio::time::{Instant, sleep};

use crate::Error;

/// How long an election is waited for.
const PATIENCE: Duration = Duration::from_secs(45);
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(4);
/// What the broker answers while it cannot decide.
const UNAVAILABLE: usize = 503;

/// What did not work.
pub(crate) struct Failed {
    pub(crate) error: Error,
    /// Whether it may work soon.
    pub(crate) passes: bool,
}

impl Failed {
    pub(crate) fn passing(error: Error) -> Self {
        Self { error, passes: true }
    }
}

/// Tries something for as long as an election may take.
pub(crate) async fn patiently<T, F: Future<Output = Result<T, Failed>>>(
    what: &str,
    mut attempt: impl FnMut() -> F,
) -> Result<T, Error> {
    let (began, mut pause) = (Instant::now(), FIRST_PAUSE);
    loop {
        let Failed { error, passes } = match attempt().await {
            Ok(done) => return Ok(done),
            Err(failed) => failed,
        };
        if !passes || began.elapsed() >= PATIENCE {
            return Err(error);
        }
        let left = PATIENCE.saturating_sub(began.elapsed());
        tracing::info!(error = causes(&error), ?left, "{what}: the broker may be electing; trying again");
        // Those that began together are not to try together.
        let share = RandomState::new().hash_one(what) % 1_000;
        sleep(pause.mul_f64(0.5 + share as f64 / 1_000.0)).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Whether a stream that could not be created may be soon.
pub(crate) fn stream_passes(error: &CreateStreamError) -> bool {
    match error.kind() {
        CreateStreamErrorKind::TimedOut => true,
        CreateStreamErrorKind::JetStream(error) => error.code() == UNAVAILABLE,
        _ => false,
    }
}

/// The same of a bucket.
pub(crate) fn bucket_passes(error: &CreateKeyValueError) -> bool {
    let below = std::error::Error::source(error).and_then(|source| source.downcast_ref());
    error.kind() == CreateKeyValueErrorKind::TimedOut || below.is_some_and(stream_passes)
}

#[cfg(test)]
mod tests {
    use std::future::ready;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_passes_is_tried_again_for_a_while_and_what_does_not_is_told_at_once() {
        let failed = |passes| Failed { error: Error::Died, passes };
        let mut tries = 0;
        let done = patiently("it", || {
            tries += 1;
            ready(if tries < 4 { Err(failed(true)) } else { Ok(tries) })
        });
        assert_eq!(done.await.unwrap(), 4);

        let began = Instant::now();
        assert!(patiently("it", || ready(Err::<(), _>(failed(true)))).await.is_err());
        assert!((PATIENCE..PATIENCE + 2 * LONGEST_PAUSE).contains(&began.elapsed()), "{:?}", began.elapsed());

        let began = Instant::now();
        assert!(patiently("it", || ready(Err::<(), _>(failed(false)))).await.is_err());
        assert!(began.elapsed().is_zero());
    }
}
