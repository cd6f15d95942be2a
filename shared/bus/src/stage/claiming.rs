//! A worker's claim on a job, which may still be on its way while the work has begun.

use std::pin::Pin;

use crate::{
    Error,
    stage::{
        delivery::Settle,
        jobs::{Claimed, Stored},
    },
};

/// Why the work on a message ends before its job has come further.
pub(super) enum Exit {
    /// It is known what becomes of the message.
    Settle(Settle),
    /// Something failed: the message goes back.
    Failed(Error),
}

impl From<Error> for Exit {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

/// A claim under way.
pub(super) struct Claiming<'a, F> {
    pending: Pin<&'a mut F>,
    held: Option<Stored>,
}

impl<'a, F: Future<Output = Result<Claimed, Error>>> Claiming<'a, F> {
    pub(super) fn new(pending: Pin<&'a mut F>) -> Self {
        Self { pending, held: None }
    }

    /// Whether the claim is stored.
    pub(super) fn is_held(&self) -> bool {
        self.held.is_some()
    }

    /// The record that the job is held with, waited for. May be given up and called again.
    pub(super) async fn held(&mut self) -> Result<&Stored, Exit> {
        let held = match self.held.take() {
            Some(held) => held,
            None => taken(self.pending.as_mut().await?).map_err(Exit::Settle)?,
        };
        Ok(self.held.insert(held))
    }
}

/// The record of a job that is now the worker's, or what becomes of its message.
pub(super) fn taken(claimed: Claimed) -> Result<Stored, Settle> {
    match claimed {
        Claimed::Take(stored) => Ok(stored),
        Claimed::Settled => Err(Settle::Ack),
        Claimed::Superseded => Err(Settle::Leave),
    }
}
