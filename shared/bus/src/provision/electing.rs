//! Waiting for a cluster that has just started, or has lost a node: until it has elected who decides, it does not answer or says
//! that it cannot; and of several that create the same stream, some may get no answer.

use std::time::Duration;

use async_nats::jetstream::{
    ErrorCode,
    context::{
        AccountError, AccountErrorKind, CreateKeyValueError, CreateKeyValueErrorKind, CreateStreamError,
        CreateStreamErrorKind,
    },
};
use baton_contract::{backoff::Backoff, causes};
use tokio::time::{Instant, sleep};

use crate::{connection::entropy::entropy, error::Error};

/// How long an election is waited for.
const PATIENCE: Duration = Duration::from_secs(45);
/// Those that began together do not try together.
const PAUSES: Backoff = Backoff::doubling(Duration::from_millis(200), LONGEST_PAUSE);
const LONGEST_PAUSE: Duration = Duration::from_secs(4);
/// What the broker answers while it cannot decide.
const UNAVAILABLE: usize = 503;

/// Tries something for as long as an election may take, while what it fails with `passes`.
pub async fn patiently<T, E: AsRef<dyn std::error::Error>, F: Future<Output = Result<T, E>>>(
    what: &str,
    mut attempt: impl FnMut() -> F,
    passes: impl Fn(&E) -> bool,
) -> Result<T, E> {
    let (began, mut pauses) = (Instant::now(), PAUSES.pauses(entropy()));
    loop {
        let error = match attempt().await {
            Err(error) if passes(&error) && began.elapsed() < PATIENCE => error,
            done => return done,
        };
        let left = PATIENCE.saturating_sub(began.elapsed());
        tracing::info!(error = causes(error.as_ref()), ?left, "{what}: the broker may be electing; trying again");
        sleep(pauses.pause()).await;
    }
}

/// What did not work.
#[derive(Debug)]
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

impl AsRef<dyn std::error::Error> for Failed {
    fn as_ref(&self) -> &(dyn std::error::Error + 'static) {
        &self.error
    }
}

/// The same for what tells itself whether it passes.
pub(crate) async fn once_elected<T, F: Future<Output = Result<T, Failed>>>(
    what: &str,
    attempt: impl FnMut() -> F,
) -> Result<T, Error> {
    patiently(what, attempt, |failed| failed.passes).await.map_err(|failed| failed.error)
}

/// Whether a stream that could not be created may be soon.
pub(crate) fn stream_passes(error: &CreateStreamError) -> bool {
    match error.kind() {
        CreateStreamErrorKind::TimedOut => true,
        CreateStreamErrorKind::JetStream(error) => error.code() == UNAVAILABLE,
        _ => false,
    }
}

/// Whether the broker may tell soon of an account of which it tells nothing now; without JetStream it never does.
pub(crate) fn account_passes(error: &AccountError) -> bool {
    match error.kind() {
        AccountErrorKind::TimedOut => true,
        AccountErrorKind::JetStream(error) => {
            let off = [ErrorCode::JETSTREAM_NOT_ENABLED, ErrorCode::JETSTREAM_NOT_ENABLED_FOR_ACCOUNT];
            error.code() == UNAVAILABLE && !off.contains(&error.error_code())
        }
        AccountErrorKind::JetStreamUnavailable | AccountErrorKind::Other => false,
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
        let done = once_elected("it", || {
            tries += 1;
            ready(if tries < 4 { Err(failed(true)) } else { Ok(tries) })
        });
        assert_eq!(done.await.unwrap(), 4);

        let began = Instant::now();
        assert!(once_elected("it", || ready(Err::<(), _>(failed(true)))).await.is_err());
        assert!((PATIENCE..PATIENCE + 2 * LONGEST_PAUSE).contains(&began.elapsed()), "{:?}", began.elapsed());

        let began = Instant::now();
        assert!(once_elected("it", || ready(Err::<(), _>(failed(false)))).await.is_err());
        assert!(began.elapsed().is_zero());
    }
}
