//! Which model began a job. No other goes on with its tokens or its KV cache, so that an answer is wholly one model's.

use baton_contract::{
    checkpoint::Checkpoint,
    envelope::{Fingerprint, FirstToken, Piece},
};

/// How often a job is left to others before it begins again here. There may be few workers with its model, or none.
const LEFT: u64 = 5;

/// What there is of a job's answers.
#[derive(Debug)]
pub(crate) struct Begun {
    pub(crate) first: Vec<FirstToken>,
    pub(crate) pieces: Vec<Piece>,
    /// Of the model that both came from, if it is known and there are any.
    pub(crate) fingerprint: Option<Fingerprint>,
    pub(crate) checkpoint: Option<Box<Checkpoint>>,
}

/// What this worker makes of it.
#[derive(Debug)]
pub(crate) enum Origin {
    /// It goes on; what was another model's is gone. Whether that is all there was.
    Ours { begun: Begun, again: bool },
    /// Another model began it, which another worker may have.
    Theirs(Fingerprint),
}

impl Begun {
    /// Decides in the `attempt`-th try of a message, for a worker with the model of the fingerprint `ours`.
    pub(crate) fn origin(self, ours: &Fingerprint, attempt: u64) -> Origin {
        let foreign = |fingerprint: Option<Fingerprint>| fingerprint.filter(|found| found != ours);
        let checkpoint = self.checkpoint.as_ref().map(|checkpoint| foreign(checkpoint.fingerprint));
        let task = foreign(self.fingerprint).filter(|_| !self.first.is_empty() || !self.pieces.is_empty());
        // A checkpoint has all tokens that there are.
        let theirs = checkpoint.unwrap_or(task);
        if let Some(theirs) = theirs
            && attempt <= LEFT
        {
            return Origin::Theirs(theirs);
        }
        let mut begun = self;
        if checkpoint.flatten().is_some() {
            begun.checkpoint = None;
        }
        if task.is_some() {
            begun.first.clear();
            begun.pieces.clear();
        }
        Origin::Ours { begun, again: theirs.is_some() }
    }
}

#[cfg(test)]
mod tests {
    use baton_contract::{outcome::Timings, record::Claim, subject::Stage};

    use super::*;

    const OURS: Fingerprint = [1; 32];
    const THEIRS: Fingerprint = [2; 32];

    fn begun(task: Option<Fingerprint>, checkpoint: Option<Option<Fingerprint>>) -> Begun {
        let claim = Claim { stage: Stage::Decode, sequence: 1, attempt: 1, worker: "w".into() };
        let checkpoint = checkpoint.map(|fingerprint| {
            let (request_digest, timings, answers) = (String::new(), Timings::default(), Vec::new());
            Box::new(Checkpoint { claim, request_digest, timings, answers, fingerprint, partial: Vec::new() })
        });
        let first = vec![FirstToken { token: 1, logprobs: None }];
        Begun { first, pieces: vec![Piece { id: [3; 32], tokens: 1 }], fingerprint: task, checkpoint }
    }

    /// What is left of the task and of the checkpoint, and whether the job begins again; none if it is left to others.
    fn decided(begun: Begun, attempt: u64) -> Option<(bool, bool, bool)> {
        match begun.origin(&OURS, attempt) {
            Origin::Theirs(theirs) => {
                assert_eq!(theirs, THEIRS);
                None
            }
            Origin::Ours { begun: Begun { first, pieces, checkpoint, .. }, again } => {
                assert_eq!(first.is_empty(), pieces.is_empty(), "they are of one model");
                Some((!first.is_empty(), checkpoint.is_some(), again))
            }
        }
    }

    #[test]
    fn what_another_model_began_is_left_to_it_and_then_begins_again() {
        for attempt in [1, LEFT, LEFT + 1, 99] {
            let late = attempt > LEFT;
            let then = |decided| if late { Some(decided) } else { None };
            for known in [Some(OURS), None] {
                assert_eq!(decided(begun(known, None), attempt), Some((true, false, false)));
                assert_eq!(decided(begun(known, Some(known)), attempt), Some((true, true, false)));
                // It began again here before; what prefill left is of no use all the same.
                assert_eq!(decided(begun(Some(THEIRS), Some(known)), attempt), Some((false, true, false)));
                // It began again elsewhere, and ends here as it began.
                assert_eq!(decided(begun(known, Some(Some(THEIRS))), attempt), then((true, false, true)));
            }
            assert_eq!(decided(begun(Some(THEIRS), None), attempt), then((false, false, true)));
            assert_eq!(decided(begun(Some(THEIRS), Some(Some(THEIRS))), attempt), then((false, false, true)));
        }
        // Nobody has begun it.
        let nothing = Begun { first: Vec::new(), pieces: Vec::new(), ..begun(Some(THEIRS), None) };
        assert_eq!(decided(nothing, 1), Some((false, false, false)));
    }
}
