//! Where a job's answers stand when this worker begins with them: at nothing, at the first token that prefill sampled, or
//! where another worker's checkpoint left them.

use baton_contract::{
    causes,
    checkpoint::{self, Checkpoint},
    envelope::FirstToken,
    job::Job,
};
use baton_model::generation::{self, Emitted, Generation, Generator};

/// A job's answers as this worker finds them.
pub(crate) struct Beginning {
    pub(crate) answers: Vec<Begun>,
    /// Tokens that were taken over from a checkpoint, without those that the job's message brings.
    pub(crate) resumed: usize,
}

/// One of a job's answers.
pub(crate) struct Begun {
    pub(crate) choice: u32,
    /// Has accepted the tokens so far.
    pub(crate) generation: Generation,
    pub(crate) emitted: Vec<Emitted>,
    /// How many of the tokens another worker has published.
    pub(crate) told: usize,
}

/// Why answers can't go on from a checkpoint.
#[derive(Debug, thiserror::Error)]
enum Unfit {
    #[error("answer {choice} begins with token {found}, but prefill sampled {expected}")]
    OtherFirst { choice: u32, expected: u32, found: u32 },
    #[error("answer {choice} has token {token}, which is outside the vocabulary")]
    UnknownToken { choice: u32, token: u32 },
    #[error("answer {choice} goes on after its end")]
    BeyondEnd { choice: u32 },
    #[error(transparent)]
    Generation(#[from] generation::Error),
}

/// Begins each of a job's answers. Compiles the job's constraint, so it may take some tens of milliseconds.
pub(crate) fn begin(
    generator: &Generator,
    job: &Job,
    first: &[FirstToken],
    checkpoint: Option<&Checkpoint>,
) -> Result<Beginning, generation::Error> {
    if let Some(checkpoint) = checkpoint {
        match resume(generator, job, first, checkpoint) {
            Ok(answers) => {
                let brought = usize::from(!first.is_empty());
                let resumed = answers.iter().map(|answer| answer.told.saturating_sub(brought)).sum();
                return Ok(Beginning { answers, resumed });
            }
            Err(error) => {
                tracing::warn!(error = %causes(&error), "a checkpoint does not fit its job, which starts its answers again")
            }
        }
    }
    let mut answers = Vec::new();
    for (choice, mut generation) in (0..).zip(generator.start_all(job)?) {
        let first = first.get(choice as usize);
        let first = first.map(|first| generation.accept(first.token, first.logprobs.clone())).transpose()?;
        answers.push(Begun { choice, generation, emitted: first.into_iter().collect(), told: 0 });
    }
    Ok(Beginning { answers, resumed: 0 })
}

/// The same, from a checkpoint.
fn resume(
    generator: &Generator,
    job: &Job,
    first: &[FirstToken],
    checkpoint: &Checkpoint,
) -> Result<Vec<Begun>, Unfit> {
    let vocabulary = generator.vocabulary().spec().vocabulary;
    let mut answers = Vec::new();
    for ((choice, mut generation), beginning) in (0..).zip(generator.start_all(job)?).zip(&checkpoint.answers) {
        let checkpoint::Beginning { tokens, logprobs } = beginning;
        if let Some(FirstToken { token: expected, .. }) = first.get(choice as usize)
            && tokens.first() != Some(expected)
        {
            return Err(Unfit::OtherFirst {
                choice,
                expected: *expected,
                found: tokens.first().copied().unwrap_or_default(),
            });
        }
        let mut emitted: Vec<Emitted> = Vec::with_capacity(tokens.len());
        for (place, &token) in tokens.iter().enumerate() {
            if token as usize >= vocabulary {
                return Err(Unfit::UnknownToken { choice, token });
            }
            if emitted.last().is_some_and(|last| last.finish.is_some()) {
                return Err(Unfit::BeyondEnd { choice });
            }
            emitted.push(generation.accept(token, logprobs.get(place).cloned())?);
        }
        answers.push(Begun { choice, generation, told: emitted.len(), emitted });
    }
    Ok(answers)
}

#[cfg(test)]
mod tests;
