//! The broker's time, for deadlines: workers' clocks may be wrong, and they may differ.
//!
//! A deadline counts from when the broker stored the request, so it is compared with the broker's time. What a message
//! carries is the time when it was stored, not when it is taken. But the broker stamps every answer about a stream, so it is
//! asked for one, and from then on time goes on by this machine's steady clock, which nobody sets. As the answer is older
//! than its arrival, what is read here is never ahead of the broker: nothing expires before its time. After some seconds
//! it is asked again, because a steady clock stands still while a machine sleeps. Only jobs with a deadline pay for that.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, UNIX_EPOCH},
};

use baton_contract::{causes, subject::Stage};
use serde::Deserialize;
use tokio::time::Instant;

use crate::{Bus, Error};

/// How long an answer serves.
const SERVES: Duration = Duration::from_secs(5);

/// What the broker's clock shows. Cheap to clone; clones share what they have asked.
#[derive(Clone, Debug)]
pub struct Clock {
    bus: Bus,
    read: Arc<Mutex<Option<Reading>>>,
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
    /// What the broker's clock showed at `at`, or a little less; nothing if the reading is too old to tell.
    fn at(self, at: Instant) -> Option<u64> {
        let since = at.saturating_duration_since(self.at);
        (since < SERVES).then(|| self.broker_ms + since.as_millis() as u64)
    }
}

impl Bus {
    pub fn clock(&self) -> Clock {
        Clock { bus: self.clone(), read: Arc::default() }
    }
}

impl Clock {
    /// The broker's time in milliseconds since 1970.
    pub async fn now_ms(&self) -> Result<u64, Error> {
        let lock = || self.read.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(now) = lock().and_then(|reading| reading.at(Instant::now())) {
            return Ok(now);
        }
        let unreadable = |message: String| Error::Read { what: "the broker's clock".into(), message };
        let asked = format!("STREAM.INFO.{}", self.bus.layout.stage_stream(Stage::Ingest));
        let answer: Stamped =
            self.bus.jetstream.request(asked, &()).await.map_err(|error| unreadable(causes(&error)))?;
        let stamp = answer.ts.ok_or_else(|| unreadable("expected a time stamp; nats-server 2.10 is needed".into()))?;
        let time =
            humantime::parse_rfc3339(&stamp).map_err(|error| unreadable(format!("{stamp:?}: {}", causes(&error))))?;
        let broker_ms = time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
        *lock() = Some(Reading { broker_ms, at: Instant::now() });
        Ok(broker_ms)
    }

    /// How long it is until a time in milliseconds since 1970; zero if it has passed.
    pub(crate) async fn until(&self, time_ms: u64) -> Result<Duration, Error> {
        Ok(Duration::from_millis(time_ms.saturating_sub(self.now_ms().await?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reading_goes_on_steadily_and_serves_for_a_while() {
        let at = Instant::now();
        let reading = Reading { broker_ms: 1_000, at };
        assert_eq!(reading.at(at), Some(1_000));
        assert_eq!(reading.at(at + Duration::from_millis(1_500)), Some(2_500));
        assert_eq!(reading.at(at + SERVES), None);
    }
}
