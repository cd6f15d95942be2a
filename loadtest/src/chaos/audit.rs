//! Holds what was seen against what must hold. Pure.

use std::collections::BTreeMap;

use baton_contract::{
    JobId,
    outcome::{Code, Status},
    record::State,
};
use serde::Serialize;

use super::{
    witness::{Ended, Observed},
    workload::{Planned, Workload},
};

/// What is left when a run has settled and its workers have ended.
#[derive(Debug, Default)]
pub struct Evidence {
    /// By job, in the workload's order: whether the broker has taken the request.
    pub submitted: Vec<bool>,
    /// The same: what its record says, if it has one.
    pub states: Vec<Option<State>>,
    /// Messages that are still in a stage's queue.
    pub waiting: BTreeMap<String, u64>,
    /// What no worker could finish.
    pub dead_letters: Vec<String>,
    /// Files that a collection without grace left in the store.
    pub orphans: Vec<String>,
    /// Command lines of processes that have not ended.
    pub processes: Vec<String>,
    /// Lines of logs.
    pub panics: Vec<String>,
    /// What of all this could not be read, for a stream or bucket was not made again.
    pub missing: Vec<String>,
}

/// Something that must not be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Violation {
    pub kind: Kind,
    /// Whose: a job, or a part of the pipeline.
    pub of: String,
    pub what: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A job has no result.
    Lost,
    /// A job has a second result.
    Duplicated,
    /// An answer or a token differs from the undisturbed run's.
    Changed,
    /// A job failed, though every request can be answered.
    Failed,
    /// A request was refused that only repeats another.
    Refused,
    /// A job ended as its sender did not ask for.
    Unasked,
    /// A job's record does not say how it ended.
    Record,
    /// A message that nobody needs is still in a queue.
    Queue,
    /// A chunk that nobody needs was not collected.
    Orphan,
    /// A process outlived the run.
    Process,
    /// A worker panicked.
    Panic,
    /// A stream or bucket that the broker lost was not made again.
    Missing,
}

/// What a run came to.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Audit {
    pub submitted: usize,
    pub completed: usize,
    pub failed: usize,
    pub cancelled: usize,
    pub expired: usize,
    /// Of those that failed: for they were tried too often.
    pub exhausted: usize,
    /// Jobs without a result.
    pub lost: usize,
    /// Jobs with more than one.
    pub duplicated: usize,
    /// Jobs whose answer, or a token of it, differs from the undisturbed run's.
    pub changed: usize,
    /// Answers that were compared, those of several answers to one request each counted.
    pub compared: usize,
    /// Jobs that a later delivery to decode ended.
    pub taken_over: usize,
    pub recomputed_tokens: u64,
    /// Tokens that a decode worker took over from another and did not generate.
    pub resumed_tokens: u64,
    /// Tokens that were streamed.
    pub deltas: u64,
    /// Those of them that had been streamed before, with the same content.
    pub repeated_deltas: u64,
    pub violations: Vec<Violation>,
}

impl Audit {
    /// `expected` has the answers to each of the workload's distinct requests.
    pub fn of(workload: &Workload, expected: &[Vec<Vec<u32>>], observed: &Observed, evidence: &Evidence) -> Self {
        let mut audit = Self { deltas: observed.deltas, repeated_deltas: observed.repeated, ..Self::default() };
        for (index, job) in workload.jobs.iter().enumerate() {
            if !evidence.submitted.get(index).copied().unwrap_or_default() {
                continue;
            }
            audit.submitted += 1;
            let results = observed.results.get(&job.id).map_or(&[][..], Vec::as_slice);
            let state = evidence.states.get(index).copied().flatten();
            audit.ending(job, results, state, observed.forgotten.contains(&job.id));
            if let Some(times) = observed.refused.get(&job.id) {
                audit.note(
                    Kind::Refused,
                    &job.id,
                    format!("{times} of its requests were refused, and all are the same"),
                );
            }
            let violations = audit.violations.len();
            results.iter().for_each(|ended| audit.answers(&job.id, ended, &expected[job.request]));
            let streamed = observed.tokens.get(&job.id).into_iter().flatten();
            for (&(choice, place), &token) in streamed {
                let wanted = expected[job.request].get(choice as usize).and_then(|answer| answer.get(place as usize));
                if wanted != Some(&token) {
                    let wanted = wanted.map_or("none".into(), u32::to_string);
                    let what = format!("streamed token {place} of answer {choice} is {token}, undisturbed {wanted}");
                    audit.note(Kind::Changed, &job.id, what);
                }
            }
            let clashes = observed.clashes.iter().filter(|(clashed, _)| clashed == &job.id);
            clashes.for_each(|(job, what)| audit.note(Kind::Changed, job, what.clone()));
            audit.changed += usize::from(audit.violations.len() > violations);
        }
        audit.surroundings(evidence);
        audit
    }

    fn note(&mut self, kind: Kind, of: &impl ToString, what: String) {
        self.violations.push(Violation { kind, of: of.to_string(), what });
    }

    /// How a job ended, and how often. Its record may be lost, if it was `forgotten` after its end.
    fn ending(&mut self, planned: &Planned, results: &[Ended], state: Option<State>, forgotten: bool) {
        let job = &planned.id;
        let Some(ended) = results.last() else {
            self.lost += 1;
            return self.note(Kind::Lost, job, format!("it has no result; its record says {}", named(state)));
        };
        // A broker that has lost a result may be asked for it again.
        let mut times = BTreeMap::new();
        results.iter().for_each(|ended| *times.entry(ended.epoch).or_insert(0) += 1);
        let most = times.into_values().max().unwrap_or_default();
        if most > 1 {
            self.duplicated += 1;
            self.note(Kind::Duplicated, job, format!("it has {most} results"));
        }
        match ended.status {
            Status::Completed => self.completed += 1,
            Status::Failed => {
                self.failed += 1;
                let exhausted = ended.error.as_ref().is_some_and(|error| error.code == Code::AttemptsExhausted);
                self.exhausted += usize::from(exhausted);
                let why =
                    ended.error.as_ref().map_or("no reason given".into(), |error| format!("{:?}: {error}", error.code));
                self.note(Kind::Failed, job, why);
            }
            Status::Cancelled => {
                self.cancelled += 1;
                if planned.cancel.is_none() {
                    self.note(Kind::Unasked, job, "it was cancelled, which nobody asked for".into());
                }
            }
            Status::Expired => {
                self.expired += 1;
                self.note(Kind::Unasked, job, "it expired, hours before any deadline".into());
            }
        }
        if state != Some(ended.status.into()) && !(forgotten && state.is_none()) {
            self.note(Kind::Record, job, format!("it ended as {:?}; its record says {}", ended.status, named(state)));
        }
        self.taken_over += usize::from(ended.decode_attempt > 1);
        self.recomputed_tokens += u64::from(ended.recomputed_tokens);
        self.resumed_tokens += u64::from(ended.resumed_tokens);
    }

    /// What a job answered: all of it if it completed, else its beginning.
    fn answers(&mut self, job: &JobId, ended: &Ended, expected: &[Vec<u32>]) {
        let whole = ended.status == Status::Completed;
        if whole && ended.answers.len() != expected.len() {
            let (found, expected) = (ended.answers.len(), expected.len());
            self.note(Kind::Changed, job, format!("it has {found} answers, undisturbed {expected}"));
        }
        for (choice, (answer, expected)) in ended.answers.iter().zip(expected).enumerate() {
            self.compared += 1;
            let same = if whole { answer == expected } else { expected.starts_with(answer) };
            if !same {
                let place = answer.iter().zip(expected).take_while(|(one, other)| one == other).count();
                let (found, expected) = (answer.len(), expected.len());
                let what = format!(
                    "answer {choice} ({} tokens of {:?}, undisturbed {expected}) differs from token {place} on",
                    found, ended.status
                );
                self.note(Kind::Changed, job, what);
            }
        }
    }

    fn surroundings(&mut self, evidence: &Evidence) {
        for (stage, count) in evidence.waiting.iter().filter(|(_, count)| **count > 0) {
            self.note(Kind::Queue, stage, format!("{count} messages are left"));
        }
        for (kind, of, lines) in [
            (Kind::Failed, "dead letters", &evidence.dead_letters),
            (Kind::Orphan, "store", &evidence.orphans),
            (Kind::Process, "processes", &evidence.processes),
            (Kind::Panic, "workers", &evidence.panics),
            (Kind::Missing, "broker", &evidence.missing),
        ] {
            lines.iter().for_each(|line| self.note(kind, &of, line.clone()));
        }
    }

    /// Whether all that was submitted ended once and as it should.
    pub fn holds(&self) -> bool {
        self.violations.is_empty() && self.submitted == self.completed + self.failed + self.cancelled + self.expired
    }
}

fn named(state: Option<State>) -> String {
    state.map_or("nothing".into(), |state| format!("{state:?}"))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::chaos::workload::Shape;

    const ANSWER: [u32; 3] = [7, 8, 9];

    fn workload() -> Workload {
        let lasts = Duration::from_secs(1);
        let shape = Shape { jobs: 3, distinct: 1, lasts, max_tokens: 8, copies: false, large: false };
        let mut workload = Workload::draw(1, shape).unwrap();
        workload.jobs.iter_mut().for_each(|job| job.cancel = None);
        workload
    }

    fn ended(status: Status, tokens: &[u32]) -> Ended {
        Ended {
            status,
            answers: vec![tokens.to_vec()],
            error: None,
            recomputed_tokens: 0,
            resumed_tokens: 0,
            decode_attempt: 1,
            epoch: 0,
        }
    }

    /// Three jobs that all went well.
    fn well(workload: &Workload) -> (Observed, Evidence) {
        let mut observed = Observed::default();
        for job in &workload.jobs {
            observed.results.insert(job.id.clone(), vec![ended(Status::Completed, &ANSWER)]);
            observed.tokens.insert(job.id.clone(), [((0, 0), 7), ((0, 2), 9)].into());
        }
        let evidence = Evidence {
            submitted: vec![true; 3],
            states: vec![Some(State::Completed); 3],
            waiting: [("decode".to_owned(), 0)].into(),
            ..Evidence::default()
        };
        (observed, evidence)
    }

    fn kinds(spoil: impl FnOnce(&mut Workload, &mut Observed, &mut Evidence)) -> Vec<Kind> {
        let mut workload = workload();
        let (mut observed, mut evidence) = well(&workload);
        spoil(&mut workload, &mut observed, &mut evidence);
        let audit = Audit::of(&workload, &[vec![ANSWER.to_vec()]], &observed, &evidence);
        assert_eq!(audit.holds(), audit.violations.is_empty());
        audit.violations.iter().map(|violation| violation.kind).collect()
    }

    #[test]
    fn each_thing_that_must_not_be_is_found() {
        let id = workload().jobs[1].id.clone();
        assert_eq!(kinds(|_, _, _| {}), []);
        assert_eq!(kinds(|_, observed, _| drop(observed.results.remove(&id))), [Kind::Lost]);
        let again = ended(Status::Completed, &ANSWER);
        assert_eq!(kinds(|_, observed, _| observed.results.get_mut(&id).unwrap().push(again)), [Kind::Duplicated]);
        let set = |observed: &mut Observed, ended| observed.results.insert(id.clone(), vec![ended]);
        assert_eq!(kinds(|_, observed, _| drop(set(observed, ended(Status::Completed, &[7, 8])))), [Kind::Changed]);
        let token = |observed: &mut Observed, place, token| {
            observed.tokens.get_mut(&id).unwrap().insert((0, place), token);
        };
        assert_eq!(kinds(|_, observed, _| token(observed, 1, 4)), [Kind::Changed]);
        assert_eq!(kinds(|_, observed, _| token(observed, 3, 4)), [Kind::Changed]);
        assert_eq!(kinds(|_, observed, _| observed.clashes.push((id.clone(), "x".into()))), [Kind::Changed]);
        assert_eq!(kinds(|_, _, evidence| evidence.states[1] = Some(State::Decode)), [Kind::Record]);
        assert_eq!(kinds(|_, _, evidence| *evidence.waiting.get_mut("decode").unwrap() = 1), [Kind::Queue]);
        assert_eq!(kinds(|_, _, evidence| evidence.orphans.push("x".into())), [Kind::Orphan]);
        assert_eq!(kinds(|_, _, evidence| evidence.missing.push("x".into())), [Kind::Missing]);

        let cancelled = |tokens: &'static [u32], asked| {
            let id = id.clone();
            move |workload: &mut Workload, observed: &mut Observed, evidence: &mut Evidence| {
                observed.results.insert(id, vec![ended(Status::Cancelled, tokens)]);
                evidence.states[1] = Some(State::Cancelled);
                workload.jobs[1].cancel = Some(Duration::ZERO).filter(|_| asked);
            }
        };
        assert_eq!(kinds(cancelled(&[7], true)), []);
        assert_eq!(kinds(cancelled(&[8], true)), [Kind::Changed]);
        assert_eq!(kinds(cancelled(&[], false)), [Kind::Unasked]);

        let lost = |epoch| {
            let id = id.clone();
            move |_: &mut Workload, observed: &mut Observed, evidence: &mut Evidence| {
                let again = Ended { epoch, ..ended(Status::Completed, &ANSWER) };
                observed.results.get_mut(&id).unwrap().push(again);
                observed.forgotten.insert(id);
                evidence.states[1] = None;
            }
        };
        assert_eq!(kinds(lost(1)), [], "a broker that has lost a result may be asked again");
        assert_eq!(kinds(lost(0)), [Kind::Duplicated]);

        let unsent = |_: &mut Workload, observed: &mut Observed, evidence: &mut Evidence| {
            observed.results.remove(&id);
            evidence.submitted[1] = false;
        };
        assert_eq!(kinds(unsent), []);
    }

    #[test]
    fn a_token_that_changes_is_a_clash_and_one_that_comes_again_is_not() {
        let id = workload().jobs[0].id.clone();
        let mut observed = Observed::default();
        let mut tell = |index, token| {
            let delta = baton_contract::outcome::Delta { index, token: Some(token), ..Default::default() };
            observed.delta(id.clone(), &delta);
        };
        tell(0, 5);
        tell(0, 5);
        tell(1, 5);
        tell(1, 6);
        assert_eq!((observed.deltas, observed.repeated, observed.clashes.len()), (4, 2, 1));
    }
}
