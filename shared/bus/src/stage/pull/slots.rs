//! A worker's slots, whose number may change while they are out.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

/// Permits for messages. When their number falls, those that are out are taken away as they come back.
pub(super) struct Slots {
    free: Arc<Semaphore>,
    /// That exist, free or out.
    present: usize,
    /// That there are to be.
    wanted: usize,
    /// Where the number comes from, if it changes.
    room: Option<watch::Receiver<usize>>,
    /// The most that there may be.
    most: usize,
}

impl Slots {
    /// As many as `room` says, at most `most`; that many where there is none.
    pub(super) fn new(most: usize, room: Option<watch::Receiver<usize>>) -> Self {
        Self { free: Arc::new(Semaphore::new(0)), present: 0, wanted: 0, room, most }
    }

    /// How many messages may be worked on now.
    pub(super) fn room(&mut self) -> usize {
        self.room.as_mut().map_or(self.most, |room| *room.borrow_and_update()).min(self.most)
    }

    /// Whether [`Slots::room`] can change.
    pub(super) fn can_change(&self) -> bool {
        self.room.is_some()
    }

    /// Waits until [`Slots::room`] has changed.
    pub(super) async fn changed(&mut self) {
        if let Some(room) = &mut self.room
            && room.changed().await.is_err()
        {
            // Nobody says any more how many: it stays as it is.
            self.most = (*room.borrow()).min(self.most);
            self.room = None;
        }
    }

    /// Makes it so many.
    pub(super) fn resize(&mut self, count: usize) {
        self.wanted = count;
        if count > self.present {
            self.free.add_permits(count - self.present);
            self.present = count;
        } else {
            self.present -= self.free.forget_permits(self.present - count);
        }
    }

    /// Where a free one is waited for.
    pub(super) fn semaphore(&self) -> Arc<Semaphore> {
        self.free.clone()
    }

    /// One that came free, unless there are too many.
    pub(super) fn keep(&mut self, permit: OwnedSemaphorePermit) -> Option<OwnedSemaphorePermit> {
        if self.present <= self.wanted {
            return Some(permit);
        }
        permit.forget();
        self.present -= 1;
        None
    }

    /// How many are free besides.
    pub(super) fn free(&self) -> usize {
        self.free.available_permits()
    }

    /// Another free one.
    pub(super) fn another(&self) -> Option<OwnedSemaphorePermit> {
        self.free.clone().try_acquire_owned().ok()
    }

    /// Waits until all are back, which means that every message is settled.
    pub(super) async fn all_back(&self) {
        let _ = self.free.acquire_many(self.present as u32).await;
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    proptest! {
        #[test]
        fn there_are_never_more_than_wanted_once_those_that_are_out_are_back(
            steps in vec((0..3u8, 0..40usize), 1..200),
        ) {
            let (sender, room) = watch::channel(4);
            let mut slots = Slots::new(32, Some(room));
            let first = slots.room();
            slots.resize(first);
            let mut out = Vec::new();
            for (step, count) in steps {
                match step {
                    0 => {
                        sender.send_replace(count);
                        let now = slots.room();
                        prop_assert_eq!(now, count.min(32));
                        slots.resize(now);
                    }
                    1 => for _ in 0..count {
                        let before = out.len();
                        let Some(permit) = slots.another() else { break };
                        out.extend(slots.keep(permit));
                        prop_assert!(out.len() == before || out.len() <= slots.wanted, "{} of {}", out.len(), slots.wanted);
                    },
                    _ => out.truncate(out.len().saturating_sub(count)),
                }
                prop_assert_eq!(slots.free() + out.len(), slots.present, "a slot was lost, or came from nowhere");
            }
            drop(out);
            slots.resize(slots.wanted);
            prop_assert_eq!(slots.free(), slots.wanted);
        }
    }
}
