//! A decode worker: its engine's thread, and what it fetches.

use std::collections::BTreeMap;

use baton_contract::Role;
use baton_decode::{COMPUTE_COST, IMPORT_TOKENS_PER_STEP, PREFETCH_JOBS, schedule::Schedule};

use super::{
    Options,
    burst::Burst,
    jobs::JobId,
    time::{Nanos, nanos, seconds},
    world::{Event, World},
};

/// Chunks of one job that are fetched at a time, as decode and prefill do.
pub(super) const FETCHES: usize = 4;

pub(super) struct DecodeWorker {
    worker: usize,
    schedule: Schedule,
    answers: BTreeMap<u64, Answer>,
    /// Names the next answer.
    next: u64,
    /// What the engine's thread is at.
    burst: Option<Burst>,
    /// Its number: the end that was foreseen for one that was cut means nothing.
    number: u32,
    gets_until: Nanos,
    drains: bool,
}

/// One answer, from the worker's taking it to its last token.
struct Answer {
    job: JobId,
    fetch: Option<Fetch>,
    /// Tokens of the prompt that the store has, and how many of them are in pages.
    stored: usize,
    imported: usize,
    /// Tokens that are computed before its first step here: what prefill left of the prompt, or what was generated elsewhere.
    rest: usize,
}

/// A prompt's KV cache on its way.
#[derive(Clone, Copy)]
struct Fetch {
    /// When the first chunk and when the last is there.
    first: Nanos,
    all: Nanos,
}

impl Answer {
    /// Tokens that have come and are not in pages: whole chunks, evenly between the first and the last.
    fn has_come(&self, now: Nanos, chunk: usize) -> usize {
        let Some(Fetch { first, all }) = self.fetch else { return 0 };
        let come = if now >= all {
            self.stored
        } else if now < first {
            0
        } else {
            let chunks = self.stored.div_ceil(chunk);
            let share = (now - first) as f64 / (all - first).max(1) as f64;
            ((1.0 + share * (chunks - 1) as f64) as usize * chunk).min(self.stored)
        };
        come.saturating_sub(self.imported)
    }

    /// Whether there is something to do for it as it joins.
    fn can_go_on(&self, now: Nanos, chunk: usize) -> bool {
        self.imported >= self.stored || self.has_come(now, chunk) > 0
    }

    fn can_join(&self, now: Nanos) -> bool {
        self.stored == 0 || self.fetch.is_some_and(|fetch| fetch.first <= now)
    }
}

impl DecodeWorker {
    pub(super) fn new(worker: usize, options: &Options) -> Self {
        let page_tokens = options.decode.profile.kv.page_tokens.max(1);
        Self {
            worker,
            schedule: Schedule::new(page_tokens, (options.decode.kv_tokens / page_tokens).max(1)),
            answers: BTreeMap::new(),
            next: 0,
            burst: None,
            number: 0,
            gets_until: 0,
            drains: false,
        }
    }

    /// A job has come; if prefill has sampled its first token, that is told now.
    pub(super) fn take(&mut self, job: JobId, world: &mut World<'_>) {
        let state = &mut world.jobs[job];
        // What prefill has stored; where it left the prompt, or a part of it, to decode, the rest is computed here.
        let prefilled = state.stored >= state.prompt;
        if prefilled && state.generated == 0 {
            (state.generated, state.first, state.last) = (1, world.now, world.now);
            world.measure.first_token(state, world.now);
            world.measure.sampled();
            let last = state.output == 1;
            world.spend(Role::Decode, |host| host.cpu_s_per_token);
            if last {
                return self.complete(job, world);
            }
        }
        let state = &world.jobs[job];
        let stored = state.stored;
        // The last token's KV is not kept.
        let now = state.prompt + state.generated - 1;
        let most = state.prompt + state.output - 1;
        if self.schedule.submit(self.next, now, most).is_err() {
            return self.fail(job, world);
        }
        let rest = now - stored.min(now);
        self.answers.insert(self.next, Answer { job, fetch: None, stored, imported: 0, rest });
        self.next += 1;
        self.wake(world);
    }

    /// A piece may have come that somebody waits for.
    pub(super) fn poked(&mut self, world: &mut World<'_>) {
        self.wake(world);
    }

    /// Begins what can be begun; what the thread is at ends with the step under way if somebody can be served then.
    fn wake(&mut self, world: &mut World<'_>) {
        if self.burst.is_none() {
            return self.round(world);
        }
        let now = world.now;
        let unasked = self
            .schedule
            .waiting()
            .take(PREFETCH_JOBS)
            .any(|id| self.answers.get(&id).is_some_and(|answer| answer.fetch.is_none() && answer.stored > 0));
        let can_join = |id: u64| self.answers.get(&id).is_some_and(|answer| answer.can_join(now));
        if unasked || self.schedule.joining().is_some() || self.schedule.candidate().is_some_and(can_join) {
            self.cut(world);
        }
    }

    fn cut(&mut self, world: &mut World<'_>) {
        if let Some(mut burst) = self.burst
            && burst.cut(world.now)
        {
            self.begin(burst, world);
        }
    }

    /// Lets answers join, and begins steps.
    fn round(&mut self, world: &mut World<'_>) {
        if self.drains {
            return self.hand_back(world);
        }
        let (now, chunk) = (world.now, world.options.chunk_tokens.max(1));
        let answers = &self.answers;
        while self.schedule.admit(|id| answers.get(&id).is_some_and(|answer| answer.can_join(now))).is_some() {}
        self.ask(world);
        let mut busy = self.join(world);
        if self.make_room(world) && self.schedule.running().is_empty() {
            // What has failed left its pages to those that wait.
            return self.round(world);
        }
        let running = self.schedule.running();
        let (mut steps, mut context) = (usize::MAX, 0);
        for id in running {
            let Some(answer) = self.answers.get_mut(id) else { continue };
            let job = &world.jobs[answer.job];
            context += job.prompt + job.generated;
            steps = steps.min(job.output - job.generated);
            // What it has not computed yet is computed with its first step.
            if answer.rest > 0 {
                let tokens = std::mem::take(&mut answer.rest);
                let cost = &world.options.decode.profile.prefill;
                busy += cost.pass_s([(answer.stored, tokens)]) - cost.s_per_pass;
                world.measure.recomputed(tokens);
            }
        }
        let sequences = running.len();
        if sequences == 0 {
            steps = 0;
        } else if self
            .schedule
            .joining()
            .is_some_and(|id| self.answers.get(&id).is_some_and(|it| it.can_go_on(now, chunk)))
            || world.machine.is_some()
        {
            // A piece of what joins comes with each step, and so may what holds the engine up.
            steps = 1;
        } else {
            steps = self.schedule.steps_with_room(steps).max(1);
        }
        if steps == 0 && busy == 0.0 {
            let goes_on = |id: u64| self.answers.get(&id).is_some_and(|it| it.can_go_on(now, chunk));
            // An import that costs no time, and has more to come.
            if self.schedule.joining().is_some_and(goes_on) {
                self.round(world);
            }
            return;
        }
        world.computes(Role::Decode, self.worker);
        world.decode.busy_nanos += u128::from(nanos(busy));
        let cost = &world.options.decode.profile.decode;
        self.begin(Burst::new(cost, now + nanos(busy), steps, sequences, context), world);
    }

    /// Goes on with a burst until its last step; what was said of an earlier end does not count any more.
    fn begin(&mut self, burst: Burst, world: &mut World<'_>) {
        self.burst = Some(burst);
        self.number = world.next_burst();
        world.at(burst.after(burst.steps), Event::Stepped(self.worker, self.number));
    }

    /// Has the KV caches fetched of those that join next.
    fn ask(&mut self, world: &mut World<'_>) {
        let profile = &world.options.decode.profile;
        let chunk = world.options.chunk_tokens.max(1);
        for id in self.schedule.waiting().take(PREFETCH_JOBS) {
            let Some(answer) = self.answers.get_mut(&id).filter(|it| it.fetch.is_none() && it.stored > 0) else {
                continue;
            };
            let chunks = answer.stored.div_ceil(chunk);
            world.spend(Role::Decode, |host| host.get_cpu_s_per_byte * profile.stored_bytes(answer.stored));
            let bytes = |tokens: usize| nanos(profile.stored_bytes(tokens) * profile.store.get_s_per_byte);
            let begins = self.gets_until.max(world.now);
            self.gets_until = begins + bytes(answer.stored);
            let first = begins + nanos(profile.store.get_s) + bytes(answer.stored.min(chunk));
            let all = self.gets_until + nanos(profile.store.get_s * chunks.div_ceil(FETCHES) as f64);
            answer.fetch = Some(Fetch { first, all: all.max(first) });
            world.at(first, Event::Poked(self.worker));
        }
    }

    /// Brings what has come of those that join, as much of it as the running answers can wait for; returns the seconds.
    fn join(&mut self, world: &mut World<'_>) -> f64 {
        let profile = &world.options.decode.profile;
        let (mut budget, mut seconds) = (IMPORT_TOKENS_PER_STEP, 0.0);
        while let Some(id) = self.schedule.joining() {
            let Some(answer) = self.answers.get_mut(&id) else { break };
            let come = answer.has_come(world.now, world.options.chunk_tokens.max(1)).min(budget);
            answer.imported += come;
            budget -= come;
            seconds += profile.transfer.import_s_per_token * come as f64;
            if answer.imported < answer.stored {
                if budget > 0 {
                    self.await_piece(id, world);
                }
                break;
            }
            // A long rest is computed before, some of it between two steps; what is left then with the first step.
            let most = budget / COMPUTE_COST;
            if answer.rest > most {
                let begins = answer.stored;
                answer.stored += most;
                answer.imported = answer.stored;
                answer.rest -= most;
                let cost = &profile.prefill;
                seconds += if most > 0 { cost.pass_s([(begins, most)]) } else { 0.0 };
                world.measure.recomputed(most);
                break;
            }
            budget = budget.saturating_sub(answer.rest * COMPUTE_COST);
            self.schedule.joined();
        }
        seconds
    }

    /// Looks again when the next pieces of an answer have come: some of them, if there are many.
    fn await_piece(&self, id: u64, world: &mut World<'_>) {
        let Some((answer, Fetch { first, all })) = self.answers.get(&id).and_then(|it| Some((it, it.fetch?))) else {
            return;
        };
        let missing = answer.stored - answer.imported;
        let share = (IMPORT_TOKENS_PER_STEP as f64 / missing as f64).min(1.0);
        let begins = first.max(world.now);
        let next = begins + (all.saturating_sub(begins) as f64 * share) as Nanos;
        world.at(next.max(world.now + 1).min(all.max(world.now + 1)), Event::Poked(self.worker));
    }

    /// Sends away those for whom there are no pages; whether one of them failed.
    fn make_room(&mut self, world: &mut World<'_>) -> bool {
        let left = self.schedule.make_room();
        for id in left.preempted {
            if let Some(answer) = self.answers.get_mut(&id) {
                let job = &world.jobs[answer.job];
                let stored = answer.stored.min(job.stored);
                let rest = job.prompt + job.generated - 1 - stored;
                *answer = Answer { job: answer.job, fetch: None, stored, imported: 0, rest };
                world.measure.preempted();
            }
        }
        let failed = left.failed.and_then(|id| self.answers.remove(&id));
        if let Some(answer) = &failed {
            self.fail(answer.job, world);
        }
        failed.is_some()
    }

    /// A burst has ended, unless it was cut.
    pub(super) fn stepped(&mut self, number: u32, world: &mut World<'_>) {
        if number != self.number {
            return;
        }
        let Some(mut burst) = self.burst.take() else { return };
        if let Some(held_up) = world.ends(Role::Decode, self.worker) {
            // It is one step, as everywhere on a machine.
            burst.begins += held_up;
            return self.begin(burst, world);
        }
        let tokens = burst.steps * self.schedule.running().len();
        let steps = burst.steps as f64;
        world.spend(Role::Decode, |host| host.cpu_s_per_step * steps + host.cpu_s_per_token * tokens as f64);
        world.decode.busy_nanos += u128::from(burst.after(burst.steps) - burst.begins);
        if burst.steps > 0 {
            self.schedule.advance(burst.steps);
            self.grow(&burst, world);
        }
        self.round(world);
    }

    /// Every running answer has grown by the burst's steps.
    fn grow(&mut self, burst: &Burst, world: &mut World<'_>) {
        let running = self.schedule.running().to_vec();
        let end = burst.after(1);
        // The first step of a burst follows what was imported before it, so gaps count from each answer's own last token.
        for id in &running {
            let Some(answer) = self.answers.get_mut(id) else { continue };
            let job = &mut world.jobs[answer.job];
            if job.generated == 0 {
                job.first = end;
                world.measure.first_token(job, end);
            } else {
                world.measure.gap(seconds(end - job.last), 1);
            }
            job.generated += burst.steps;
            job.last = burst.after(burst.steps);
        }
        for step in 1..burst.steps {
            world.measure.gap(burst.step_s(step), running.len() as u64);
        }
        world.measure.stepped(burst.steps, running.len());
        for id in running {
            if let Some(answer) = self.answers.get(&id)
                && world.jobs[answer.job].generated >= world.jobs[answer.job].output
            {
                let job = answer.job;
                self.schedule.remove(id);
                self.answers.remove(&id);
                self.complete(job, world);
            }
        }
    }

    fn complete(&mut self, job: JobId, world: &mut World<'_>) {
        world.complete(job);
        world.decode.done += 1;
        world.free(Role::Decode, self.worker);
        self.drain_if_empty(world);
    }

    fn fail(&mut self, job: JobId, world: &mut World<'_>) {
        world.fail(job);
        world.free(Role::Decode, self.worker);
        self.drain_if_empty(world);
    }

    /// Hands over what it holds after the step under way.
    pub(super) fn drain(&mut self, world: &mut World<'_>) {
        self.drains = true;
        match self.burst {
            Some(_) => self.cut(world),
            None => self.hand_back(world),
        }
    }

    /// Other workers go on with what this one holds.
    fn hand_back(&mut self, world: &mut World<'_>) {
        let hop = nanos(world.options.decode.profile.bus.hop_s);
        // The last is the first that the queue gets back, so that their order stays.
        for (id, answer) in std::mem::take(&mut self.answers).into_iter().rev() {
            self.schedule.remove(id);
            world.at(world.now + hop, Event::Handed(answer.job));
            world.free(Role::Decode, self.worker);
        }
        self.drain_if_empty(world);
    }

    pub(super) fn drains(&self) -> bool {
        self.drains
    }

    fn drain_if_empty(&mut self, world: &mut World<'_>) {
        if self.drains && self.answers.is_empty() {
            self.drains = false;
            world.drained.push((self.worker, Role::Prefill));
        }
    }
}
