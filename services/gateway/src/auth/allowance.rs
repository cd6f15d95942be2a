//! A key's number of requests a minute.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// A bucket that fills steadily and holds what a minute brings, but no more than ten seconds' worth if that is at least one.
#[derive(Debug)]
pub(super) struct Allowance {
    per_second: f64,
    most: f64,
    left: Mutex<(f64, Instant)>,
}

impl Allowance {
    pub(super) fn per_minute(requests: u32) -> Self {
        let per_second = f64::from(requests) / 60.0;
        let most = (per_second * 10.0).max(1.0);
        Self { per_second, most, left: Mutex::new((most, Instant::now())) }
    }

    /// Takes one; if none is left, says how long it takes until one is.
    pub(super) fn take(&self) -> Result<(), Duration> {
        let mut held = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let (left, at) = *held;
        let left = (left + (now - at).as_secs_f64() * self.per_second).min(self.most);
        if left < 1.0 {
            *held = (left, now);
            return Err(Duration::from_secs_f64((1.0 - left) / self.per_second));
        }
        *held = (left - 1.0, now);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn requests_come_at_the_rate_they_may() {
        let allowance = Allowance::per_minute(60);
        let taken = (0..100).filter(|_| allowance.take().is_ok()).count();
        assert_eq!(taken, 10, "ten seconds' worth at once");
        tokio::time::advance(Duration::from_millis(2_500)).await;
        let taken = (0..100).filter(|_| allowance.take().is_ok()).count();
        assert_eq!(taken, 2);
        let rare = Allowance::per_minute(1);
        assert_eq!(rare.take(), Ok(()));
        tokio::time::advance(Duration::from_secs(20)).await;
        assert_eq!(rare.take().unwrap_err().as_secs_f64().round(), 40.0);
    }
}
