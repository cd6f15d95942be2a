//! The life of a job as a pure state machine. The bus stores one [`Record`] a job and changes it by compare-and-set only.
//!
//! ```text
//! accepted ──▶ prefill ──▶ decode ──▶ completed | failed | cancelled | expired
//!     └───────────┴───────────┴────────────▲ (a stage may end the job early)
//! ```

use serde::{Deserialize, Serialize};

use crate::{outcome::Status, subject::Stage};

/// What is known about a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub state: State,
    /// See [`crate::outcome::request_digest`].
    pub request_digest: String,
    /// Milliseconds since 1970.
    pub accepted_at_ms: u64,
    /// How often a worker of the present stage took the job and neither handed it on nor gave it back.
    pub tries: u32,
    /// Whether its sender wants no more of it: whoever has its message, or gets it, ends the job as cancelled.
    #[serde(default, skip_serializing_if = "is_false")]
    pub cancelled: bool,
    /// Who works on the job, or did last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claim: Option<Claim>,
}

fn is_false(flag: &bool) -> bool {
    !flag
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    Accepted,
    Prefill,
    Decode,
    Completed,
    Failed,
    Cancelled,
    Expired,
}

/// A worker's claim on a job. Of two claims on one message the one with the higher attempt holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, bincode::Encode, bincode::Decode)]
pub struct Claim {
    pub stage: Stage,
    /// The claimed message's sequence in its stage's stream.
    pub sequence: u64,
    /// How often the broker has delivered that message.
    pub attempt: u64,
    pub worker: String,
}

/// What ingest must do with a request whose id is known already.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Admission {
    /// An earlier attempt at this very request was cut short: go on, once this record is stored.
    Take(Record),
    /// The job is under way or has ended.
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
    pub fn accepted(request_digest: String, accepted_at_ms: u64) -> Self {
        Self { state: State::Accepted, request_digest, accepted_at_ms, tries: 1, cancelled: false, claim: None }
    }

    /// Decides about a request that arrives under this record's id.
    pub fn admit(&self, request_digest: &str) -> Admission {
        if self.request_digest != request_digest {
            Admission::Conflict
        } else if self.state != State::Accepted {
            Admission::Settled
        } else {
            Admission::Take(Self { tries: self.tries.saturating_add(1), ..self.clone() })
        }
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
            let same_delivery = held.attempt == claim.attempt && held.worker == claim.worker;
            if held.stage == claim.stage && held.attempt >= claim.attempt && !same_delivery {
                return Verdict::Superseded;
            }
        }
        let tries = if self.state == state { self.tries.saturating_add(1) } else { 1 };
        Verdict::Take(Self { state, tries, claim: Some(claim), ..self.clone() })
    }

    /// The record once its holder (nobody for ingest) gives the job back for no fault of the job's: the try does not
    /// count. Nothing if the job is somebody else's by now.
    pub fn give_back(&self, holder: Option<&Claim>) -> Option<Self> {
        let held = !self.state.is_final() && self.claim.as_ref() == holder;
        held.then(|| Self { tries: self.tries.saturating_sub(1), ..self.clone() })
    }

    /// The record of a job that has lost its message and begins again with another; nothing if the job has ended. Whoever
    /// still works on it has lost it.
    pub fn reopen(&self) -> Option<Self> {
        let again = || Self::accepted(self.request_digest.clone(), self.accepted_at_ms);
        (!self.state.is_final()).then(|| Self { cancelled: self.cancelled, ..again() })
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
        (!self.state.is_final()).then(|| Self { state: status.into(), ..self.clone() })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_claim() -> impl Strategy<Value = Claim> {
        (prop_oneof![Just(Stage::Prefill), Just(Stage::Decode)], 1u64..3, 1u64..4, "[ab]")
            .prop_map(|(stage, sequence, attempt, worker)| Claim { stage, sequence, attempt, worker })
    }

    #[derive(Clone, Debug)]
    enum Event {
        Claim(Claim),
        GiveBack(Claim),
        Cancel,
        Reopen,
        Finish(Status),
    }

    fn any_event() -> impl Strategy<Value = Event> {
        let status =
            prop_oneof![Just(Status::Completed), Just(Status::Failed), Just(Status::Cancelled), Just(Status::Expired)];
        prop_oneof![
            8 => any_claim().prop_map(Event::Claim),
            2 => any_claim().prop_map(Event::GiveBack),
            1 => Just(Event::Cancel),
            1 => Just(Event::Reopen),
            1 => status.prop_map(Event::Finish),
        ]
    }

    proptest! {
        /// Whatever arrives in whatever order: a job ends once, never moves back a stage, is claimed by one message per
        /// stage, and a claim is only replaced by a later attempt, until the job is reopened; and who claims a cancelled job
        /// learns of it.
        #[test]
        fn any_history_is_sound(events in prop::collection::vec(any_event(), 0..40)) {
            let mut record = Record::accepted("d".into(), 1);
            let (mut ends, mut cancelled) = (0, false);
            for event in events {
                let reopens = matches!(event, Event::Reopen);
                let next = match event {
                    Event::Finish(status) => record.finish(status),
                    Event::Reopen => record.reopen(),
                    Event::Cancel => {
                        let next = record.cancel();
                        prop_assert_eq!(next.is_some(), !record.state.is_final());
                        cancelled |= next.is_some();
                        next
                    }
                    Event::GiveBack(claim) => {
                        let next = record.give_back(Some(&claim));
                        prop_assert_eq!(next.is_some(), record.is_held_by(&claim));
                        next
                    }
                    Event::Claim(claim) => match record.claim(claim.clone()) {
                        Verdict::Take(next) => {
                            prop_assert!(next.is_held_by(&claim));
                            Some(next)
                        }
                        Verdict::Settled | Verdict::Superseded => None,
                    },
                };
                let Some(next) = next else { continue };
                prop_assert!(next.tries <= record.tries + 1, "one event is one try at most");
                prop_assert!(!record.state.is_final(), "a job that ended changed");
                prop_assert_eq!(next.cancelled, cancelled, "a cancellation was lost, or made up");
                ends += usize::from(next.state.is_final());
                if reopens {
                    prop_assert_eq!((next.state, &next.claim), (State::Accepted, &None));
                } else if let (Some(old), Some(new)) = (&record.claim, &next.claim) {
                    prop_assert!(new.stage >= old.stage);
                    if new.stage == old.stage {
                        prop_assert_eq!(new.sequence, old.sequence);
                        prop_assert!(new.attempt > old.attempt || new == old);
                    }
                }
                record = next;
            }
            prop_assert!(ends <= 1);
        }
    }

    #[test]
    fn tries_count_within_a_stage_and_not_when_given_back() {
        let claim = |stage, attempt| Claim { stage, sequence: 1, attempt, worker: "a".into() };
        let take = |record: &Record, claim: Claim| match record.claim(claim) {
            Verdict::Take(next) => next,
            verdict => panic!("{verdict:?}"),
        };
        let first = take(&Record::accepted("d".into(), 1), claim(Stage::Prefill, 1));
        let back = first.give_back(first.claim.as_ref()).unwrap();
        assert_eq!((first.tries, back.tries), (1, 0));
        let crashed = take(&take(&back, claim(Stage::Prefill, 2)), claim(Stage::Prefill, 3));
        assert_eq!(crashed.tries, 2);
        assert_eq!(take(&crashed, claim(Stage::Decode, 1)).tries, 1);
        assert_eq!(crashed.give_back(None), None);
    }

    #[test]
    fn a_reopened_job_goes_to_whoever_claims_it_first() {
        let claim = |sequence| Claim { stage: Stage::Prefill, sequence, attempt: 1, worker: "a".into() };
        let Verdict::Take(lost) = Record::accepted("d".into(), 1).claim(claim(5)) else { panic!() };
        assert_eq!(lost.claim(claim(9)), Verdict::Settled, "another message must not take a job that has one");
        let reopened = lost.reopen().unwrap();
        assert!(!reopened.is_held_by(&claim(5)));
        assert!(matches!(reopened.admit("d"), Admission::Take(_)));
        let Verdict::Take(again) = reopened.claim(claim(9)) else { panic!() };
        assert_eq!(again.claim(claim(5)), Verdict::Settled, "the old message came back after all");
        assert_eq!(again.finish(Status::Completed).unwrap().reopen(), None);
    }

    #[test]
    fn a_request_that_was_cancelled_in_the_queue_is_admitted_as_such() {
        let before = Record::cancelled_before("d".into(), 1);
        assert_eq!(before.admit("e"), Admission::Conflict);
        let Admission::Take(taken) = before.admit("d") else { panic!() };
        assert_eq!((taken.cancelled, taken.tries), (true, 1));
    }

    #[test]
    fn only_the_same_request_is_admitted_again() {
        let accepted = Record::accepted("d".into(), 1);
        let Admission::Take(again) = accepted.admit("d") else { panic!() };
        assert_eq!(again.tries, 2);
        assert_eq!(accepted.admit("e"), Admission::Conflict);
        assert_eq!(accepted.finish(Status::Failed).unwrap().admit("d"), Admission::Settled);
    }

    #[test]
    fn a_redelivery_takes_over_and_the_late_worker_loses() {
        let claim = |attempt, worker: &str| Claim { stage: Stage::Decode, sequence: 5, attempt, worker: worker.into() };
        let Verdict::Take(first) = Record::accepted("d".into(), 1).claim(claim(1, "a")) else { panic!() };
        let Verdict::Take(second) = first.claim(claim(2, "b")) else { panic!() };
        assert!(!second.is_held_by(&claim(1, "a")));
        assert_eq!(second.claim(claim(1, "a")), Verdict::Superseded);
        let done = second.finish(Status::Completed).unwrap();
        assert_eq!(done.claim(claim(3, "c")), Verdict::Settled);
        assert_eq!(done.finish(Status::Failed), None);
    }
}
