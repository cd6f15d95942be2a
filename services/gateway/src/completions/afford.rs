//! Room for a result while it is sent. One that finds none is forgotten and read again once there is room, so that no result
//! waits in memory for others to be read.

use baton_contract::{
    Name,
    outcome::{Logprobs, Outcome},
};
use baton_openai::ApiError;

use crate::{State, budget::Room, refusal::Refusal};

/// Bytes of an answer besides its texts, about.
const FRAME: u64 = 1 << 10;
/// Bytes that a token takes in a result, besides its text.
const TOKEN: u64 = 8;

/// The result with the room that it and its answer take.
pub(super) async fn afford(
    state: &State,
    tenant: &Name,
    outcome: Box<Outcome>,
) -> Result<(Box<Outcome>, Room), Refusal> {
    let bytes = weight(&outcome);
    if let Some(room) = state.budget.try_take(bytes) {
        return Ok((outcome, room));
    }
    let job = outcome.id.clone();
    drop(outcome);
    let room = state.budget.take(bytes).await?;
    let again = state.jobs.result(tenant, &job).await?;
    let again = again.ok_or_else(|| ApiError::unavailable("the job's result can't be read any more"))?;
    Ok((Box::new(again), room))
}

/// Bytes that a result takes in memory together with the answer that is made of it, about.
fn weight(outcome: &Outcome) -> u64 {
    let logprobs = |logprobs: &Option<Logprobs>| -> u64 {
        logprobs.iter().flat_map(|logprobs| &logprobs.content).map(|logprob| 2 * logprob.json_bytes() as u64).sum()
    };
    let answer = |text: &str, tokens: usize| 3 * text.len() as u64 + TOKEN * tokens as u64;
    let first = answer(&outcome.text, outcome.tokens.len()) + logprobs(&outcome.logprobs);
    let choices = outcome.choices.iter();
    let all = choices.map(|choice| answer(&choice.text, choice.tokens.len()) + logprobs(&choice.logprobs));
    FRAME + first + all.sum::<u64>()
}
