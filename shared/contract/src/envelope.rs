//! The messages between stages: a version byte, then bincode, never read beyond [`MAX_BYTES`].
//!
//! A release writes one version and reads that and the one before. A new version adds fields at the end only, so that what the
//! version before did not write reads as if it were absent.

use bincode::{Decode, Encode, config};

use crate::{
    job::Job,
    outcome::{Timings, TokenLogprob},
    request::MAX_SAMPLES,
    upstream::Ask,
};

/// The largest envelope a stage reads; the broker's `max_payload` lies at the same value.
pub const MAX_BYTES: usize = 8 << 20;

const VERSION: u8 = 5;
/// What the release before wrote.
const PREVIOUS: u8 = 4;

/// A model's [fingerprint](DecodeTask::fingerprint).
pub type Fingerprint = [u8; 32];

/// A fingerprint, or a part of one, as it is shown.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The last field that version 5 added to a message, as bincode writes it when it is absent: no request to a foreign engine,
/// and no piece of its answer.
pub(crate) const NOTHING: &[u8] = &[0];

/// Work for prefill.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub struct PrefillTask {
    /// The job.
    pub job: Job,
    /// Where its time went so far.
    pub timings: Timings,
    /// What a foreign engine is asked, if one answers: then the job has no prompt.
    pub ask: Option<Ask>,
}

/// Work for decode: the baton.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub struct DecodeTask {
    /// The job.
    pub job: Job,
    /// Where its time went so far.
    pub timings: Timings,
    /// The first token of each of the job's answers, which prefill sampled from the prompt's last logits. None if decode
    /// is to prefill what the pieces don't hold.
    pub first: Vec<FirstToken>,
    /// The objects that hold the prompt's KV cache, in order; their tokens add up to the prompt, or without first tokens to
    /// less of its beginning.
    pub pieces: Vec<Piece>,
    /// Of the model that computed the pieces and sampled the first tokens: no other goes on with them. None if there are none,
    /// and from a worker of the release before.
    pub fingerprint: Option<Fingerprint>,
    /// What a foreign engine is asked, if one answers: then the job has no prompt, and there are no first tokens and pieces.
    pub ask: Option<Ask>,
}

/// How an answer begins.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub struct FirstToken {
    /// Its id.
    pub token: u32,
    /// If the job asks for them.
    pub logprobs: Option<TokenLogprob>,
}

/// One object of a prompt's KV cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Piece {
    /// Its name in the store.
    pub id: [u8; 32],
    /// Tokens that it holds.
    pub tokens: u32,
}

/// Why a message can't be read or written. The text of each variant says what it is.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say what the variants mean")]
pub enum Error {
    #[error(
        "expected an envelope of version {PREVIOUS} or {VERSION}, found {0}; workers of a pipeline may be one release apart"
    )]
    Version(u8),
    #[error("expected an envelope of at most {MAX_BYTES} bytes, found {0}")]
    TooLarge(usize),
    #[error("expected an envelope, found nothing")]
    Empty,
    #[error("{0} bytes follow the envelope")]
    Trailing(usize),
    #[error("cannot read the envelope")]
    Malformed(#[from] bincode::error::DecodeError),
    #[error("cannot write the envelope")]
    Unwritable(#[from] bincode::error::EncodeError),
    #[error("the pieces hold {pieces} tokens, the prompt has {prompt}")]
    PiecesMismatch { pieces: u64, prompt: usize },
    #[error("{first} answers have a first token, the job has {samples} answers")]
    FirstTokensMismatch { first: usize, samples: u32 },
    #[error("the prompt is empty")]
    EmptyPrompt,
    #[error("expected a prompt or a request to a foreign engine, found both")]
    TwoPrompts,
    #[error("a piece is empty")]
    EmptyPiece,
    #[error("expected 1 to {MAX_SAMPLES} answers, found {0}")]
    Samples(u32),
}

/// An envelope of some stage.
pub trait Task: Sized + Send + Encode + Decode<()> + 'static {
    /// What an envelope of the version before lacks at its end.
    const ADDED: &'static [u8];
    /// The job that it is about.
    fn job(&self) -> &Job;
    /// The job's timings so far.
    fn timings(&self) -> &Timings;
    /// What a foreign engine is asked, if one answers.
    fn ask(&self) -> Option<&Ask>;
    /// What the types alone don't guarantee.
    fn check(&self) -> Result<(), Error> {
        let job = self.job();
        if job.prompt.is_empty() != self.ask().is_some() {
            Err(if job.prompt.is_empty() { Error::EmptyPrompt } else { Error::TwoPrompts })
        } else if !(1..=MAX_SAMPLES).contains(&job.samples) {
            Err(Error::Samples(job.samples))
        } else {
            self.check_own()
        }
    }
    /// The same of what is not the job's.
    fn check_own(&self) -> Result<(), Error> {
        Ok(())
    }
}

impl Task for PrefillTask {
    const ADDED: &'static [u8] = NOTHING;

    fn job(&self) -> &Job {
        &self.job
    }

    fn timings(&self) -> &Timings {
        &self.timings
    }

    fn ask(&self) -> Option<&Ask> {
        self.ask.as_ref()
    }
}

impl Task for DecodeTask {
    const ADDED: &'static [u8] = NOTHING;

    fn job(&self) -> &Job {
        &self.job
    }

    fn timings(&self) -> &Timings {
        &self.timings
    }

    fn ask(&self) -> Option<&Ask> {
        self.ask.as_ref()
    }

    fn check_own(&self) -> Result<(), Error> {
        let pieces: u64 = self.pieces.iter().map(|piece| u64::from(piece.tokens)).sum();
        let (prompt, first, samples) = (self.job.prompt.len(), self.first.len(), self.job.samples);
        // Who is to sample the first tokens needs the logits of the prompt's last, and must compute that one at least.
        let fits =
            if first == 0 { pieces < prompt as u64 || prompt == 0 && pieces == 0 } else { pieces == prompt as u64 };
        if first != 0 && first != samples as usize {
            Err(Error::FirstTokensMismatch { first, samples })
        } else if self.pieces.iter().any(|piece| piece.tokens == 0) {
            Err(Error::EmptyPiece)
        } else if fits {
            Ok(())
        } else {
            Err(Error::PiecesMismatch { pieces, prompt })
        }
    }
}

/// The bytes of a message. Fails on a task that no worker would accept.
pub fn encode<T: Task>(task: &T) -> Result<Vec<u8>, Error> {
    write(task)
}

/// Reads a message. Fails on another release's, and on garbage.
pub fn decode<T: Task>(bytes: &[u8]) -> Result<T, Error> {
    let task: T = read(bytes, T::ADDED)?;
    task.check()?;
    Ok(task)
}

pub(crate) fn write<T: Encode>(content: &T) -> Result<Vec<u8>, Error> {
    let mut bytes = vec![VERSION];
    bincode::encode_into_std_write(content, &mut bytes, config::standard())?;
    if bytes.len() > MAX_BYTES { Err(Error::TooLarge(bytes.len())) } else { Ok(bytes) }
}

/// What the types alone don't guarantee is not checked. `added` is what the version before lacks at its end.
pub(crate) fn read<T: Decode<()>>(bytes: &[u8], added: &[u8]) -> Result<T, Error> {
    if bytes.len() > MAX_BYTES {
        return Err(Error::TooLarge(bytes.len()));
    }
    let (version, body) = bytes.split_first().ok_or(Error::Empty)?;
    let whole;
    let body = match *version {
        VERSION => body,
        PREVIOUS => {
            whole = [body, added].concat();
            &whole
        }
        other => return Err(Error::Version(other)),
    };
    #[expect(clippy::disallowed_methods, reason = "capped at MAX_BYTES")]
    let (content, read): (T, usize) = bincode::decode_from_slice(body, config::standard().with_limit::<MAX_BYTES>())?;
    if read != body.len() {
        return Err(Error::Trailing(body.len() - read));
    }
    Ok(content)
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        JobId, Name,
        outcome::Alternative,
        sampling::{Constraint, Sampling},
        upstream::Handover,
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
                samples: 1,
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
            first: vec![FirstToken {
                token: 7,
                logprobs: Some(TokenLogprob {
                    chosen: Alternative { token: "a".into(), id: 7, logprob: -0.5, bytes: vec![b'a'] },
                    top_logprobs: Vec::new(),
                }),
            }],
            pieces: vec![Piece { id: [9; 32], tokens: 3 }],
            fingerprint: Some([8; 32]),
            ask: None,
        }
    }

    #[test]
    fn envelopes_survive_the_wire_and_their_bytes_are_pinned() {
        let bytes = encode(&task()).unwrap();
        assert_eq!(decode::<DecodeTask>(&bytes).unwrap(), task());
        // A change of these bytes is a change of the wire format: raise VERSION with it.
        assert_eq!(blake3::hash(&bytes).to_hex()[..16].to_string(), "63e30b527ea357b8");
    }

    /// Bytes that the release before wrote.
    pub(crate) fn recorded(hex: &str) -> Vec<u8> {
        let digits = hex.trim().as_bytes().as_chunks::<2>().0;
        digits.iter().map(|pair| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
    }

    #[test]
    fn what_the_release_before_wrote_is_read() {
        let bytes = recorded(include_str!("../tests/previous/decode.hex"));
        assert_eq!(bytes[0], PREVIOUS);
        assert_eq!(decode::<DecodeTask>(&bytes).unwrap(), task());
        let timings = Timings { accepted_at_ms: 1_700_000_000_000, prefill_worker: "w".into(), ..Timings::default() };
        let bytes = recorded(include_str!("../tests/previous/prefill.hex"));
        assert_eq!(decode::<PrefillTask>(&bytes).unwrap(), PrefillTask { job: task().job, timings, ask: None });
        for cut in 0..bytes.len() {
            assert!(decode::<PrefillTask>(&bytes[..cut]).is_err(), "{cut}");
        }
        for version in [PREVIOUS - 1, VERSION + 1] {
            let other = [&[version], &bytes[1..]].concat();
            assert!(matches!(decode::<PrefillTask>(&other), Err(Error::Version(found)) if found == version));
        }
    }

    #[test]
    fn pieces_and_first_tokens_must_fit_the_job() {
        let read = |change: fn(&mut DecodeTask)| {
            let mut changed = task();
            change(&mut changed);
            decode::<DecodeTask>(&encode(&changed).unwrap())
        };
        assert!(matches!(read(|task| task.pieces[0].tokens = 4), Err(Error::PiecesMismatch { pieces: 4, prompt: 3 })));
        assert!(matches!(read(|task| task.pieces[0].tokens = 2), Err(Error::PiecesMismatch { .. })));
        assert!(matches!(read(|task| task.pieces.push(Piece { id: [9; 32], tokens: 0 })), Err(Error::EmptyPiece)));
        assert!(matches!(read(|task| task.job.samples = 2), Err(Error::FirstTokensMismatch { first: 1, samples: 2 })));
        assert!(matches!(read(|task| task.job.samples = 17), Err(Error::Samples(17))));
        assert!(matches!(read(|task| task.job.samples = 0), Err(Error::Samples(0))));
        assert!(matches!(read(|task| task.job.prompt.clear()), Err(Error::EmptyPrompt)));
        // Without first tokens decode computes the rest, which is the last token at least.
        assert!(matches!(read(|task| task.first.clear()), Err(Error::PiecesMismatch { .. })));
        let rest = |task: &mut DecodeTask| {
            task.first.clear();
            task.pieces[0].tokens = 2;
        };
        assert!(read(rest).is_ok());
        let all = |task: &mut DecodeTask| {
            task.first.clear();
            task.pieces.clear();
            task.job.samples = 16;
        };
        assert!(read(all).is_ok());
        // A foreign engine gets the request, and there is no prompt beside it.
        let ask = |task: &mut DecodeTask| {
            (task.first, task.pieces) = (Vec::new(), Vec::new());
            task.job.prompt.clear();
            task.ask =
                Some(Ask { chat: true, body: "{}".into(), handover: Some(Handover { params: "{}".into(), at_ms: 0 }) });
        };
        assert_eq!(read(ask).unwrap().ask.unwrap().body, "{}");
        assert!(matches!(read(|task| task.ask = Some(Ask::default())), Err(Error::TwoPrompts)));
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
