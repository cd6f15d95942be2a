//! How many bytes of requests and answers are in memory at a time, over all connections: bodies as they come, results that
//! are being sent, parts of files.
//!
//! What finds no room waits for some seconds and is refused then, so a gateway's memory does not depend on how many clients
//! stop in the middle of something.

use std::{sync::Arc, time::Duration};

use baton_openai::ApiError;
use bytes::Bytes;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

/// How long one waits for room.
const WAIT: Duration = Duration::from_secs(5);
/// What room is counted in.
const UNIT: u64 = 1 << 10;
/// When one that found no room may come again, in seconds.
const AGAIN: u32 = 5;

/// The room that there is. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Budget {
    room: Arc<Semaphore>,
    units: u32,
}

/// Room that is taken as long as this lives.
#[derive(Debug)]
pub(crate) struct Room {
    budget: Budget,
    permit: Option<OwnedSemaphorePermit>,
}

/// Marks an answer that has taken its room.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Housed;

/// Bytes that go with the room they take.
struct Roomed {
    bytes: Bytes,
    _room: Arc<Room>,
}

impl AsRef<[u8]> for Roomed {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Budget {
    pub(crate) fn new(bytes: u64) -> Self {
        let units = u32::try_from(bytes / UNIT).unwrap_or(u32::MAX >> 3).clamp(1, u32::MAX >> 3);
        Self { room: Arc::new(Semaphore::new(units as usize)), units }
    }

    /// No room yet, which may grow.
    pub(crate) fn none(&self) -> Room {
        Room { budget: self.clone(), permit: None }
    }

    /// Waits a while for room.
    pub(crate) async fn take(&self, bytes: u64) -> Result<Room, ApiError> {
        let mut room = self.none();
        room.grow(bytes).await?;
        Ok(room)
    }

    /// Room if there is some now.
    pub(crate) fn try_take(&self, bytes: u64) -> Option<Room> {
        let permit = self.room.clone().try_acquire_many_owned(self.units(bytes)).ok()?;
        Some(Room { budget: self.clone(), permit: Some(permit) })
    }

    /// What is more than everything takes everything, and so goes alone.
    fn units(&self, bytes: u64) -> u32 {
        u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX).min(self.units)
    }
}

impl Room {
    /// Waits a while for more.
    pub(crate) async fn grow(&mut self, bytes: u64) -> Result<(), ApiError> {
        let held = self.permit.as_ref().map_or(0, OwnedSemaphorePermit::num_permits) as u32;
        let more = self.budget.units(bytes).min(self.budget.units - held.min(self.budget.units));
        match timeout(WAIT, self.budget.room.clone().acquire_many_owned(more)).await {
            Ok(Ok(permit)) => {
                self.join(permit);
                Ok(())
            }
            // It is never closed.
            Ok(Err(_)) | Err(_) => Err(full()),
        }
    }

    /// Takes up to `count` more times so many bytes, as there is room for now; says how often it did.
    pub(crate) fn grow_by_what_is_free(&mut self, bytes: u64, count: usize) -> usize {
        let units = self.budget.units(bytes);
        (0..count)
            .take_while(|_| match self.budget.room.clone().try_acquire_many_owned(units) {
                Ok(permit) => {
                    self.join(permit);
                    true
                }
                Err(_) => false,
            })
            .count()
    }

    fn join(&mut self, permit: OwnedSemaphorePermit) {
        match &mut self.permit {
            None => self.permit = Some(permit),
            Some(held) => held.merge(permit),
        }
    }
}

/// Bytes that keep their room until the last of them is written.
pub(crate) fn housed(bytes: Bytes, room: &Arc<Room>) -> Bytes {
    Bytes::from_owner(Roomed { bytes, _room: room.clone() })
}

fn full() -> ApiError {
    let message =
        "this gateway holds as many bytes of requests and answers as it may (gateway.body_memory); try again later";
    ApiError { retry_after: AGAIN, ..ApiError::unavailable(message) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn room_is_waited_for_and_comes_back_with_the_last_byte() {
        let budget = Budget::new(10 << 10);
        let mut first = budget.take(4 << 10).await.unwrap();
        first.grow(4 << 10).await.unwrap();
        assert_eq!(first.grow_by_what_is_free(1 << 10, 5), 2, "that was all");
        let refused = budget.take(1).await.unwrap_err();
        assert_eq!((refused.status, refused.retry_after), (503, AGAIN));
        let waits = tokio::spawn({
            let budget = budget.clone();
            async move { budget.take(10 << 20).await.map(drop) }
        });
        let answer = housed(Bytes::from_static(b"an answer"), &Arc::new(first));
        let rest = answer.slice(3..);
        drop(answer);
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(!waits.is_finished() && budget.try_take(1).is_none());
        assert_eq!(&rest[..], b"answer");
        drop(rest);
        waits.await.unwrap().expect("what is more than everything goes alone");
        assert!(budget.try_take(10 << 10).is_some());
    }
}
