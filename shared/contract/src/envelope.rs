//! The messages between stages: a version byte, then bincode, never read beyond [`MAX_BYTES`].

use bincode::{Decode, Encode, config};

use crate::{
    job::Job,
    outcome::{Timings, TokenLogprob},
};

/// The largest envelope a stage reads; the broker's `max_payload` lies at the same value.
pub const MAX_BYTES: usize = 8 << 20;

const VERSION: u8 = 2;

/// Work for prefill.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub struct PrefillTask {
    pub job: Job,
    pub timings: Timings,
}

/// Work for decode: the baton.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub struct DecodeTask {
    pub job: Job,
    pub timings: Timings,
    /// The answer's first token, which prefill sampled from the prompt's last logits.
    pub first_token: u32,
    /// Its log-probabilities, if the job asks for them.
    pub first_logprobs: Option<TokenLogprob>,
    /// The objects that hold the prompt's KV cache, in order; their tokens add up to the prompt.
    pub pieces: Vec<Piece>,
}

/// One object of a prompt's KV cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Piece {
    pub id: [u8; 32],
    pub tokens: u32,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("expected an envelope of version {VERSION}, found {0}; all workers of a pipeline must be of one release")]
    Version(u8),
    #[error("expected an envelope of at most {MAX_BYTES} bytes, found {0}")]
    TooLarge(usize),
    #[error("expected an envelope, found nothing")]
    Empty,
    #[error("{0} bytes follow the envelope")]
    Trailing(usize),
    #[error("cannot read the envelope: {0}")]
    Malformed(#[from] bincode::error::DecodeError),
    #[error("cannot write the envelope: {0}")]
    Unwritable(#[from] bincode::error::EncodeError),
    #[error("the pieces hold {pieces} tokens, the prompt has {prompt}")]
    PiecesMismatch { pieces: u64, prompt: usize },
    #[error("the prompt is empty")]
    EmptyPrompt,
}

/// An envelope of some stage.
pub trait Task: Sized + Send + Encode + Decode<()> + 'static {
    fn job(&self) -> &Job;
    fn timings(&self) -> &Timings;
    /// What the types alone don't guarantee.
    fn check(&self) -> Result<(), Error> {
        if self.job().prompt.is_empty() { Err(Error::EmptyPrompt) } else { Ok(()) }
    }
}

impl Task for PrefillTask {
    fn job(&self) -> &Job {
        &self.job
    }

    fn timings(&self) -> &Timings {
        &self.timings
    }
}

impl Task for DecodeTask {
    fn job(&self) -> &Job {
        &self.job
    }

    fn timings(&self) -> &Timings {
        &self.timings
    }

    fn check(&self) -> Result<(), Error> {
        let pieces = self.pieces.iter().map(|piece| u64::from(piece.tokens)).sum();
        let prompt = self.job.prompt.len();
        if prompt == 0 {
            Err(Error::EmptyPrompt)
        } else if pieces == prompt as u64 {
            Ok(())
        } else {
            Err(Error::PiecesMismatch { pieces, prompt })
        }
    }
}

pub fn encode<T: Task>(task: &T) -> Result<Vec<u8>, Error> {
    let mut bytes = vec![VERSION];
    bincode::encode_into_std_write(task, &mut bytes, config::standard())?;
    if bytes.len() > MAX_BYTES { Err(Error::TooLarge(bytes.len())) } else { Ok(bytes) }
}

pub fn decode<T: Task>(bytes: &[u8]) -> Result<T, Error> {
    if bytes.len() > MAX_BYTES {
        return Err(Error::TooLarge(bytes.len()));
    }
    let (version, body) = bytes.split_first().ok_or(Error::Empty)?;
    if *version != VERSION {
        return Err(Error::Version(*version));
    }
    #[expect(clippy::disallowed_methods, reason = "capped at MAX_BYTES")]
    let (task, read): (T, usize) = bincode::decode_from_slice(body, config::standard().with_limit::<MAX_BYTES>())?;
    if read != body.len() {
        return Err(Error::Trailing(body.len() - read));
    }
    task.check()?;
    Ok(task)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        JobId, Name,
        outcome::Alternative,
        sampling::{Constraint, Sampling},
    };

    fn task() -> DecodeTask {
        let name = |text| Name::new(text).unwrap();
        DecodeTask {
            job: Job {
                id: JobId::new("job-1").unwrap(),
                tenant: name("acme"),
                lane: name("batch"),
                model: name("smollm2"),
                prompt: vec![1, 2, 300],
                max_tokens: 9,
                sampling: Sampling {
                    min_p: 0.5,
                    logit_bias: vec![(7, -1.5)],
                    constraint: Some(Constraint::Regex("a+".into())),
                    logprobs: Some(1),
                    ..Sampling::GREEDY
                },
                stop: vec!["\n".into()],
                deadline_ms: Some(5),
                metadata: [("k".into(), "v".into())].into(),
                request_digest: "ab".into(),
            },
            timings: Timings::default(),
            first_token: 7,
            first_logprobs: Some(TokenLogprob {
                chosen: Alternative { token: "a".into(), id: 7, logprob: -0.5, bytes: vec![b'a'] },
                top_logprobs: Vec::new(),
            }),
            pieces: vec![Piece { id: [9; 32], tokens: 3 }],
        }
    }

    #[test]
    fn envelopes_survive_the_wire_and_their_bytes_are_pinned() {
        let bytes = encode(&task()).unwrap();
        assert_eq!(decode::<DecodeTask>(&bytes).unwrap(), task());
        // A change of these bytes is a change of the wire format: raise VERSION with it.
        assert_eq!(blake3::hash(&bytes).to_hex()[..16].to_string(), "d035688f7af47790");
    }

    #[test]
    fn pieces_must_add_up_to_the_prompt() {
        let mut wrong = task();
        wrong.pieces[0].tokens = 4;
        assert!(matches!(decode::<DecodeTask>(&encode(&wrong).unwrap()), Err(Error::PiecesMismatch { .. })));
    }

    proptest! {
        #[test]
        fn hostile_bytes_are_an_error_and_no_more(cut in 0usize..200, flip in 0usize..200, bit in 0u8..8, noise: Vec<u8>) {
            let mut bytes = encode(&task()).unwrap();
            bytes.truncate(cut.min(bytes.len()));
            if let Some(byte) = bytes.get_mut(flip) {
                *byte ^= 1 << bit;
            }
            let _ = decode::<DecodeTask>(&bytes);
            let _ = decode::<DecodeTask>(&noise);
            let _ = decode::<PrefillTask>(&noise);
        }
    }
}
