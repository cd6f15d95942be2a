//! The thread that owns the model and steps all running answers together. Answers join and leave between any two steps.

use std::collections::BTreeMap;

use baton_bus::duty::counters::Counters;
use baton_contract::causes;
use baton_model::{
    engine_thread::Rounds,
    generation::Generation,
    model::{self, KvMemory, Model, Step},
};
use rayon::prelude::*;
use tokio::{sync::mpsc::UnboundedSender, time::Instant};

use crate::{
    kv_import::{self, COMPUTE_TOKENS_PER_STEP, IMPORT_TOKENS_PER_STEP, Kv, Pieces, Progress, Stall},
    messages::{Command, Event, Failed, Fetch, JobNumber, NewAnswer, NewJob},
    schedule::{AnswerId, Left, Schedule, TooLong},
};

/// Jobs that wait whose prompt's KV is fetched before there are pages for it, so that they can join at once.
pub const PREFETCH_JOBS: usize = 4;

/// Logits of a step from which on threads share the draws.
const PARALLEL_LOGITS: usize = 1 << 16;

pub(crate) struct Batch {
    model: Box<dyn Model>,
    schedule: Schedule,
    answers: BTreeMap<AnswerId, Answer>,
    /// Names the next answer.
    next: AnswerId,
    /// How often pieces were asked for.
    fetches: u64,
    /// Tokens that a step may compute for answers that have joined, besides one for each answer.
    rests: usize,
    counters: Counters,
}

struct Answer {
    job: JobNumber,
    /// Which of the job's answers it is.
    choice: u32,
    /// The prompt, and what was generated. The KV of all but the last is there when the answer runs.
    tokens: Vec<u32>,
    /// Tokens of the prompt's beginning whose KV the store holds.
    stored: usize,
    generation: Generation,
    events: UnboundedSender<Event>,
    kv: Kv,
    stall: Stall,
}

impl Rounds for Batch {
    type Command = Command;

    fn obey(&mut self, command: Command) {
        match command {
            Command::Job(job) => self.submit(*job),
            Command::Piece { fetch, piece, came } => {
                for answer in self.answers.values_mut() {
                    if answer.kv.take(fetch, &piece) {
                        answer.stall.end(came);
                    }
                }
            }
            Command::Leave(job) => {
                let of_job = self.answers.iter().filter(|(_, answer)| answer.job == job).map(|(id, _)| *id);
                for id in of_job.collect::<Vec<_>>() {
                    self.remove(id);
                }
            }
        }
    }

    /// Lets answers join, and takes one step; false if none runs and the next to join waits for a piece.
    fn round(&mut self) -> bool {
        self.admit();
        self.ask();
        if self.schedule.joining().is_none() && self.schedule.running().is_empty() {
            return false;
        }
        let waits = self.join();
        let steps = !self.schedule.running().is_empty();
        if steps {
            self.step();
        }
        steps || !waits
    }

    fn idle(&self) {
        self.counters.idle();
    }
}

impl Batch {
    pub(crate) fn new(model: Box<dyn Model>) -> Self {
        let KvMemory { page_tokens, pages, .. } = model.memory();
        let schedule = Schedule::new(page_tokens, pages);
        let (answers, counters) = (BTreeMap::new(), Counters::default());
        Self { model, schedule, answers, next: 0, fetches: 0, rests: COMPUTE_TOKENS_PER_STEP, counters }
    }

    /// Counts its work there.
    pub(crate) fn counted(self, counters: Counters) -> Self {
        Self { counters, ..self }
    }

    /// Puts a job's answers into the queue, unless they would fail a step: found here they fail alone.
    fn submit(&mut self, job: NewJob) {
        let NewJob { number, prompt, stored, early, answers, events } = job;
        for NewAnswer { choice, generated, generation } in answers {
            let tokens = [&prompt[..], &generated].concat();
            if let Err(failed) = self.enqueue(&tokens, prompt.len() + generation.max_tokens()) {
                // Nobody may be listening any more, here and wherever else something is told.
                let _ = events.send(Event::Failed(failed));
                return;
            }
            let kv = if early { Kv::Wanted(Pieces::of(Fetch::Early(number), stored)) } else { Kv::Elsewhere };
            let (events, stall) = (events.clone(), Stall::default());
            let answer = Answer { job: number, choice, tokens, stored, generation, events, kv, stall };
            self.answers.insert(self.next, answer);
            self.next += 1;
        }
    }

    /// Puts the next answer into the schedule: it has these tokens now, and `longest` in the end, prompt and all.
    fn enqueue(&mut self, tokens: &[u32], longest: usize) -> Result<(), Failed> {
        let spec = self.model.spec();
        let (vocabulary, context) = (spec.vocabulary, spec.context);
        // The last token's KV is not kept.
        let (now, most) = (tokens.len().saturating_sub(1), longest.saturating_sub(1));
        match tokens.iter().find(|token| **token as usize >= vocabulary) {
            Some(&token) => Err(model::Error::TokenOutOfRange { token, vocabulary }.into()),
            None if tokens.is_empty() => Err(model::Error::EmptyStep.into()),
            None if most > context => Err(model::Error::ContextExceeded { context, needed: most }.into()),
            None => self.schedule.submit(self.next, now, most).map_err(Failed::TooLong),
        }
    }

    /// Gives pages to those that wait as far as there are any.
    fn admit(&mut self) {
        let (model, answers) = (self.model.as_mut(), &mut self.answers);
        while let Some(id) =
            self.schedule.admit(|id| answers.get(&id).is_some_and(|answer| answer.kv.can_join(answer.stored)))
        {
            let Some(answer) = answers.get_mut(&id) else { continue };
            answer.kv.join(model);
            let waited = answer.stall.take();
            answer.tell(Event::Joining { waited });
        }
        if let Some(answer) = self.schedule.candidate().and_then(|id| answers.get_mut(&id)) {
            answer.stall.begin();
        }
    }

    /// Has the pieces fetched of those that join next; once for all answers of a job that stand together.
    fn ask(&mut self) {
        let (mut jobs, mut last, mut asked) = (0, None, None);
        for id in self.schedule.waiting() {
            let Some(answer) = self.answers.get_mut(&id) else { continue };
            let job = Some(answer.job);
            jobs += usize::from(last != job);
            last = job;
            match &answer.kv {
                Kv::Elsewhere if jobs <= PREFETCH_JOBS && answer.stored > 0 => {
                    if asked != job {
                        asked = job;
                        self.fetches += 1;
                        answer.tell(Event::Wanted { fetch: Fetch::Wanted(self.fetches) });
                    }
                    answer.kv = Kv::Wanted(Pieces::of(Fetch::Wanted(self.fetches), answer.stored));
                }
                // Pushed back by those that had to leave the batch: memory is what there is too little of.
                kv if kv.lies_ready() && jobs > 2 * PREFETCH_JOBS => answer.kv = Kv::Elsewhere,
                _ => {}
            }
        }
    }

    /// Brings the KV caches of those that join; not more of it than the running answers can wait for. True if the next can't
    /// go on until a piece comes.
    fn join(&mut self) -> bool {
        let (mut budget, mut rests) = (IMPORT_TOKENS_PER_STEP, self.rests);
        while let Some(id) = self.schedule.joining() {
            let brought = match self.answers.get_mut(&id) {
                Some(answer) => answer.bring(self.model.as_mut(), &mut budget, &mut rests),
                None => Ok(Progress::All { recomputed: 0, rest: 0 }),
            };
            match brought {
                Ok(Progress::All { .. }) => self.schedule.joined(),
                Ok(Progress::OutOfBudget) => return false,
                Ok(Progress::AwaitsPiece) => return true,
                Err(error) => self.fail(id, error.into()),
            }
        }
        false
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
        let began = Instant::now();
        let computed = self.model.forward(&steps);
        self.counters.computed(began.elapsed(), steps.len());
        let logits = match computed {
            Ok(logits) => logits,
            Err(error) => return self.failed(error),
        };
        self.schedule.stepped();
        self.rests = COMPUTE_TOKENS_PER_STEP.min(self.rests + 1);
        let logits_in_all: usize = logits.iter().map(Vec::len).sum();
        let running = self.answers.iter_mut().filter(|(_, answer)| answer.next_step().is_some());
        let sampled: Vec<_> = running.zip(logits).collect();
        let sample =
            |((id, answer), logits): ((&AnswerId, &mut Answer), Vec<f32>)| answer.sample(&logits).then_some(*id);
        // On all of the engine's threads: a draw from tens of thousands of tokens takes as long as part of a step. Of few
        // tokens it takes less than waking a thread.
        let ended: Vec<AnswerId> = if logits_in_all < PARALLEL_LOGITS {
            sampled.into_iter().filter_map(sample).collect()
        } else {
            sampled.into_par_iter().filter_map(sample).collect()
        };
        for id in ended {
            self.remove(id);
        }
    }

    /// After a failed step: if it was to compute more than one token of an answer, these are computed apart.
    fn failed(&mut self, error: model::Error) {
        // A failed step should have changed nothing; a sequence that it did change is of no use.
        let mut running = self.answers.values().filter_map(|answer| Some((answer, answer.next_step()?)));
        let intact = running
            .all(|(answer, step)| self.model.len(step.sequence).ok() == Some(answer.tokens.len() - step.tokens.len()));
        let rests = self.answers.iter().filter(|(_, answer)| matches!(answer.kv, Kv::Resident { rest: 1.., .. }));
        let rests: Vec<AnswerId> = rests.map(|(id, _)| *id).collect();
        if rests.is_empty() || !intact {
            return self.halve(error, intact);
        }
        self.rests /= 2;
        tracing::warn!(error = %causes(&error), answers = rests.len(), "a decode step failed; those that joined catch up by themselves");
        for id in rests {
            let Some(answer) = self.answers.get_mut(&id) else { continue };
            if let Err(error) = answer.catch_up(self.model.as_mut()) {
                self.fail(id, error.into());
            }
        }
    }

    /// After a failed step: half of the answers stay and take the same step again.
    fn halve(&mut self, error: model::Error, intact: bool) {
        let answers = self.schedule.running().len();
        let left = self.schedule.halve(intact);
        if let Some(id) = left.failed {
            tracing::error!(error = %causes(&error), "a decode step of one answer failed; its job is tried again elsewhere");
            self.leave(left);
            return self.fail(id, error.into());
        }
        tracing::warn!(error = %causes(&error), answers, waiting = left.preempted.len(), "a decode step failed; half of the answers go on");
        self.leave(left);
    }

    /// Takes the pages of those that had to leave the batch; they wait.
    fn leave(&mut self, left: Left) {
        for id in left.preempted {
            if let Some(answer) = self.answers.get_mut(&id) {
                answer.kv.close(self.model.as_mut());
                answer.tell(Event::Left);
                tracing::debug!(tokens = answer.tokens.len(), "an answer left the batch for want of memory and waits");
            }
        }
    }

    fn fail(&mut self, id: AnswerId, failed: Failed) {
        if let Some(answer) = self.answers.get(&id) {
            answer.tell(Event::Failed(failed));
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
    /// Goes on bringing its KV cache, if that is on its way.
    fn bring(
        &mut self,
        model: &mut dyn Model,
        budget: &mut usize,
        rests: &mut usize,
    ) -> Result<Progress, model::Error> {
        let Kv::Importing(importing) = &mut self.kv else { return Ok(Progress::All { recomputed: 0, rest: 0 }) };
        let brought = importing.bring(model, &self.tokens, budget, rests)?;
        match brought {
            Progress::All { recomputed, rest } => {
                self.kv = Kv::Resident { sequence: importing.sequence, rest };
                let waited = self.stall.take();
                self.tell(Event::Joined { recomputed, waited });
            }
            Progress::AwaitsPiece => self.stall.begin(),
            Progress::OutOfBudget => {}
        }
        Ok(brought)
    }

    /// Computes what the next step would compute besides the last token.
    fn catch_up(&mut self, model: &mut dyn Model) -> Result<(), model::Error> {
        let Kv::Resident { sequence, rest } = &mut self.kv else { return Ok(()) };
        let (last, mut pass) = (self.tokens.len() - 1, *rest);
        while *rest > 0 {
            *rest -= kv_import::compute(model, *sequence, &self.tokens[last - *rest..last], &mut pass)?;
        }
        Ok(())
    }

    fn tell(&self, event: Event) {
        let _ = self.events.send(event);
    }

    /// Goes on by the next token; true if that ended the answer, or nobody listens any more.
    fn sample(&mut self, logits: &[f32]) -> bool {
        if let Kv::Resident { rest, .. } = &mut self.kv {
            *rest = 0;
        }
        let (event, ends) = match self.generation.next(logits) {
            Ok(emitted) => {
                self.tokens.push(emitted.token);
                let ends = emitted.finish.is_some();
                (Event::Token { choice: self.choice, emitted }, ends)
            }
            Err(error) => (Event::Stuck(error), true),
        };
        self.events.send(event).is_err() || ends
    }

    /// Its part in the next step, if it takes part.
    fn next_step(&self) -> Option<Step<'_>> {
        let Kv::Resident { sequence, rest } = self.kv else { return None };
        Some(Step { sequence, tokens: &self.tokens[self.tokens.len() - 1 - rest..], logits: 1 })
    }
}

#[cfg(test)]
mod tests;
