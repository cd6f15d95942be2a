//! What a decode worker leaves of the answers it generates, so that another one goes on where it stopped.
//!
//! Tokens are enough: text, penalties and constraints follow from them, and the random number of a token is a function of
//! seed and position.

use bincode::{Decode, Encode};

use crate::{
    envelope::{self, Error, Fingerprint, NOTHING},
    job::{Answer, Job},
    outcome::{FinishReason, Timings, TokenLogprob},
    record::Claim,
};

/// How far a job's answers had come. The message that carries it is framed and bounded as an envelope is.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub struct Checkpoint {
    /// Who wrote it. Of two claims on one message the one with the higher attempt may write.
    pub claim: Claim,
    /// The job's; see [`crate::outcome::request_digest`].
    pub request_digest: String,
    /// Where the job's time went so far.
    pub timings: Timings,
    /// Of each of the job's answers, in the order of their places; none if nothing was generated yet. Their live tokens
    /// were published before the checkpoint was written.
    pub answers: Vec<Beginning>,
    /// Of the model that chose the tokens: no other goes on with them. None from a worker of the release before.
    pub fingerprint: Option<Fingerprint>,
    /// What a foreign engine's answers had come to, in the order of their places; none of Baton's own.
    pub partial: Vec<Partial>,
}

/// The beginning of a foreign engine's answer. Its token ids, if the engine tells them, are among the checkpoint's answers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct Partial {
    /// Its text.
    pub text: String,
    /// Pieces that were told.
    pub pieces: u32,
    /// What else its message has so far: a JSON object, or nothing.
    pub message: String,
    /// None as long as it has not ended.
    pub finish_reason: Option<FinishReason>,
    /// The prompt's token ids, if the engine tells them.
    pub prompt: Vec<u32>,
}

/// How an answer begins.
#[derive(Clone, Debug, Default, PartialEq, Encode, Decode)]
pub struct Beginning {
    /// The answer's token ids so far.
    pub tokens: Vec<u32>,
    /// One for each token if the job asks for them, else none.
    pub logprobs: Vec<TokenLogprob>,
}

impl Checkpoint {
    /// One that says only whose the job is.
    pub fn empty(claim: Claim, job: &Job) -> Self {
        Self {
            claim,
            request_digest: job.request_digest.clone(),
            timings: Timings::default(),
            answers: Vec::new(),
            fingerprint: None,
            partial: Vec::new(),
        }
    }

    /// What the answers of a job have come to.
    pub fn of(claim: Claim, job: &Job, timings: &Timings, answers: &[Answer]) -> Self {
        let begun = |answer: &Answer| Beginning { tokens: answer.tokens.clone(), logprobs: answer.logprobs.clone() };
        Self { timings: timings.clone(), answers: answers.iter().map(begun).collect(), ..Self::empty(claim, job) }
    }

    /// The same in the hands of another worker.
    #[must_use]
    pub fn taken_over(self, claim: Claim) -> Self {
        Self { claim, ..self }
    }

    /// The bytes that are stored.
    pub fn encode(&self) -> Result<Vec<u8>, Error> {
        envelope::write(self)
    }

    /// Reads what was stored. Fails on what another release wrote, and on garbage.
    pub fn decode(bytes: &[u8]) -> Result<Self, Error> {
        envelope::read(bytes, NOTHING)
    }

    /// Whether answers of this job can go on from here: it tells of the same request, and has as many answers of fitting
    /// lengths. What a foreign engine told has the lengths that the engine chose.
    pub fn fits(&self, job: &Job) -> bool {
        let (samples, wants_logprobs) = (job.samples as usize, job.sampling.logprobs.is_some());
        let own = |Beginning { tokens, logprobs }: &Beginning| {
            tokens.len() <= job.max_tokens as usize && logprobs.len() == if wants_logprobs { tokens.len() } else { 0 }
        };
        let foreign = self.partial.len() == samples;
        self.request_digest == job.request_digest
            && self.answers.len() == samples
            && (foreign || self.partial.is_empty() && self.answers.iter().all(own))
    }

    /// Tokens of all answers.
    pub fn tokens(&self) -> usize {
        self.answers.iter().map(|answer| answer.tokens.len()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{JobId, Name, outcome::Alternative, sampling::Sampling, subject::Stage};

    fn job() -> Job {
        let name = |text| Name::new(text).unwrap();
        Job {
            id: JobId::new("job-1").unwrap(),
            tenant: name("acme"),
            lane: name("batch"),
            model: name("smollm2"),
            prompt: vec![1],
            max_tokens: 3,
            samples: 2,
            sampling: Sampling::GREEDY,
            stop: Vec::new(),
            deadline_ms: None,
            metadata: Default::default(),
            request_digest: "ab".into(),
        }
    }

    fn checkpoint(job: &Job) -> Checkpoint {
        let claim = Claim { stage: Stage::Decode, sequence: 7, attempt: 2, worker: "w".into() };
        let answer = |tokens| Answer { tokens, ..Answer::default() };
        let timings = Timings { first_token_ms: 5.5, ..Timings::default() };
        let written = Checkpoint::of(claim, job, &timings, &[answer(vec![4, 5, 600]), answer(vec![4])]);
        Checkpoint { fingerprint: Some([8; 32]), ..written }
    }

    #[test]
    fn checkpoints_survive_the_wire_and_their_bytes_are_pinned() {
        let written = checkpoint(&job());
        let bytes = written.encode().unwrap();
        assert_eq!(Checkpoint::decode(&bytes).unwrap(), written);
        // A change of these bytes is a change of the wire format: raise the envelopes' VERSION with it.
        assert_eq!(blake3::hash(&bytes).to_hex()[..16].to_string(), "85e15423645d6d4b");
        for cut in 0..bytes.len() {
            assert!(Checkpoint::decode(&bytes[..cut]).is_err(), "{cut}");
        }
        let piece = Partial { text: "a".into(), pieces: 1, message: "{}".into(), finish_reason: None, prompt: vec![7] };
        let foreign = Checkpoint { partial: vec![piece], ..written };
        assert_eq!(Checkpoint::decode(&foreign.encode().unwrap()).unwrap(), foreign);
        let trailing = [&bytes[..], &[0]].concat();
        assert!(matches!(Checkpoint::decode(&trailing), Err(Error::Trailing(1))));
    }

    #[test]
    fn what_the_release_before_wrote_is_read() {
        let bytes = envelope::tests::recorded(include_str!("../tests/previous/checkpoint.hex"));
        assert_eq!(Checkpoint::decode(&bytes).unwrap(), checkpoint(&job()));
    }

    #[test]
    fn only_the_beginnings_of_the_same_jobs_answers_fit() {
        let job = job();
        let fits = |change: fn(&mut Checkpoint)| {
            let mut changed = checkpoint(&job);
            change(&mut changed);
            changed.fits(&job)
        };
        assert!(fits(|_| {}));
        assert!(!fits(|checkpoint| checkpoint.request_digest.clear()));
        assert!(!fits(|checkpoint| checkpoint.answers.truncate(1)));
        assert!(!fits(|checkpoint| checkpoint.answers.clear()));
        assert!(!fits(|checkpoint| checkpoint.answers[0].tokens.push(1)));
        let likelihood = || TokenLogprob {
            chosen: Alternative { token: "a".into(), id: 4, logprob: -0.5, bytes: vec![b'a'] },
            top_logprobs: Vec::new(),
        };
        let mut told = checkpoint(&job);
        told.answers[1].logprobs.push(likelihood());
        assert!(!told.fits(&job), "nobody asked for them");
        let asked = Job { sampling: Sampling { logprobs: Some(0), ..Sampling::GREEDY }, ..job };
        assert!(!told.fits(&asked), "those of the first answer are missing");
        told.answers[0].logprobs = vec![likelihood(); 3];
        assert!(told.fits(&asked));
        // An engine may tell likelihoods without ids, ids without likelihoods, and more than Baton would have asked for.
        let mut foreign = Checkpoint { partial: vec![Partial::default(); 2], ..told };
        foreign.answers[0].tokens.clear();
        foreign.answers[1].tokens = vec![4; 9];
        assert!(foreign.fits(&asked) && foreign.fits(&Job { sampling: Sampling::GREEDY, ..asked.clone() }));
        foreign.partial.truncate(1);
        assert!(!foreign.fits(&asked), "an answer is missing");
    }
}
