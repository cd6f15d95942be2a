use std::collections::BTreeSet;

use proptest::{collection::vec, prelude::*};

use super::*;

/// What the schedule can't see: how long each answer becomes, what was brought of it, and what it holds.
struct World {
    schedule: Schedule,
    page_tokens: usize,
    pages: usize,
    /// Tokens still to generate, of those that did not end.
    rest: BTreeMap<AnswerId, usize>,
    /// KV tokens in pages.
    held: BTreeMap<AnswerId, usize>,
    /// KV tokens when the answer runs.
    tokens: BTreeMap<AnswerId, usize>,
    ended: Vec<AnswerId>,
    failed: BTreeSet<AnswerId>,
}

impl World {
    fn new(page_tokens: usize, pages: usize) -> Self {
        Self {
            schedule: Schedule::new(page_tokens, pages),
            page_tokens,
            pages,
            rest: BTreeMap::new(),
            held: BTreeMap::new(),
            tokens: BTreeMap::new(),
            ended: Vec::new(),
            failed: BTreeSet::new(),
        }
    }

    fn submit(&mut self, id: AnswerId, prompt: usize, rest: usize) {
        match self.schedule.submit(id, prompt, prompt + rest) {
            Ok(()) => {
                self.rest.insert(id, rest);
                self.tokens.insert(id, prompt);
            }
            Err(TooLong { needed, capacity }) => {
                assert_eq!((needed, capacity), (prompt + 1, self.page_tokens * self.pages));
                self.failed.insert(id);
            }
        }
    }

    fn leave(&mut self, left: Left) {
        for id in &left.preempted {
            self.held.remove(id);
        }
        // They stand at the head of the queue, in their order.
        assert!(self.schedule.waiting().take(left.preempted.len()).eq(left.preempted));
        if let Some(id) = left.failed {
            self.held.remove(&id);
            self.rest.remove(&id);
            self.failed.insert(id);
        }
    }

    fn pages_held(&self) -> usize {
        self.held.values().map(|tokens| tokens.div_ceil(self.page_tokens)).sum()
    }

    /// One round of the engine's thread. At most `bring` answers join; a step with more than `fits` answers fails.
    fn round(&mut self, ready: impl Fn(AnswerId) -> bool, bring: usize, fits: usize) {
        while let Some(id) = self.schedule.admit(&ready) {
            assert!(ready(id));
            self.held.insert(id, 0);
        }
        for _ in 0..bring {
            let Some(id) = self.schedule.joining() else { break };
            self.held.insert(id, self.tokens[&id]);
            assert!(self.pages_held() <= self.pages);
            self.schedule.joined();
        }
        let left = self.schedule.make_room();
        self.leave(left);
        let running = self.schedule.running().to_vec();
        if running.len() > fits {
            let left = self.schedule.halve(true);
            return self.leave(left);
        }
        for &id in &running {
            *self.held.get_mut(&id).unwrap() += 1;
            *self.tokens.get_mut(&id).unwrap() += 1;
            *self.rest.get_mut(&id).unwrap() -= 1;
        }
        // Here the real model would refuse the step.
        assert!(self.pages_held() <= self.pages);
        if !running.is_empty() {
            self.schedule.stepped();
        }
        for id in running {
            if self.rest[&id] == 0 {
                self.schedule.remove(id);
                self.rest.remove(&id);
                self.held.remove(&id);
                self.ended.push(id);
            }
        }
    }
}

proptest! {
    /// Whatever comes when, pages never run out, everybody who can end does, and only those fail who need more than there is.
    #[test]
    fn everybody_ends_within_the_memory(
        page_tokens in 1usize..20, pages in 1usize..12, fits in 1usize..8, bring in 1usize..4,
        answers in vec((1usize..120, 1usize..80, 0usize..40), 1..24), unready in any::<u64>(),
    ) {
        let mut world = World::new(page_tokens, pages);
        let mut coming: VecDeque<_> = answers.iter().copied().enumerate().collect();
        let (mut rounds, mut next) = (0u64, 0);
        while !(coming.is_empty() && world.rest.is_empty()) {
            while let Some((id, (prompt, rest, _))) = coming.pop_front_if(|(_, (_, _, at))| next >= *at) {
                world.submit(id as AnswerId, prompt, rest);
                next = 0;
            }
            next += 1;
            // Now and then a fetch takes longer.
            world.round(|id| (unready >> ((id + rounds) % 64)) & 1 == 0 || rounds % 3 == 0, bring, fits);
            rounds += 1;
            // The first in the batch is never disturbed but by failures, which come after STEPS_TO_GROW good steps at most once, and
            // halving ends at one answer.
            let bound = answers.iter().map(|(_, rest, at)| 20 * (rest + at) as u64 + 100).sum::<u64>();
            prop_assert!(rounds < bound, "{} answers did not end in {rounds} rounds", world.rest.len());
        }
        for (id, (prompt, rest, _)) in answers.iter().enumerate() {
            let id = id as AnswerId;
            let capacity = page_tokens * pages;
            prop_assert_eq!(world.failed.contains(&id), prompt + rest > capacity);
            prop_assert_eq!(world.ended.contains(&id), prompt + rest <= capacity);
        }
        prop_assert_eq!(world.pages_held(), 0);
    }
}

#[test]
fn the_last_to_join_leaves_first_and_comes_back_first() {
    let mut world = World::new(4, 6);
    for id in 0..4 {
        world.submit(id, 7, 20);
    }
    // Three hold two pages each, but could not grow by a page each.
    world.round(|_| true, 9, 9);
    assert_eq!(world.schedule.running(), [0, 1]);
    // Nine to twelve tokens are three pages each; at the thirteenth there is none left.
    for _ in 0..4 {
        world.round(|_| true, 9, 9);
        assert_eq!(world.schedule.running(), [0, 1]);
    }
    world.round(|_| true, 9, 9);
    assert_eq!(world.schedule.running(), [0]);
    assert!(world.schedule.waiting().eq([1, 2, 3]));
    // What has been fetched for others doesn't let them pass by.
    world.round(|id| id != 1, 9, 9);
    assert_eq!(world.schedule.running(), [0]);
}

#[test]
fn a_failed_step_is_halved_until_it_fits_and_grows_again() {
    let mut world = World::new(16, 1000);
    for id in 0..12 {
        world.submit(id, 10, 200);
    }
    let mut sizes = Vec::new();
    for _ in 0..2 * STEPS_TO_GROW {
        world.round(|_| true, 99, 4);
        sizes.push(world.schedule.running().len());
    }
    assert_eq!(sizes[..3], [6, 3, 3]);
    // After a time without failure one more takes part.
    assert_eq!(sizes[STEPS_TO_GROW as usize + 2], 4);
    // Nothing fits: one after the other is to blame, and leaves.
    for _ in 0..60 {
        world.round(|_| true, 99, 0);
    }
    assert_eq!((world.failed.len(), world.rest.len()), (12, 0));

    // Sequences that a failed step has changed are of no use, though the answers stay first.
    let mut world = World::new(16, 1000);
    for id in 0..5 {
        world.submit(id, 10, 200);
    }
    world.round(|_| true, 99, 99);
    let left = world.schedule.halve(false);
    assert_eq!(left, Left { preempted: vec![0, 1, 2, 3, 4], failed: None });
    world.leave(left);
    world.round(|_| true, 99, 99);
    assert_eq!(world.schedule.running(), [0, 1]);
}
