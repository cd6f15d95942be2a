//! A prefill worker: its engine's thread, and what it puts and gets.

use std::collections::VecDeque;

use baton_contract::Role;
use baton_prefill::{
    IMPORT_TOKENS_PER_PASS, PASSES_AHEAD,
    schedule::{self, Schedule, Share},
};

use super::{
    Options,
    jobs::JobId,
    reuse::Place,
    time::{Nanos, nanos},
    world::{Event, World},
};

pub(super) struct PrefillWorker {
    worker: usize,
    schedule: Schedule,
    /// What the engine's thread is at, if it is at something.
    pass: Option<Vec<Share>>,
    /// Prompts whose reused beginning is in memory, and the tokens of it that are not in pages.
    importing: VecDeque<(JobId, usize)>,
    /// Of each open prompt, the tokens that are computed or imported.
    done: std::collections::BTreeMap<JobId, usize>,
    /// Until when what was put or fetched keeps the way to the store.
    puts_until: Nanos,
    gets_until: Nanos,
    /// Jobs that it holds.
    held: usize,
    drains: bool,
}

impl PrefillWorker {
    pub(super) fn new(worker: usize, options: &Options) -> Self {
        let page_tokens = options.prefill.profile.kv.page_tokens.max(1);
        let schedule = Schedule::new(schedule::Options {
            page_tokens,
            pages: (options.prefill.kv_tokens / page_tokens).max(1),
            batch_tokens: options.batch_tokens,
            ahead: PASSES_AHEAD * options.batch_tokens.max(options.chunk_tokens),
        });
        Self {
            worker,
            schedule,
            pass: None,
            importing: VecDeque::new(),
            done: std::collections::BTreeMap::new(),
            puts_until: 0,
            gets_until: 0,
            held: 0,
            drains: false,
        }
    }

    /// A job has come.
    pub(super) fn take(&mut self, job: JobId, world: &mut World<'_>) {
        self.held += 1;
        self.find(job, world);
    }

    /// Finds the beginning that need not be computed, and waits for what others compute.
    pub(super) fn find(&mut self, job: JobId, world: &mut World<'_>) {
        let Options { block_tokens, chunk_tokens, decode_prefills, .. } = *world.options;
        let whole = (world.jobs[job].prompt / block_tokens.max(1)).min(world.jobs[job].blocks.len());
        while world.jobs[job].found < whole {
            let block = world.jobs[job].blocks[world.jobs[job].found];
            match world.prefixes.find(block) {
                Place::Stored => world.jobs[job].found += 1,
                Place::Computing => return world.prefixes.wait(block, job, self.worker),
                Place::Nowhere => break,
            }
        }
        let prompt = world.jobs[job].prompt;
        let found = (world.jobs[job].found * block_tokens / chunk_tokens.max(1) * chunk_tokens).min(prompt);
        let reused = found.min(prompt - 1);
        world.jobs[job].reused = reused;
        if found > 0 && prompt - reused <= decode_prefills {
            world.jobs[job].stored = found.min(prompt - 1);
            return self.hand_over(job, world);
        }
        world.jobs[job].stored = 0;
        for index in world.jobs[job].found..whole {
            let block = world.jobs[job].blocks[index];
            world.prefixes.claim(block, job);
        }
        if self.schedule.submit(u64::from(job), prompt, reused).is_err() {
            let blocks = std::mem::take(&mut world.jobs[job].blocks);
            for (waiting, worker) in world.prefixes.abandon(&blocks, job) {
                world.at(world.now, Event::Found(waiting, worker));
            }
            world.fail(job);
            return self.free(world);
        }
        self.done.insert(job, 0);
        self.round(world);
    }

    /// What a prompt reuses is in memory.
    pub(super) fn fetched(&mut self, job: JobId, world: &mut World<'_>) {
        self.importing.push_back((job, world.jobs[job].reused));
        self.round(world);
    }

    /// Opens prompts, imports what they reuse, and begins a pass, unless the thread is at one.
    fn round(&mut self, world: &mut World<'_>) {
        if self.pass.is_some() {
            return;
        }
        while let Some(id) = self.schedule.admit() {
            if self.schedule.lacks(id) {
                self.fetch(id as JobId, world);
            }
        }
        let profile = &world.options.prefill.profile;
        let imported = self.import(world);
        let shares = self.schedule.next();
        if imported == 0 && shares.is_empty() {
            return;
        }
        let mut busy = profile.transfer.import_s_per_token * imported as f64;
        if !shares.is_empty() {
            let parts =
                shares.iter().map(|share| (self.done.get(&(share.id as JobId)).copied().unwrap_or(0), share.tokens));
            busy += profile.prefill.pass_s(parts);
            let tokens: usize = shares.iter().map(|share| share.tokens).sum();
            busy += profile.transfer.export_s_per_token * tokens as f64;
            world.measure.computed(tokens);
        }
        self.pass = Some(shares);
        world.computes(Role::Prefill, self.worker);
        world.prefill.busy_nanos += u128::from(nanos(busy));
        world.at(world.now + nanos(busy), Event::Passed(self.worker));
    }

    /// Asks for a prompt's beginning: its chunks come one after another, each a round trip after it was asked for, four at a time.
    fn fetch(&mut self, job: JobId, world: &mut World<'_>) {
        let profile = &world.options.prefill.profile;
        let reused = world.jobs[job].reused;
        world.spend(Role::Prefill, |host| host.get_cpu_s_per_byte * profile.stored_bytes(reused));
        let trips = reused.div_ceil(world.options.chunk_tokens.max(1)).div_ceil(super::decode::FETCHES);
        let begins = self.gets_until.max(world.now);
        self.gets_until = begins + nanos(profile.stored_bytes(reused) * profile.store.get_s_per_byte);
        world.at(self.gets_until + nanos(profile.store.get_s * trips as f64), Event::Fetched(job, self.worker));
    }

    /// Imports what was brought, as much of it as the others can wait for; returns the tokens.
    fn import(&mut self, world: &mut World<'_>) -> usize {
        let mut left = IMPORT_TOKENS_PER_PASS;
        while left > 0
            && let Some((job, tokens)) = self.importing.front_mut()
        {
            let now = left.min(*tokens);
            let share = Share { id: u64::from(*job), tokens: now };
            left -= now;
            *tokens -= now;
            self.schedule.stored(share.id, now);
            self.schedule.computed(share);
            *self.done.entry(*job).or_default() += now;
            world.jobs[*job].stored += now;
            if *tokens == 0 {
                self.importing.pop_front();
            }
        }
        IMPORT_TOKENS_PER_PASS - left
    }

    /// A pass has ended: what it completed goes to the store.
    pub(super) fn passed(&mut self, world: &mut World<'_>) {
        if let Some(held_up) = world.ends(Role::Prefill, self.worker) {
            return world.at(world.now + held_up, Event::Passed(self.worker));
        }
        let profile = &world.options.prefill.profile;
        let chunk = world.options.chunk_tokens.max(1);
        let shares = self.pass.take().unwrap_or_default();
        if !shares.is_empty() {
            self.schedule.passed();
        }
        for share in shares {
            let job = share.id as JobId;
            self.schedule.computed(share);
            let Some(done) = self.done.get_mut(&job) else { continue };
            let (before, after, prompt) = (*done, *done + share.tokens, world.jobs[job].prompt);
            *done = after;
            // Pieces leave when their last token is computed.
            let left = |done: usize| if done == prompt { prompt } else { done / chunk * chunk };
            let tokens = left(after) - left(before).max(world.jobs[job].reused.min(left(after)));
            if tokens > 0 {
                let bytes = profile.stored_bytes(tokens);
                world.spend(Role::Prefill, |host| host.put_cpu_s_per_byte * bytes);
                self.puts_until = self.puts_until.max(world.now) + nanos(bytes * profile.store.put_s_per_byte);
                let stored = self.puts_until + nanos(profile.store.put_s);
                world.at(stored, Event::Stored(job, tokens as u32, self.worker));
            }
            if after == prompt {
                self.schedule.remove(share.id);
                self.done.remove(&job);
            }
        }
        self.round(world);
    }

    /// Tokens of a prompt are in the store.
    pub(super) fn stored(&mut self, job: JobId, tokens: usize, world: &mut World<'_>) {
        self.schedule.stored(u64::from(job), tokens);
        let block_tokens = world.options.block_tokens.max(1);
        let bytes = world.options.prefill.profile.stored_bytes(block_tokens) as u64;
        let state = &mut world.jobs[job];
        state.stored += tokens;
        let (stored, prompt) = (state.stored, state.prompt);
        while world.jobs[job].found < world.jobs[job].blocks.len()
            && (world.jobs[job].found + 1) * block_tokens <= stored
        {
            let block = world.jobs[job].blocks[world.jobs[job].found];
            world.jobs[job].found += 1;
            for (waiting, worker) in world.prefixes.store(block, bytes, job) {
                world.at(world.now, Event::Found(waiting, worker));
            }
        }
        if stored >= prompt {
            self.hand_over(job, world);
        }
        self.round(world);
    }

    fn hand_over(&mut self, job: JobId, world: &mut World<'_>) {
        let state = &mut world.jobs[job];
        world.measure.prefilled(state, world.now);
        state.blocks = Vec::new();
        world.prefill.done += 1;
        world.at(world.now + nanos(world.options.prefill.profile.bus.hop_s), Event::Queued(job));
        self.free(world);
    }

    fn free(&mut self, world: &mut World<'_>) {
        self.held -= 1;
        world.free(Role::Prefill, self.worker);
        self.drain_if_empty(world);
    }

    /// Takes nothing any more, and says when it holds nothing.
    pub(super) fn drain(&mut self, world: &mut World<'_>) {
        self.drains = true;
        self.drain_if_empty(world);
    }

    pub(super) fn drains(&self) -> bool {
        self.drains
    }

    fn drain_if_empty(&mut self, world: &mut World<'_>) {
        if self.drains && self.held == 0 {
            world.drained.push((self.worker, Role::Decode));
        }
    }
}
