//! The broker's time, for deadlines: workers' clocks may be wrong, and they may differ.
//!
//! A deadline counts from when the broker stored the request, so it is compared with the broker's time. What a message
//! carries is the time when it was stored, not when it is taken. But the broker stamps every answer about a stream, so it is
//! asked for one, and from then on time goes on by this machine's steady clock, which nobody sets. As the answer is older
//! than its arrival, what is read here is never ahead of the broker: nothing expires before its time. After some seconds
//! it is asked again, because a steady clock stands still while a machine sleeps. Only jobs with a deadline pay for that.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use async_nats::jetstream;
use baton_contract::{
    causes,
    subject::{Layout, Stage, broker},
};
use serde::Deserialize;
use tokio::time::Instant;

use crate::error::Error;

/// How long an answer serves.
const SERVES: Duration = Duration::from_secs(5);
/// How long one serves to tell how long something took, while another is on its way.
const TELLS: Duration = Duration::from_secs(60);

/// What the broker's clock shows. Cheap to clone; all clocks of a connection share what they have asked.
#[derive(Clone, Debug)]
pub struct Clock(Arc<Shared>);

/// What a connection knows of the broker's clock.
#[derive(Debug)]
struct Shared {
    jetstream: jetstream::Context,
    /// What the broker is asked for, because it stamps the answer.
    asked: String,
    read: Mutex<Option<Reading>>,
    asking: AtomicBool,
}

#[derive(Clone, Copy, Debug)]
struct Reading {
    /// Milliseconds since 1970, at `at` or some time before.
    broker_ms: u64,
    at: Instant,
}

/// The part of an answer about a stream that tells when it was given.
#[derive(Deserialize)]
struct Stamped {
    ts: Option<String>,
}

impl Reading {
    /// What the broker's clock showed at `at`, or a little less; nothing if the reading is older than `most`.
    fn at(self, at: Instant, most: Duration) -> Option<u64> {
        let since = at.saturating_duration_since(self.at);
        (since < most).then(|| self.broker_ms + since.as_millis() as u64)
    }
}

impl Clock {
    pub(crate) fn new(jetstream: jetstream::Context, layout: &Layout) -> Self {
        let asked = broker::stream_info(&layout.stage_stream(Stage::Ingest));
        Self(Arc::new(Shared { jetstream, asked, read: Mutex::default(), asking: AtomicBool::default() }))
    }

    /// The broker's time in milliseconds since 1970.
    pub async fn now_ms(&self) -> Result<u64, Error> {
        match self.last(SERVES) {
            Some(now) => Ok(now),
            None => self.ask().await,
        }
    }

    /// The same for how long something took, which no job waits for: from an answer that is up to a minute old, while the next
    /// one is on its way. Nothing if the broker can't be asked.
    pub async fn about_now_ms(&self) -> Option<u64> {
        if self.last(SERVES).is_none()
            && let Some(about) = self.last(TELLS)
        {
            if !self.0.asking.swap(true, Ordering::Relaxed) {
                let clock = self.clone();
                tokio::spawn(async move {
                    if let Err(error) = clock.ask().await {
                        tracing::debug!(error = %causes(&error), "the broker's clock could not be read");
                    }
                    clock.0.asking.store(false, Ordering::Relaxed);
                });
            }
            return Some(about);
        }
        self.now_ms()
            .await
            .inspect_err(|error| tracing::debug!(error = %causes(error), "the broker's clock could not be read"))
            .ok()
    }

    /// How long it is since a time of the broker's; zero if that is to come or can't be told.
    pub async fn about_since(&self, time_ms: u64) -> Duration {
        let now = self.about_now_ms().await.unwrap_or_default();
        Duration::from_millis(now.saturating_sub(time_ms))
    }

    fn last(&self, most: Duration) -> Option<u64> {
        let read = self.0.read.lock().unwrap_or_else(PoisonError::into_inner);
        read.and_then(|reading| reading.at(Instant::now(), most))
    }

    async fn ask(&self) -> Result<u64, Error> {
        let unreadable = |message: String| Error::Read { what: "the broker's clock".into(), message };
        let answer = self.0.jetstream.request(self.0.asked.clone(), &()).await;
        let answer: Stamped = answer.map_err(|error| unreadable(causes(&error)))?;
        let stamp = answer.ts.ok_or_else(|| unreadable("expected a time stamp; nats-server 2.10 is needed".into()))?;
        let time =
            humantime::parse_rfc3339(&stamp).map_err(|error| unreadable(format!("{stamp:?}: {}", causes(&error))))?;
        let broker_ms = time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
        *self.0.read.lock().unwrap_or_else(PoisonError::into_inner) = Some(Reading { broker_ms, at: Instant::now() });
        Ok(broker_ms)
    }

    /// How long it is until a time in milliseconds since 1970; zero if it has passed.
    pub(crate) async fn until(&self, time_ms: u64) -> Result<Duration, Error> {
        Ok(Duration::from_millis(time_ms.saturating_sub(self.now_ms().await?)))
    }
}

/// This machine's time in milliseconds since 1970.
pub fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reading_goes_on_steadily_and_serves_for_a_while() {
        let at = Instant::now();
        let reading = Reading { broker_ms: 1_000, at };
        assert_eq!(reading.at(at, SERVES), Some(1_000));
        assert_eq!(reading.at(at + Duration::from_millis(1_500), SERVES), Some(2_500));
        assert_eq!(reading.at(at + SERVES, SERVES), None);
        assert_eq!(reading.at(at + SERVES, TELLS), Some(6_000));
    }
}
