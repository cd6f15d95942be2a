//! How the KV cache of one answer comes into the model's pages: pieces from the store, in order, as they arrive, and then
//! what no piece holds.

use std::{collections::VecDeque, time::Duration};

use baton_contract::causes;
use baton_model::model::{self, Model, SequenceId, Step};
use tokio::time::Instant;

use crate::messages::{Fetch, FetchedPiece};

/// Tokens that are imported between two steps, whoever joins: the running answers wait for that, some 6 ms on a CPU.
pub const IMPORT_TOKENS_PER_STEP: usize = 512;
/// Imported tokens that a computed one counts as. It takes longer than that, but a pass of few tokens wastes its time.
pub const COMPUTE_COST: usize = 2;
/// Tokens that are computed between two steps at most.
pub(crate) const COMPUTE_TOKENS_PER_STEP: usize = IMPORT_TOKENS_PER_STEP / COMPUTE_COST;

/// How far an answer's KV cache is on its way.
pub(crate) enum Kv {
    Elsewhere,
    /// Asked for. The answer has no pages yet.
    Wanted(Pieces),
    /// On its way into pages.
    Importing(Importing),
    /// In pages: the answer takes part in every step. So many tokens before its last one are left for the next step to
    /// compute with it.
    Resident {
        sequence: SequenceId,
        rest: usize,
    },
}

/// Pieces on their way from the store.
pub(crate) struct Pieces {
    /// Which of the engine's fetches brings them.
    fetch: Fetch,
    came: VecDeque<FetchedPiece>,
    /// Tokens of those that have not come.
    awaited: usize,
}

pub(crate) struct Importing {
    pub(crate) sequence: SequenceId,
    pieces: Pieces,
    /// Tokens computed because the store did not have their piece.
    recomputed: usize,
    /// Tokens that are computed at a time, at most.
    pass: usize,
}

/// What has become of a KV cache on its way.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// It is there, but for the `rest` that the next step computes. So many tokens had to be computed again because their
    /// piece was missing.
    All { recomputed: usize, rest: usize },
    /// The running answers have waited long enough.
    OutOfBudget,
    /// The next piece has not come yet.
    AwaitsPiece,
}

impl Kv {
    /// Whether the answer, `stored` of whose tokens the store holds, could join if there were pages: something of its cache
    /// can be brought, or it needs nothing from the store.
    pub(crate) fn can_join(&self, stored: usize) -> bool {
        match self {
            Self::Elsewhere => stored == 0,
            Self::Wanted(pieces) => !pieces.came.is_empty(),
            Self::Importing(_) | Self::Resident { .. } => false,
        }
    }

    /// Whether everything has come that was asked for, and has no pages.
    pub(crate) fn lies_ready(&self) -> bool {
        matches!(self, Self::Wanted(pieces) if pieces.awaited == 0)
    }

    /// Gives the answer a sequence, empty at first.
    pub(crate) fn join(&mut self, model: &mut dyn Model) {
        let pieces = match std::mem::replace(self, Self::Elsewhere) {
            Self::Wanted(pieces) => pieces,
            Self::Elsewhere | Self::Importing(_) | Self::Resident { .. } => Pieces::none(),
        };
        *self =
            Self::Importing(Importing { sequence: model.open(), pieces, recomputed: 0, pass: COMPUTE_TOKENS_PER_STEP });
    }

    /// Takes a piece that a fetch has brought, if this is the fetch that was asked for.
    pub(crate) fn take(&mut self, fetch: Fetch, piece: &FetchedPiece) -> bool {
        let (Self::Wanted(pieces) | Self::Importing(Importing { pieces, .. })) = self else { return false };
        let mine = pieces.fetch == fetch && piece.tokens() <= pieces.awaited;
        if mine {
            pieces.awaited -= piece.tokens();
            pieces.came.push_back(piece.clone());
        }
        mine
    }

    pub(crate) fn close(&mut self, model: &mut dyn Model) {
        if let Self::Importing(Importing { sequence, .. }) | Self::Resident { sequence, .. } = *self {
            model.close(sequence);
        }
        *self = Self::Elsewhere;
    }
}

impl Pieces {
    /// Those of `stored` tokens that a fetch will bring.
    pub(crate) fn of(fetch: Fetch, stored: usize) -> Self {
        Self { fetch, came: VecDeque::new(), awaited: stored }
    }

    /// None is awaited, whatever fetch may bring it.
    fn none() -> Self {
        Self::of(Fetch::Wanted(0), 0)
    }
}

impl Importing {
    /// Brings what has come, and then computes what the store does not hold: all of `tokens` but the last, and but for a
    /// rest of at most `rests` tokens.
    pub(crate) fn bring(
        &mut self,
        model: &mut dyn Model,
        tokens: &[u32],
        budget: &mut usize,
        rests: &mut usize,
    ) -> Result<Progress, model::Error> {
        let Self { sequence, pieces, recomputed, pass } = self;
        loop {
            let start = model.len(*sequence)?;
            let missing = match pieces.came.front() {
                Some(FetchedPiece::Block(_)) if *budget == 0 => return Ok(Progress::OutOfBudget),
                Some(FetchedPiece::Block(block)) => {
                    model.import(*sequence, &tokens[start..start + block.tokens], block)?;
                    *budget = budget.saturating_sub(block.tokens);
                    pieces.came.pop_front();
                    continue;
                }
                Some(FetchedPiece::Missing { tokens: 0 }) => {
                    pieces.came.pop_front();
                    continue;
                }
                Some(FetchedPiece::Missing { tokens }) => *tokens,
                None if pieces.awaited > 0 => return Ok(Progress::AwaitsPiece),
                // A rest of the prompt that nobody has prefilled, and what was generated if the answer was in the batch before.
                None => {
                    let rest = tokens.len() - 1 - start;
                    if rest <= *rests && rest * COMPUTE_COST <= *budget {
                        *rests -= rest;
                        *budget -= rest * COMPUTE_COST;
                        return Ok(Progress::All { recomputed: *recomputed, rest });
                    }
                    rest
                }
            };
            let most = missing.min(*budget / COMPUTE_COST);
            if most == 0 {
                return Ok(Progress::OutOfBudget);
            }
            let count = compute(model, *sequence, &tokens[start..start + most], pass)?;
            *budget -= count * COMPUTE_COST;
            if let Some(FetchedPiece::Missing { tokens }) = pieces.came.front_mut() {
                *tokens -= count;
                *recomputed += count;
            }
        }
    }
}

/// Computes the next tokens of a sequence in one pass of at most `pass` of them, and returns how many.
pub(crate) fn compute(
    model: &mut dyn Model,
    sequence: SequenceId,
    tokens: &[u32],
    pass: &mut usize,
) -> Result<usize, model::Error> {
    let start = model.len(sequence)?;
    loop {
        let count = tokens.len().min((*pass).max(1));
        match model.forward(&[Step { sequence, tokens: &tokens[..count], logits: 0 }]) {
            Ok(_) => return Ok(count),
            // The device may have too little memory for so many at a time.
            Err(error) if count > 1 && model.len(sequence)? == start => {
                tracing::warn!(error = %causes(&error), tokens = count, "tokens could not be computed; fewer are tried at a time");
                *pass = count / 2;
            }
            Err(error) => return Err(error),
        }
    }
}

/// Time in which an answer could have gone on but for a piece of its KV cache.
#[derive(Default)]
pub(crate) struct Stall {
    since: Option<Instant>,
    total: Duration,
}

impl Stall {
    pub(crate) fn begin(&mut self) {
        self.since.get_or_insert_with(Instant::now);
    }

    /// Ends with a piece that came at `at`.
    pub(crate) fn end(&mut self, at: Instant) {
        if let Some(since) = self.since.take() {
            self.total += at.saturating_duration_since(since);
        }
    }

    /// What has not been told yet.
    pub(crate) fn take(&mut self) -> Duration {
        std::mem::take(&mut self.total)
    }
}
