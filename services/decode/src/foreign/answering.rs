//! A job whose answers a foreign engine generates: its pieces, and what they come to.

use baton_bus::stage::{Next, Retry, StageError};
use baton_contract::{
    Name,
    checkpoint::{Checkpoint, Partial},
    job::Answer,
    outcome::{Code, Delta, Failure, Outcome, Timings, TokenLogprob, Usage},
    upstream::{merge, whole},
};
use baton_upstream::{Piece, Resume};
use serde_json::{Map, Value};
use tokio::time::Instant;

use crate::telling::{Telling, ms};

pub(crate) struct Answering<'a> {
    telling: Telling<'a>,
    /// The timings of the job's message, which hold if its answer begins again.
    fresh: Timings,
    /// Whether live readers are to be told with the next piece from where on it counts: whether the answer goes on there, and does
    /// not begin again.
    to_mark: Option<bool>,
    /// Pieces of each answer that were told.
    pieces: Vec<u32>,
    /// The prompt's token ids, if the engine tells them.
    prompt: Vec<u32>,
    /// What the engine says of the whole answer.
    usage: Option<Usage>,
    /// Tokens that this worker was told, as far as can be seen.
    generated: usize,
    /// Whether the prompt was computed although its KV cache was to come.
    recomputed: bool,
    taken: Instant,
    /// Since when an instance answers, and its first piece is there.
    began: Option<Instant>,
    first: Option<Instant>,
}

impl<'a> Answering<'a> {
    /// Begins with nothing.
    pub(crate) fn new(telling: Telling<'a>) -> Self {
        Self {
            fresh: telling.timings.clone(),
            to_mark: None,
            pieces: vec![0; telling.answers.len()],
            telling,
            prompt: Vec::new(),
            usage: None,
            generated: 0,
            recomputed: false,
            taken: Instant::now(),
            began: None,
            first: None,
        }
    }

    pub(crate) fn tenant(&self) -> &Name {
        &self.telling.job.tenant
    }

    /// Takes over what another worker has left.
    pub(crate) fn restore(&mut self, checkpoint: Checkpoint) {
        let Checkpoint { partial, answers, timings, .. } = checkpoint;
        if partial.len() != self.pieces.len() {
            return;
        }
        for (place, (partial, beginning)) in partial.into_iter().zip(answers).enumerate() {
            let Partial { text, pieces, message, finish_reason, prompt } = partial;
            self.telling.begun |= pieces > 0;
            self.pieces[place] = pieces;
            let message = serde_json::from_str(&message).unwrap_or_default();
            let (tokens, logprobs) = (beginning.tokens, beginning.logprobs);
            self.telling.answers[place] = Answer { text, tokens, logprobs, finish_reason, message };
            if !prompt.is_empty() {
                self.prompt = prompt;
            }
        }
        if self.telling.begun {
            let Timings { decode_attempt, ref decode_worker, .. } = self.fresh;
            let (decode_worker, resumed_tokens) = (decode_worker.clone(), self.tokens());
            self.telling.timings = Timings { decode_attempt, decode_worker, resumed_tokens, ..timings };
        }
    }

    /// Where the answer stands, if it is one, and has begun and not ended.
    pub(crate) fn resume(&self) -> Option<Resume> {
        let ([answer], [pieces]) = (&self.telling.answers[..], &self.pieces[..]) else { return None };
        let begun = *pieces > 0 && answer.finish_reason.is_none();
        begun.then(|| Resume { partial: partial(answer, *pieces, &self.prompt), tokens: answer.tokens.clone() })
    }

    /// Tells live readers with the next piece that the answers go on from where they stand, or begin again. Until then what there is
    /// of them stays: the engine may be gone.
    pub(crate) fn will_mark(&mut self, goes_on: bool) {
        self.to_mark = Some(goes_on);
    }

    async fn mark(&mut self, goes_on: bool) -> Result<(), StageError> {
        if !goes_on && self.has_told() {
            self.forget();
            // The readers are told other words now, on which the next worker must not build the old ones.
            self.telling.journal.note();
            if let Some(lost) = self.close().await {
                return Err(lost);
            }
        }
        for (choice, index) in (0..).zip(self.pieces.clone()) {
            self.telling.tell(&Delta { choice, index, restart: true, ..Delta::default() }).await?;
        }
        Ok(())
    }

    /// Begins again with nothing.
    fn forget(&mut self) {
        self.telling.answers.fill(Answer::default());
        self.pieces.fill(0);
        self.telling.begun = false;
        let Timings { decode_queue_ms, .. } = self.telling.timings;
        self.telling.timings = Timings { decode_queue_ms, ..self.fresh.clone() };
        (self.usage, self.generated, self.first) = (None, 0, None);
    }

    /// Whether anything was told of the answers.
    pub(crate) fn has_told(&self) -> bool {
        self.pieces.iter().any(|pieces| *pieces > 0)
    }

    /// Answers that have not ended.
    pub(crate) fn open(&self) -> usize {
        self.telling.answers.iter().filter(|answer| answer.finish_reason.is_none()).count()
    }

    /// An instance begins to answer.
    pub(crate) fn began(&mut self) {
        // Waiting for a place is waiting for a worker.
        if self.began.replace(Instant::now()).is_none() && self.telling.timings.resumed_tokens == 0 {
            self.telling.timings.decode_queue_ms += ms(self.taken.elapsed());
        }
    }

    /// The prompt is computed although its KV cache was to come from elsewhere.
    pub(crate) fn note_recomputed(&mut self) {
        self.recomputed = true;
    }

    /// Whether it is.
    pub(crate) fn recomputes(&self) -> bool {
        self.recomputed
    }

    pub(crate) fn prompt(&mut self, prompt: Vec<u32>) {
        self.prompt = prompt;
    }

    pub(crate) fn usage(&mut self, usage: Usage) {
        self.usage = Some(usage);
    }

    /// Takes a piece of an answer, and tells it.
    pub(crate) async fn take(&mut self, piece: Piece) -> Result<(), StageError> {
        let Piece { choice, text, message, tokens, logprobs, finish_reason } = piece;
        let told = !(text.is_empty() && message.is_empty() && tokens.is_empty() && logprobs.is_empty());
        if !told && finish_reason.is_none() {
            return Ok(());
        }
        if let Some(goes_on) = self.to_mark.take() {
            self.mark(goes_on).await?;
        }
        let Some(answer) = self.telling.answers.get_mut(choice as usize) else {
            let message = format!("the engine told of answer {choice}, which was not asked for");
            return Err(StageError::new(Retry::Elsewhere, Code::Internal, message));
        };
        answer.text.push_str(&text);
        answer.finish_reason = finish_reason.or(answer.finish_reason);
        merge(&mut answer.message, &message);
        let count = if told { tokens.len().max(logprobs.len()).max(1) } else { 0 };
        answer.tokens.extend(tokens);
        answer.logprobs.extend(logprobs.iter().cloned());
        self.first.get_or_insert_with(Instant::now);
        self.generated += count;
        self.telling.bus.counters().completion(count);
        self.telling.note_first();
        let place = &mut self.pieces[choice as usize];
        let deltas = deltas(choice, *place, text, message, logprobs);
        *place += deltas.len() as u32;
        for delta in deltas {
            self.telling.journal.note();
            self.telling.tell(&delta).await?;
        }
        Ok(())
    }

    /// What the answers have come to.
    fn checkpoint(&self) -> Checkpoint {
        let answers = self.telling.answers.iter().zip(&self.pieces);
        let partial = answers.map(|(answer, pieces)| partial(answer, *pieces, &self.prompt)).collect();
        Checkpoint { partial, ..self.telling.checkpoint() }
    }

    /// Begins to write a checkpoint if it is time for one.
    pub(crate) fn write_if_due(&mut self) {
        let open = self.open();
        if open > 0 && self.telling.journal.is_due(open) {
            let checkpoint = self.checkpoint();
            self.telling.journal.begin(checkpoint);
        }
    }

    /// Waits for the checkpoint that is being written, for ever if there is none; an error if the job is another worker's.
    pub(crate) async fn written(&mut self) -> Result<(), StageError> {
        self.telling.journal.written().await
    }

    /// Leaves the job to another worker, which goes on where this one stops.
    pub(crate) async fn hand_over(&mut self) -> StageError {
        let checkpoint = self.checkpoint();
        self.telling.hand_over(checkpoint).await
    }

    /// Writes the last checkpoint, if there is anything new; an error if the job is another worker's.
    pub(crate) async fn close(&mut self) -> Option<StageError> {
        let checkpoint = self.checkpoint();
        self.telling.close(checkpoint).await
    }

    pub(crate) fn completed(mut self) -> Next {
        self.settle();
        let usage = self.used();
        Next::Finish(Box::new(Outcome { usage, ..self.telling.completed() }))
    }

    pub(crate) fn failed(mut self, failure: Failure) -> Next {
        self.settle();
        let usage = self.used();
        Next::Finish(Box::new(Outcome { usage, ..self.telling.failed(failure) }))
    }

    /// Makes of the answers what a result has.
    fn settle(&mut self) {
        for answer in &mut self.telling.answers {
            answer.message = whole(&answer.message);
        }
        if let Some(first) = self.first {
            self.telling.note_generated(first);
        }
        let usage = self.used();
        let counters = self.telling.bus.counters();
        counters.prompt(usage.prompt_tokens as usize, usage.cached_tokens as usize);
        if let Some(told) = self.usage {
            let counted = self.generated + self.telling.timings.resumed_tokens as usize;
            counters.completion((told.completion_tokens as usize).saturating_sub(counted));
        }
        let timings = &mut self.telling.timings;
        timings.cached_tokens = usage.cached_tokens;
        timings.recomputed_tokens = if self.recomputed { usage.prompt_tokens } else { 0 };
    }

    /// Tokens of the answers, as far as can be seen: an engine that tells no ids may tell several in a piece.
    fn tokens(&self) -> u32 {
        let answers = self.telling.answers.iter().zip(&self.pieces);
        answers
            .map(|(answer, pieces)| if answer.tokens.is_empty() { *pieces } else { answer.tokens.len() as u32 })
            .sum()
    }

    /// What the job took.
    fn used(&self) -> Usage {
        let seen =
            Usage { prompt_tokens: self.prompt.len() as u32, completion_tokens: self.tokens(), cached_tokens: 0 };
        self.usage.unwrap_or(seen)
    }
}

/// What is told of a piece of an answer, from an index on. A delta has the log-probabilities of one token: with those of the last comes
/// the piece's text, as with Baton's own.
fn deltas(
    choice: u32,
    from: u32,
    text: String,
    message: Map<String, Value>,
    mut logprobs: Vec<TokenLogprob>,
) -> Vec<Delta> {
    let last = logprobs.pop();
    let alone = logprobs.into_iter().map(|logprobs| Delta { logprobs: Some(logprobs), ..Delta::default() });
    let message = (!message.is_empty()).then(|| Box::new(message));
    let whole = Delta { text, message, logprobs: last, ..Delta::default() };
    (from..).zip(alone.chain([whole])).map(|(index, delta)| Delta { choice, index, ..delta }).collect()
}

fn partial(answer: &Answer, pieces: u32, prompt: &[u32]) -> Partial {
    let Answer { text, message, finish_reason, .. } = answer;
    let message = if message.is_empty() { String::new() } else { Value::Object(message.clone()).to_string() };
    Partial { text: text.clone(), pieces, message, finish_reason: *finish_reason, prompt: prompt.to_vec() }
}

#[cfg(test)]
mod tests {
    use baton_contract::outcome::Alternative;

    use super::*;

    #[test]
    fn a_piece_of_several_tokens_is_told_with_the_last_of_them() {
        let of = |token: &str| TokenLogprob {
            chosen: Alternative { token: token.into(), id: 0, logprob: -0.5, bytes: token.into() },
            top_logprobs: Vec::new(),
        };
        let told = |logprobs: &[TokenLogprob]| {
            let deltas = deltas(1, 7, "ab".into(), Map::new(), logprobs.to_vec());
            let told = |delta: Delta| {
                assert_eq!((delta.choice, delta.token, delta.restart, delta.message), (1, None, false, None));
                (delta.index, delta.text, delta.logprobs.map(|told| told.chosen.token))
            };
            deltas.into_iter().map(told).collect::<Vec<_>>()
        };
        assert_eq!(told(&[]), [(7, "ab".into(), None)]);
        assert_eq!(told(&[of("a")]), [(7, "ab".into(), Some("a".into()))]);
        assert_eq!(
            told(&[of("a"), of("b")]),
            [(7, String::new(), Some("a".into())), (8, "ab".into(), Some("b".into()))]
        );
    }
}
