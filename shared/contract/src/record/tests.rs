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
                Event::Reopen => record.reopen(false),
                Event::Cancel => {
                    let next = record.cancel();
                    prop_assert_eq!(next.is_some(), !record.state.is_final());
                    cancelled |= next.is_some();
                    next
                }
                Event::GiveBack(claim) => {
                    let next = record.give_back(&claim);
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

fn source(sequence: u64) -> Source {
    Source { sequence, stored_ms: sequence }
}

/// What may happen to a request of which copies are sent.
#[derive(Clone, Copy, Debug)]
enum Step {
    Publish,
    /// The broker hands one of the messages out, perhaps again.
    Deliver(usize),
    /// One of the workers stores the job's first message, together with its copy.
    PassOn(usize),
    /// It acknowledges the request, if it has passed it on.
    Acknowledge(usize),
    /// It could not pass it on, and says so.
    GiveBack(usize),
    Crash(usize),
    /// One of the messages is lost.
    Purge(usize),
}

fn any_step() -> impl Strategy<Value = Step> {
    let which = || 0usize..4;
    prop_oneof![
        3 => Just(Step::Publish),
        6 => which().prop_map(Step::Deliver),
        3 => which().prop_map(Step::PassOn),
        2 => which().prop_map(Step::Acknowledge),
        1 => which().prop_map(Step::GiveBack),
        1 => which().prop_map(Step::Crash),
        1 => which().prop_map(Step::Purge),
    ]
}

/// The request stream, the record, and the ingest workers that have a request in hand.
#[derive(Default)]
struct Ingest {
    published: u64,
    waiting: Vec<u64>,
    record: Option<Record>,
    kept: bool,
    hands: Vec<(u64, bool)>,
    /// The messages that were passed on.
    passed_on: std::collections::BTreeSet<u64>,
    deliveries: std::collections::BTreeMap<u64, u32>,
    purged: bool,
}

impl Ingest {
    fn step(&mut self, step: Step) -> Result<(), TestCaseError> {
        match step {
            Step::Publish => {
                self.published += 1;
                self.waiting.push(self.published);
            }
            Step::Deliver(which) if !self.waiting.is_empty() => {
                self.deliver(self.waiting[which % self.waiting.len()])?
            }
            Step::PassOn(which) if !self.hands.is_empty() => {
                let which = which % self.hands.len();
                self.hands[which].1 = true;
                self.kept = true;
                self.passed_on.insert(self.hands[which].0);
            }
            Step::Acknowledge(which) if !self.hands.is_empty() => {
                let which = which % self.hands.len();
                if self.hands[which].1 {
                    let (sequence, _) = self.hands.remove(which);
                    self.waiting.retain(|waiting| *waiting != sequence);
                }
            }
            Step::GiveBack(which) if !self.hands.is_empty() => {
                let (sequence, _) = self.hands.remove(which % self.hands.len());
                if let Some(next) = self.record.as_ref().and_then(|record| record.give_back_request(source(sequence))) {
                    self.record = Some(next);
                }
            }
            Step::Crash(which) if !self.hands.is_empty() => drop(self.hands.remove(which % self.hands.len())),
            Step::Purge(which) if !self.waiting.is_empty() => {
                self.waiting.remove(which % self.waiting.len());
                self.purged = true;
            }
            _ => {}
        }
        Ok(())
    }

    fn deliver(&mut self, sequence: u64) -> Result<(), TestCaseError> {
        let delivered = self.deliveries.entry(sequence).or_default();
        *delivered += 1;
        let admission = match &self.record {
            None => Admission::Take(Record::requested("d".into(), source(sequence))),
            Some(record) => match record.admit("d", source(sequence), None) {
                Admission::Copy { of } => {
                    let original = if self.waiting.contains(&of.sequence) {
                        Original::Waits
                    } else if self.kept {
                        Original::PassedOn
                    } else {
                        Original::Lost
                    };
                    record.admit("d", source(sequence), Some(original))
                }
                admission => admission,
            },
        };
        match admission {
            Admission::Take(next) => {
                prop_assert!(next.tries <= *delivered, "a copy was a try: {next:?}");
                self.record = Some(next);
                self.hands.push((sequence, false));
            }
            Admission::Settled => self.waiting.retain(|waiting| *waiting != sequence),
            other => prop_assert!(false, "{other:?}"),
        }
        Ok(())
    }

    /// Whoever had something in hand dies, and what waits is delivered and passed on.
    fn drain(&mut self) -> Result<(), TestCaseError> {
        self.hands.clear();
        while let Some(&sequence) = self.waiting.first() {
            self.deliver(sequence)?;
            for step in [Step::PassOn(0), Step::Acknowledge(0)] {
                self.step(step)?;
            }
        }
        Ok(())
    }
}

proptest! {
    /// However often a request is published, delivered, dropped by a crash or held up: its copies are no tries, one message
    /// is passed on and no other, and none waits for ever. If messages get lost, one more copy brings the job on its way.
    #[test]
    fn a_copy_is_the_same_job(steps in prop::collection::vec(any_step(), 0..60)) {
        let mut ingest = Ingest::default();
        ingest.step(Step::Publish)?;
        for step in steps {
            ingest.step(step)?;
        }
        ingest.drain()?;
        if !ingest.purged {
            prop_assert_eq!(ingest.passed_on.len(), 1, "{:?}", ingest.passed_on);
        }
        ingest.step(Step::Publish)?;
        ingest.drain()?;
        prop_assert!(!ingest.passed_on.is_empty(), "the job hangs");
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
    let back = first.give_back(first.claim.as_ref().unwrap()).unwrap();
    assert_eq!((first.tries, back.tries), (1, 0));
    let crashed = take(&take(&back, claim(Stage::Prefill, 2)), claim(Stage::Prefill, 3));
    assert_eq!(crashed.tries, 2);
    assert_eq!(take(&crashed, claim(Stage::Decode, 1)).tries, 1);
}

#[test]
fn a_reopened_job_goes_to_whoever_claims_it_first() {
    let claim = |sequence| Claim { stage: Stage::Prefill, sequence, attempt: 1, worker: "a".into() };
    let Verdict::Take(lost) = Record::accepted("d".into(), 1).claim(claim(5)) else { panic!() };
    assert_eq!(lost.claim(claim(9)), Verdict::Settled, "another message must not take a job that has one");
    let reopened = lost.reopen(false).unwrap();
    assert!(!reopened.is_held_by(&claim(5)));
    assert!(matches!(reopened.admit("d", source(9), None), Admission::Take(_)));
    let Verdict::Take(again) = reopened.claim(claim(9)) else { panic!() };
    assert_eq!(again.claim(claim(5)), Verdict::Settled, "the old message came back after all");
    assert_eq!(again.finish(Status::Completed).unwrap().reopen(false), None);
}

#[test]
fn a_request_that_was_cancelled_in_the_queue_is_admitted_as_such() {
    let before = Record::cancelled_before("d".into(), 1);
    assert_eq!(before.admit("e", source(1), None), Admission::Conflict);
    let Admission::Take(taken) = before.admit("d", source(1), None) else { panic!() };
    assert_eq!((taken.cancelled, taken.tries), (true, 1));
}

#[test]
fn only_the_same_request_is_admitted_again_and_only_its_own_message_is_a_try() {
    let accepted = Record::requested("d".into(), source(1));
    let Admission::Take(again) = accepted.admit("d", source(1), None) else { panic!() };
    assert_eq!((again.tries, again.give_back_request(source(1)).unwrap().tries), (2, 1));
    assert_eq!(again.give_back_request(source(2)), None, "not that one's try");
    assert_eq!(accepted.admit("e", source(2), None), Admission::Conflict);
    assert_eq!(accepted.finish(Status::Failed).unwrap().admit("d", source(1), None), Admission::Settled);

    let copied = |original| again.admit("d", source(2), original);
    assert_eq!(copied(None), Admission::Copy { of: source(1) });
    assert_eq!(copied(Some(Original::Waits)), Admission::Settled);
    assert_eq!(copied(Some(Original::PassedOn)), Admission::Settled);
    let Admission::Take(taken) = copied(Some(Original::Lost)) else { panic!() };
    assert_eq!((taken.request, taken.tries, taken.accepted_at_ms), (Some(source(2)), 1, 1));
    // The same place in a stream that was made anew.
    let other = Source { stored_ms: 7, ..source(1) };
    assert_eq!(accepted.admit("d", other, None), Admission::Copy { of: source(1) });
}

#[test]
fn a_record_of_an_older_release_lets_its_request_in_without_a_try() {
    let old = r#"{"state":"accepted","request_digest":"d","accepted_at_ms":1,"tries":1}"#;
    let old: Record = serde_json::from_str(old).unwrap();
    let Admission::Take(taken) = old.admit("d", source(3), None) else { panic!() };
    assert_eq!((taken.tries, taken.request), (1, Some(source(3))));
}

#[test]
fn a_job_says_what_it_waits_for_until_it_has_come_further() {
    let claim = |stage, attempt| Claim { stage, sequence: 1, attempt, worker: "a".into() };
    let take = |record: &Record, claim: &Claim| match record.claim(claim.clone()) {
        Verdict::Take(next) => next,
        verdict => panic!("{verdict:?}"),
    };
    let first = claim(Stage::Prefill, 1);
    let waits = take(&Record::accepted("d".into(), 1), &first).waits(&first, "no room", 10).unwrap();
    let second = claim(Stage::Prefill, 2);
    let again = take(&waits, &second);
    let expected = Waiting { reason: "no room".into(), since_ms: 10, again: true };
    assert_eq!(again.waiting, Some(expected));
    assert_eq!(again.waits(&first, "late", 30), None, "it is another's by now");
    let longer = again.waits(&second, "still none", 20).unwrap();
    assert_eq!(longer.waiting.as_ref().map(|waiting| (waiting.since_ms, waiting.again)), Some((10, false)));
    assert_eq!(take(&longer, &claim(Stage::Decode, 1)).waiting, None);
    assert_eq!(longer.finish(Status::Failed).unwrap().waiting, None);
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
