//! The thread that owns the model and computes the prompts, many at a time. Nothing on it ever waits for the store.

use std::{
    collections::{BTreeMap, VecDeque},
    ops::Range,
    sync::Arc,
};

use baton_bus::duty::counters::Counters;
use baton_contract::{causes, kv::Block};
use baton_model::{
    engine_thread::Rounds,
    generation::Generation,
    model::{self, KvMemory, Model, SequenceId, Step},
};
use tokio::{sync::mpsc::UnboundedSender, time::Instant};

use crate::{
    messages::{Command, Computed, Failed, NewPrompt, Options},
    schedule::{self, PromptId, Schedule, Share},
};

/// Tokens that are imported between two passes at most: other prompts wait for that.
pub const IMPORT_TOKENS_PER_PASS: usize = 2048;

pub(crate) struct Batch {
    model: Box<dyn Model>,
    schedule: Schedule,
    prompts: BTreeMap<PromptId, Prompt>,
    counters: Counters,
}

struct Prompt {
    tokens: Vec<u32>,
    /// Those that were neither brought nor sent yet, with their places.
    pieces: VecDeque<(usize, Range<usize>)>,
    /// Pieces that were brought and are not in the sequence yet.
    brought: VecDeque<(usize, Arc<Block>)>,
    /// Of each of the job's answers.
    generations: Vec<Generation>,
    computed: UnboundedSender<Computed>,
    /// None until there are pages for it.
    sequence: Option<SequenceId>,
    /// Whether its turn has come.
    started: bool,
    /// Tokens whose KV the sequence holds.
    done: usize,
    /// How many of them were brought.
    reused: usize,
}

impl Rounds for Batch {
    type Command = Command;

    fn obey(&mut self, command: Command) {
        match command {
            Command::Prompt { id, prompt } => self.submit(id, *prompt),
            Command::Bring { id, piece, block } => {
                if let Some(prompt) = self.prompts.get_mut(&id) {
                    prompt.brought.push_back((piece, block));
                }
            }
            Command::Compute(id) => {
                if let Some(Prompt { done, brought, .. }) = self.prompts.get(&id) {
                    let coming: usize = brought.iter().map(|(_, block)| block.tokens).sum();
                    self.schedule.reuse(id, done + coming);
                }
            }
            Command::Stored { id, tokens } => self.schedule.stored(id, tokens),
            Command::Leave(id) => self.remove(id),
        }
    }

    /// Opens prompts, imports what they reuse, and computes one pass; false if there is no prompt, or all wait for the
    /// store.
    fn round(&mut self) -> bool {
        while let Some(id) = self.schedule.admit() {
            if let Some(prompt) = self.prompts.get_mut(&id) {
                prompt.sequence = Some(self.model.open());
                if self.schedule.lacks(id) {
                    prompt.start();
                }
            }
        }
        let imported = self.import();
        let shares = self.schedule.next();
        if !shares.is_empty() {
            self.pass(&shares);
        }
        imported || !shares.is_empty()
    }

    fn idle(&self) {
        self.counters.idle();
    }
}

impl Batch {
    pub(crate) fn new(model: Box<dyn Model>, options: Options) -> Self {
        let KvMemory { page_tokens, pages, .. } = model.memory();
        let Options { batch_tokens, ahead } = options;
        let schedule = Schedule::new(schedule::Options { page_tokens, pages, batch_tokens, ahead });
        Self { model, schedule, prompts: BTreeMap::new(), counters: Counters::default() }
    }

    /// Counts its work there.
    pub(crate) fn counted(self, counters: Counters) -> Self {
        Self { counters, ..self }
    }

    /// Imports what was brought, oldest prompts first, as much of it as the others can wait for; false if it was nothing.
    fn import(&mut self) -> bool {
        let mut left = IMPORT_TOKENS_PER_PASS;
        for id in self.schedule.open().to_vec() {
            while left > 0
                && let Some((piece, block)) = self.prompts.get_mut(&id).and_then(|prompt| prompt.brought.pop_front())
            {
                left = left.saturating_sub(block.tokens.max(1));
                self.import_piece(id, piece, &block);
            }
        }
        left < IMPORT_TOKENS_PER_PASS
    }

    fn import_piece(&mut self, id: PromptId, piece: usize, block: &Block) {
        let Some(prompt) = self.prompts.get_mut(&id) else { return };
        let _ = prompt.computed.send(Computed::Taken);
        // It is stored, whether it can be used or not.
        if let Some((_, range)) = prompt.pieces.pop_front_if(|(next, _)| *next == piece) {
            self.schedule.stored(id, range.len());
        }
        if !self.schedule.lacks(id) {
            return;
        }
        let range = prompt.done..prompt.done + block.tokens;
        let (Some(sequence), Some(tokens)) = (prompt.sequence, prompt.tokens.get(range)) else { return };
        match self.model.import(sequence, tokens, block) {
            Ok(()) => {
                prompt.done += block.tokens;
                prompt.reused += block.tokens;
                self.counters.prompt(block.tokens, block.tokens);
                self.schedule.computed(Share { id, tokens: block.tokens });
            }
            Err(error) => {
                tracing::warn!(error = %causes(&error), "a piece of a KV cache could not be imported; it is computed");
                self.schedule.reuse(id, prompt.done);
                self.check(id);
            }
        }
    }

    /// Puts a prompt into the queue, unless it would fail a pass: found here it fails alone.
    fn submit(&mut self, id: PromptId, prompt: NewPrompt) {
        let NewPrompt { tokens, pieces, reused, generations, computed } = prompt;
        let spec = self.model.spec();
        let (vocabulary, context, needed) = (spec.vocabulary, spec.context, tokens.len());
        let fault = match tokens.iter().find(|token| **token as usize >= vocabulary) {
            Some(&token) => Err(model::Error::TokenOutOfRange { token, vocabulary }.into()),
            None if tokens.is_empty() => Err(model::Error::EmptyStep.into()),
            None if needed > context => Err(model::Error::ContextExceeded { context, needed }.into()),
            None => self.schedule.submit(id, needed, reused).map_err(Failed::TooLong),
        };
        match fault {
            Ok(()) => {
                let prompt = Prompt {
                    tokens,
                    pieces: pieces.into_iter().enumerate().collect(),
                    brought: VecDeque::new(),
                    generations,
                    computed,
                    sequence: None,
                    started: false,
                    done: 0,
                    reused: 0,
                };
                self.prompts.insert(id, prompt);
            }
            // Nobody may be listening any more, here and wherever else something is told.
            Err(failed) => drop(computed.send(Computed::Failed(failed))),
        }
    }

    /// Computes the next tokens of some prompts in one pass.
    fn pass(&mut self, shares: &[Share]) {
        for share in shares {
            if let Some(prompt) = self.prompts.get_mut(&share.id) {
                prompt.start();
            }
        }
        let steps: Vec<Step<'_>> = shares.iter().filter_map(|share| self.prompts.get(&share.id)?.step(share)).collect();
        let began = Instant::now();
        let computed = self.model.forward(&steps);
        self.counters.computed(began.elapsed(), steps.len());
        let logits = match computed {
            Ok(logits) => logits,
            Err(error) => return self.failed(shares, error),
        };
        self.schedule.passed();
        self.counters.prompt(shares.iter().map(|share| share.tokens).sum(), 0);
        for (&share, logits) in shares.iter().zip(&logits) {
            self.schedule.computed(share);
            match self.hand_on(share, logits) {
                Ok(false) => {}
                Ok(true) => self.remove(share.id),
                Err(error) => self.fail(share.id, error),
            }
        }
    }

    /// Sends the pieces that a pass completed, and the first tokens after the last; true if nothing is left to do.
    fn hand_on(&mut self, share: Share, logits: &[f32]) -> Result<bool, model::Error> {
        let Some(prompt) = self.prompts.get_mut(&share.id) else { return Ok(true) };
        let Some(sequence) = prompt.sequence else { return Ok(true) };
        prompt.done += share.tokens;
        while let Some((piece, range)) = prompt.pieces.pop_front_if(|(_, range)| range.end <= prompt.done) {
            let block = self.model.export(sequence, range)?;
            if prompt.computed.send(Computed::Piece { piece, block }).is_err() {
                return Ok(true);
            }
        }
        if prompt.done < prompt.tokens.len() {
            return Ok(false);
        }
        let first: Result<_, _> = prompt.generations.iter_mut().map(|generation| generation.next(logits)).collect();
        let reused = prompt.reused;
        let told = first.map_or_else(Computed::Refused, |first| Computed::FirstTokens { first, reused });
        let _ = prompt.computed.send(told);
        Ok(true)
    }

    /// After a failed pass: the next is smaller. A prompt fails if a single token of it alone does.
    fn failed(&mut self, shares: &[Share], error: model::Error) {
        if let Some(id) = self.schedule.failed(shares) {
            tracing::error!(error = %causes(&error), "computing a prompt failed; its job is tried again elsewhere");
            return self.fail(id, error);
        }
        tracing::warn!(error = %causes(&error), prompts = shares.len(), "a pass failed; a smaller one is tried");
        for Share { id, .. } in shares {
            self.check(*id);
        }
    }

    /// After a failure, which should have changed nothing: a sequence that it did change is computed again.
    fn check(&mut self, id: PromptId) {
        let Some(prompt) = self.prompts.get_mut(&id) else { return };
        let Some(sequence) = prompt.sequence else { return };
        if self.model.len(sequence).ok() != Some(prompt.done) {
            self.model.close(sequence);
            prompt.sequence = Some(self.model.open());
            (prompt.done, prompt.reused) = (0, 0);
            self.schedule.restart(id);
        }
    }

    fn fail(&mut self, id: PromptId, error: model::Error) {
        if let Some(prompt) = self.prompts.get(&id) {
            let _ = prompt.computed.send(Computed::Failed(error.into()));
        }
        self.remove(id);
    }

    fn remove(&mut self, id: PromptId) {
        self.schedule.remove(id);
        if let Some(Prompt { sequence: Some(sequence), .. }) = self.prompts.remove(&id) {
            self.model.close(sequence);
        }
    }
}

impl Prompt {
    fn start(&mut self) {
        if !std::mem::replace(&mut self.started, true) {
            let _ = self.computed.send(Computed::Started);
        }
    }

    /// Its part in a pass.
    fn step(&self, share: &Share) -> Option<Step<'_>> {
        let end = self.done + share.tokens;
        let logits = usize::from(end == self.tokens.len());
        Some(Step { sequence: self.sequence?, tokens: self.tokens.get(self.done..end)?, logits })
    }
}

#[cfg(test)]
mod tests;
