//! The life of a job as a pure state machine. The bus stores one [`Record`] a job and changes it by compare-and-set only.
//!
//! ```text
//! accepted ──▶ prefill ──▶ decode ──▶ completed | failed | cancelled | expired
//!     └───────────┴───────────┴────────────▲ (a stage may end the job early)
//! ```

use serde::{Deserialize, Serialize};

use crate::{outcome::Status, subject::Stage};

/// Characters of a reason to wait; a chain of causes may quote whole answers of a store.
const LONGEST_REASON: usize = 1_000;

/// What is known about a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// How far the job has come.
    pub state: State,
    /// See [`crate::outcome::request_digest`].
    pub request_digest: String,
    /// Milliseconds since 1970.
    pub accepted_at_ms: u64,
    /// The request that became the job; see [`Record::admit`]. None in records of older releases, and where any request of this
    /// digest may become it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<Source>,
    /// How often a worker of the present stage took the job and neither handed it on nor gave it back.
    pub tries: u32,
    /// Whether its sender wants no more of it: whoever has its message, or gets it, ends the job as cancelled.
    #[serde(default, skip_serializing_if = "is_false")]
    pub cancelled: bool,
    /// Who works on the job, or did last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claim: Option<Claim>,
    /// Why the job was given back for others to try, if it has not come further since.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting: Option<Waiting>,
}

/// A message of the request stream. Sequences begin anew in a stream that was made anew, so its time belongs to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// Its place in the request stream.
    pub sequence: u64,
    /// When the broker stored it, in milliseconds since 1970.
    pub stored_ms: u64,
}

impl Source {
    /// No request at all: the job begins again with the message that it was admitted with.
    pub const KEPT: Self = Self { sequence: 0, stored_ms: 0 };
}

/// What a job waits for: a fault that may pass.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waiting {
    /// The fault, as text.
    pub reason: String,
    /// Since when, by the broker's clock, in milliseconds since 1970.
    pub since_ms: u64,
    /// Whether a worker is trying it again.
    #[serde(default, skip_serializing_if = "is_false")]
    pub again: bool,
}

fn is_false(flag: &bool) -> bool {
    !flag
}

/// How far a job has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It is a job, and no worker has claimed it.
    Accepted,
    /// A prefill worker has claimed it.
    Prefill,
    /// A decode worker has claimed it.
    Decode,
    /// It has its answer.
    Completed,
    /// It has ended with an error.
    Failed,
    /// It has ended at its sender's wish.
    Cancelled,
    /// Its deadline has passed.
    Expired,
}

/// A worker's claim on a job. Of two claims on one message the one with the higher attempt holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, bincode::Encode, bincode::Decode)]
pub struct Claim {
    /// The stage that the worker serves.
    pub stage: Stage,
    /// The claimed message's sequence in its stage's stream.
    pub sequence: u64,
    /// How often the broker has delivered that message.
    pub attempt: u64,
    /// The worker's name.
    pub worker: String,
}

/// What has become of the request that a record was made for, as seen by somebody who has a copy of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Original {
    /// It lies in the request stream still: whoever has it, or gets it, passes it on.
    Waits,
    /// The job's message to its first stage is stored.
    PassedOn,
    /// It is gone, and was never passed on.
    Lost,
}

/// What ingest must do with a request whose id is known already.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Admission {
    /// The request is the job's, and an earlier attempt at it was cut short; or it takes the place of one that was lost. Go on,
    /// once this record is stored.
    Take(Record),
    /// A copy of a request that was not passed on when the record was stored: ask again, with what became of that one.
    Copy {
        /// The request that the record names.
        of: Source,
    },
    /// The job is under way or has ended, or another copy of the request brings it on the way.
    Settled,
    /// The id belongs to another request.
    Conflict,
}

/// What a worker that was handed a message must do with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The job is the worker's, once this record is stored.
    Take(Record),
    /// The job has ended or moved on, or another message holds its place: acknowledge and forget the message.
    Settled,
    /// A later delivery of the same message holds the claim: leave the message alone.
    Superseded,
}

impl State {
    /// Whether the job has ended.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Cancelled | Self::Expired)
    }
}

impl From<Status> for State {
    fn from(status: Status) -> Self {
        match status {
            Status::Completed => Self::Completed,
            Status::Failed => Self::Failed,
            Status::Cancelled => Self::Cancelled,
            Status::Expired => Self::Expired,
        }
    }
}

impl Record {
    /// The record of a new job. `accepted_at_ms` counts from 1970.
    pub fn accepted(request_digest: String, accepted_at_ms: u64) -> Self {
        Self {
            state: State::Accepted,
            request_digest,
            accepted_at_ms,
            request: None,
            tries: 1,
            cancelled: false,
            claim: None,
            waiting: None,
        }
    }

    /// The record of a job that this request becomes.
    pub fn requested(request_digest: String, source: Source) -> Self {
        Self { request: Some(source), ..Self::accepted(request_digest, source.stored_ms) }
    }

    /// Decides about a request that arrives under this record's id. Only the message that the record was made for, delivered
    /// again, is a try. Any other is a copy, which nothing is done for as long as that one is, or has been, passed on. A copy
    /// takes its place only if the first was lost; which of the two, is asked for (`original`) where it matters.
    pub fn admit(&self, request_digest: &str, source: Source, original: Option<Original>) -> Admission {
        let mine = |tries| Self { request: Some(source), tries, ..self.clone() };
        if self.request_digest != request_digest {
            return Admission::Conflict;
        }
        if self.state != State::Accepted {
            return Admission::Settled;
        }
        match (self.request, original) {
            (Some(present), _) if present == source => Admission::Take(mine(self.tries.saturating_add(1))),
            (None, _) => Admission::Take(mine(self.tries.max(1))),
            (Some(_), Some(Original::Waits | Original::PassedOn)) => Admission::Settled,
            (Some(_), Some(Original::Lost)) => Admission::Take(mine(1)),
            (Some(of), None) => Admission::Copy { of },
        }
    }

    /// Whether a request in the queue brings the job on its way, with nothing else to be asked: it is the one that the record
    /// was made for, and may not have been passed on yet.
    pub fn awaits(&self, source: Source) -> bool {
        self.state == State::Accepted && self.request.is_none_or(|request| request == source)
    }

    /// Decides about a worker's wish to work on the job.
    pub fn claim(&self, claim: Claim) -> Verdict {
        let state = match claim.stage {
            // Ingest makes the record; it claims nothing.
            Stage::Ingest => return Verdict::Settled,
            Stage::Prefill => State::Prefill,
            Stage::Decode => State::Decode,
        };
        if self.state.is_final() {
            return Verdict::Settled;
        }
        if let Some(held) = &self.claim {
            if held.stage > claim.stage || (held.stage == claim.stage && held.sequence != claim.sequence) {
                return Verdict::Settled;
            }
            // The same delivery, whose first wish came through unheard: no second try.
            if *held == claim {
                return Verdict::Take(self.clone());
            }
            if held.stage == claim.stage && held.attempt >= claim.attempt {
                return Verdict::Superseded;
            }
        }
        let same_stage = self.state == state;
        let tries = if same_stage { self.tries.saturating_add(1) } else { 1 };
        // It may wait for the same again.
        let waiting = self.waiting.clone().filter(|_| same_stage).map(|waiting| Waiting { again: true, ..waiting });
        Verdict::Take(Self { state, tries, claim: Some(claim), waiting, ..self.clone() })
    }

    /// The record once its holder gives the job back for no fault of the job's: the try does not count. Nothing if the job is
    /// somebody else's by now.
    pub fn give_back(&self, holder: &Claim) -> Option<Self> {
        self.is_held_by(holder).then(|| Self { tries: self.tries.saturating_sub(1), ..self.clone() })
    }

    /// The same of ingest, which gives a request back.
    pub fn give_back_request(&self, source: Source) -> Option<Self> {
        let held = self.state == State::Accepted && self.request == Some(source);
        held.then(|| Self { tries: self.tries.saturating_sub(1), ..self.clone() })
    }

    /// The record of a job that waits for something with its holder, or is given back, at `now_ms`. What it has waited for
    /// before is forgotten, but not since when.
    pub fn waits(&self, holder: &Claim, reason: &str, now_ms: u64) -> Option<Self> {
        let since_ms = self.waiting.as_ref().map_or(now_ms, |waiting| waiting.since_ms);
        let waiting = Waiting { reason: reason.chars().take(LONGEST_REASON).collect(), since_ms, again: false };
        self.is_held_by(holder).then(|| Self { waiting: Some(waiting), ..self.clone() })
    }

    /// The record of a job that has lost its message and begins again, with the one that it was admitted with if that was
    /// `kept`, else with a copy of its request; nothing if the job has ended. Whoever still works on it has lost it.
    pub fn reopen(&self, kept: bool) -> Option<Self> {
        let again = || Self::accepted(self.request_digest.clone(), self.accepted_at_ms);
        let request = kept.then_some(Source::KEPT);
        (!self.state.is_final()).then(|| Self { cancelled: self.cancelled, request, ..again() })
    }

    /// The record of the job once its sender wants no more of it; nothing if the job has ended.
    pub fn cancel(&self) -> Option<Self> {
        (!self.state.is_final()).then(|| Self { cancelled: true, ..self.clone() })
    }

    /// The record of a request that was cancelled before ingest saw it.
    pub fn cancelled_before(request_digest: String, accepted_at_ms: u64) -> Self {
        // No worker has tried anything yet.
        Self { tries: 0, cancelled: true, ..Self::accepted(request_digest, accepted_at_ms) }
    }

    /// Whether `claim` still holds the job.
    pub fn is_held_by(&self, claim: &Claim) -> bool {
        !self.state.is_final() && self.claim.as_ref() == Some(claim)
    }

    /// The record of the job once its result is published; nothing if it has ended already.
    pub fn finish(&self, status: Status) -> Option<Self> {
        (!self.state.is_final()).then(|| Self { state: status.into(), waiting: None, ..self.clone() })
    }
}

#[cfg(test)]
mod tests;
