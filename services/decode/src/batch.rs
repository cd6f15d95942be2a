//! The thread that owns the model and steps all running answers together. Answers join and leave between any two steps.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::mpsc::{Receiver, TryRecvError},
};

use baton_engine::{
    generation::Generation,
    model::{self, KvMemory, Model, SequenceId, Step},
};
use rayon::prelude::*;
use tokio::sync::mpsc::UnboundedSender;

use crate::{
    engine::{Command, Event, Failed, Held, NewAnswer},
    schedule::{AnswerId, Left, Schedule, TooLong},
};

/// Answers that wait whose prompt's KV is fetched before there are pages for it, so that they can join at once.
const AHEAD: usize = 4;
/// Tokens that are imported between two steps, whoever joins: the running answers wait for that.
const IMPORTED: usize = 2048;
/// Computing a token again takes about as long as importing so many.
const COMPUTE_COST: usize = 8;
/// Tokens that are computed again at a time.
const COMPUTED: usize = IMPORTED / COMPUTE_COST;

pub(crate) struct Batch {
    model: Box<dyn Model>,
    schedule: Schedule,
    answers: BTreeMap<AnswerId, Answer>,
}

struct Answer {
    /// The prompt, and what was generated. The KV of all but the last is there when the answer runs.
    tokens: Vec<u32>,
    /// How many of them are the prompt's.
    prompt: usize,
    generation: Generation,
    events: UnboundedSender<Event>,
    kv: Kv,
}

/// How far an answer's KV cache is on its way.
enum Kv {
    Elsewhere,
    Wanted,
    Held(VecDeque<Held>),
    /// Coming into pages: the pieces that are not there yet, tokens computed again so far and at a time.
    Coming {
        sequence: SequenceId,
        left: VecDeque<Held>,
        recomputed: usize,
        pass: usize,
    },
    /// In pages: the answer takes part in every step.
    Here(SequenceId),
}

impl Batch {
    pub(crate) fn new(model: Box<dyn Model>) -> Self {
        let KvMemory { page_tokens, pages, .. } = model.memory();
        Self { model, schedule: Schedule::new(page_tokens, pages), answers: BTreeMap::new() }
    }

    /// Works until nobody can send commands any more.
    pub(crate) fn serve(mut self, commands: &Receiver<Command>) {
        loop {
            loop {
                match commands.try_recv() {
                    Ok(command) => self.obey(command),
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => return,
                }
            }
            if !self.round() {
                let Ok(command) = commands.recv() else { return };
                self.obey(command);
            }
        }
    }

    /// Lets answers join, and takes one step; false if there is nothing to do until somebody says something.
    fn round(&mut self) -> bool {
        self.admit();
        if self.schedule.joining().is_none() && self.schedule.running().is_empty() {
            return false;
        }
        self.join();
        self.step();
        true
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Answer { id, answer } => self.submit(id, *answer),
            Command::Held { id, held } => {
                if let Some(Answer { kv: kv @ Kv::Wanted, .. }) = self.answers.get_mut(&id) {
                    *kv = Kv::Held(held.into());
                }
            }
            Command::Leave(id) => self.remove(id),
        }
    }

    /// Puts an answer into the queue, unless it would fail a step: found here it fails alone.
    fn submit(&mut self, id: AnswerId, answer: NewAnswer) {
        let NewAnswer { prompt, first_token, generation, events } = answer;
        let (now, most) = (prompt.len(), (prompt.len() + generation.max_tokens()).saturating_sub(1));
        let mut tokens = prompt;
        tokens.push(first_token);
        let spec = self.model.spec();
        let (vocabulary, context) = (spec.vocabulary, spec.context);
        let fault = match tokens.iter().find(|token| **token as usize >= vocabulary) {
            Some(&token) => Err(model::Error::TokenOutOfRange { token, vocabulary }.into()),
            None if most > context => Err(model::Error::ContextExceeded { context, needed: most }.into()),
            None => self.schedule.submit(id, now, most).map_err(Failed::TooLong),
        };
        match fault {
            Ok(()) => {
                drop(self.answers.insert(id, Answer { tokens, prompt: now, generation, events, kv: Kv::Elsewhere }))
            }
            // Nobody may be listening any more, here and wherever else something is told.
            Err(failed) => drop(events.send(Event::Failed(failed))),
        }
    }

    /// Gives pages to those that wait as far as there are any, and has the next ones' pieces fetched.
    fn admit(&mut self) {
        let (model, answers) = (&mut self.model, &mut self.answers);
        while let Some(id) = self.schedule.admit(|id| matches!(answers.get(&id), Some(Answer { kv: Kv::Held(_), .. })))
        {
            let Some(answer) = answers.get_mut(&id) else { continue };
            if let Kv::Held(left) = &mut answer.kv {
                let left = std::mem::take(left);
                answer.kv = Kv::Coming { sequence: model.open(), left, recomputed: 0, pass: COMPUTED };
                let _ = answer.events.send(Event::Joining);
            }
        }
        for (place, id) in self.schedule.waiting().enumerate() {
            match answers.get_mut(&id) {
                Some(Answer { kv: kv @ Kv::Elsewhere, events, .. }) if place < AHEAD => {
                    let _ = events.send(Event::Wanted);
                    *kv = Kv::Wanted;
                }
                // Pushed back by those that had to leave the batch: memory is what there is too little of.
                Some(Answer { kv: kv @ Kv::Held(_), .. }) if place >= 2 * AHEAD => *kv = Kv::Elsewhere,
                _ => {}
            }
        }
    }

    /// Brings the KV caches of those that join; not more of it than the running answers can wait for.
    fn join(&mut self) {
        let mut budget = IMPORTED;
        while let Some(id) = self.schedule.joining() {
            match self.bring(id, &mut budget) {
                Ok(true) => self.schedule.joined(),
                Ok(false) => return,
                Err(error) => self.fail(id, error.into()),
            }
        }
    }

    /// Works on one answer's KV cache until it is complete (true) or the budget is used up.
    fn bring(&mut self, id: AnswerId, budget: &mut usize) -> Result<bool, model::Error> {
        let model = self.model.as_mut();
        let Some(Answer { tokens, prompt, events, kv, .. }) = self.answers.get_mut(&id) else {
            return Ok(true);
        };
        let Kv::Coming { sequence, left, recomputed, pass } = kv else { return Ok(true) };
        loop {
            let start = model.len(*sequence)?;
            let missing = match left.front_mut() {
                Some(Held::Block(block)) if *budget > 0 => {
                    let end = start + block.tokens;
                    model.import(*sequence, &tokens[start..end], block)?;
                    *budget = budget.saturating_sub(block.tokens);
                    left.pop_front();
                    continue;
                }
                Some(Held::Block(_)) => return Ok(false),
                Some(Held::Missing { tokens: 0 }) => {
                    left.pop_front();
                    continue;
                }
                Some(Held::Missing { tokens }) => *tokens,
                // The prompt is there; what was generated, but for the last token, is not if the answer was in the batch before.
                None => tokens.len() - 1 - start,
            };
            if missing == 0 {
                let _ = events.send(Event::Imported { recomputed: *recomputed });
                *kv = Kv::Here(*sequence);
                return Ok(true);
            }
            let count = missing.min(*pass).min(*budget / COMPUTE_COST);
            if count == 0 {
                return Ok(false);
            }
            let step = Step { sequence: *sequence, tokens: &tokens[start..start + count], logits: 0 };
            match model.forward(&[step]) {
                Ok(_) => {}
                // The device may have too little memory for so many at a time.
                Err(error) if count > 1 && model.len(*sequence)? == start => {
                    tracing::warn!(%error, tokens = count, "tokens could not be computed again; fewer are tried at a time");
                    *pass = count / 2;
                    continue;
                }
                Err(error) => return Err(error),
            }
            *budget -= count * COMPUTE_COST;
            if let Some(Held::Missing { tokens }) = left.front_mut() {
                *tokens -= count;
            }
            if start < *prompt {
                *recomputed += count;
            }
        }
    }

    /// One token for every running answer; those that end leave.
    fn step(&mut self) {
        let left = self.schedule.make_room();
        let alone = left.failed;
        self.leave(left);
        if let Some(id) = alone {
            let capacity = self.schedule.capacity();
            self.fail(id, Failed::TooLong(TooLong { needed: capacity + 1, capacity }));
        }
        let running = self.answers.values().filter_map(Answer::next_step);
        let steps: Vec<Step<'_>> = running.collect();
        if steps.is_empty() {
            return;
        }
        let logits = match self.model.forward(&steps) {
            Ok(logits) => logits,
            Err(error) => return self.halve(error),
        };
        self.schedule.stepped();
        // On all of the engine's threads: a draw from tens of thousands of tokens takes as long as part of a step.
        let running = self.answers.iter_mut().filter(|(_, answer)| answer.next_step().is_some());
        let sampled: Vec<_> = running.zip(logits).collect();
        let ended = sampled.into_par_iter().filter_map(|((id, answer), logits)| answer.sample(&logits).then_some(*id));
        for id in ended.collect::<Vec<AnswerId>>() {
            self.remove(id);
        }
    }

    /// After a failed step: half of the answers stay and take the same step again.
    fn halve(&mut self, error: model::Error) {
        let answers = self.schedule.running().len();
        // A failed step should have changed nothing; a sequence that it did change is of no use.
        let mut running = self.answers.values().filter_map(|answer| Some((answer, answer.next_step()?)));
        let intact = running.all(|(answer, step)| self.model.len(step.sequence).ok() == Some(answer.tokens.len() - 1));
        let left = self.schedule.halve(intact);
        if let Some(id) = left.failed {
            tracing::error!(%error, "a decode step of one answer failed; its job is tried again elsewhere");
            self.leave(left);
            return self.fail(id, error.into());
        }
        tracing::warn!(%error, answers, waiting = left.preempted.len(), "a decode step failed; half of the answers go on");
        self.leave(left);
    }

    /// Takes the pages of those that had to leave the batch; they wait.
    fn leave(&mut self, left: Left) {
        for id in left.preempted {
            if let Some(answer) = self.answers.get_mut(&id) {
                answer.kv.close(self.model.as_mut());
                tracing::debug!(tokens = answer.tokens.len(), "an answer left the batch for want of memory and waits");
            }
        }
    }

    fn fail(&mut self, id: AnswerId, failed: Failed) {
        if let Some(answer) = self.answers.get(&id) {
            let _ = answer.events.send(Event::Failed(failed));
        }
        self.remove(id);
    }

    fn remove(&mut self, id: AnswerId) {
        self.schedule.remove(id);
        if let Some(mut answer) = self.answers.remove(&id) {
            answer.kv.close(self.model.as_mut());
        }
    }
}

impl Answer {
    /// Goes on by the next token; true if that ended the answer, or nobody listens any more.
    fn sample(&mut self, logits: &[f32]) -> bool {
        let (event, ends) = match self.generation.next(logits) {
            Ok(emitted) => {
                self.tokens.push(emitted.token);
                let ends = emitted.finish.is_some();
                (Event::Token(emitted), ends)
            }
            Err(error) => (Event::Stuck(error), true),
        };
        self.events.send(event).is_err() || ends
    }

    /// Its part in the next step, if it takes part.
    fn next_step(&self) -> Option<Step<'_>> {
        let Kv::Here(sequence) = self.kv else { return None };
        Some(Step { sequence, tokens: &self.tokens[self.tokens.len() - 1..], logits: 1 })
    }
}

impl Kv {
    fn close(&mut self, model: &mut dyn Model) {
        if let Kv::Coming { sequence, .. } | Kv::Here(sequence) = *self {
            model.close(sequence);
        }
        *self = Kv::Elsewhere;
    }
}

#[cfg(test)]
mod tests;
