use std::collections::BTreeSet;

use proptest::{collection::vec, prelude::*};

use super::*;

fn schedule(pages: usize, batch_tokens: usize, ahead: usize) -> Schedule {
    Schedule::new(Options { page_tokens: 8, pages, batch_tokens, ahead })
}

fn share(id: PromptId, tokens: usize) -> Share {
    Share { id, tokens }
}

/// Takes the next pass, everything stored at once.
fn pass(schedule: &mut Schedule) -> Vec<Share> {
    while schedule.admit().is_some() {}
    let shares = schedule.next();
    for &share in &shares {
        schedule.computed(share);
        schedule.stored(share.id, share.tokens);
    }
    schedule.passed();
    for Share { id, .. } in &shares {
        if schedule.prompts[id].computed == schedule.prompts[id].tokens {
            schedule.remove(*id);
        }
    }
    shares
}

#[test]
fn short_prompts_pass_long_ones_which_still_go_on() {
    let mut schedule = schedule(1000, 64, 1000);
    schedule.submit(0, 200, 0).unwrap();
    assert_eq!(pass(&mut schedule), [share(0, 64)], "alone it has all");
    schedule.submit(1, 300, 0).unwrap();
    for id in 2..6 {
        schedule.submit(id, 10, 0).unwrap();
    }
    assert_eq!(pass(&mut schedule), [share(0, 32), share(2, 10), share(3, 10), share(4, 10), share(5, 2)]);
    assert_eq!(pass(&mut schedule), [share(0, 32), share(5, 8), share(1, 24)]);
    assert_eq!(pass(&mut schedule), [share(0, 32), share(1, 32)]);
    assert_eq!(pass(&mut schedule), [share(0, 32), share(1, 32)]);
    assert_eq!(pass(&mut schedule), [share(0, 8), share(1, 56)], "what the oldest does not need others have");
    assert_eq!(pass(&mut schedule), [share(1, 64)]);
}

#[test]
fn a_prompt_waits_for_the_store_and_for_pages_and_fails_if_it_can_never_have_them() {
    let mut schedule = schedule(10, 64, 32);
    assert_eq!(schedule.submit(9, 81, 0), Err(TooLong { needed: 81, capacity: 80 }));
    schedule.submit(0, 70, 0).unwrap();
    schedule.submit(1, 9, 0).unwrap();
    schedule.submit(2, 8, 0).unwrap();
    assert_eq!(
        (schedule.admit(), schedule.admit()),
        (Some(0), None),
        "two more pages are too many, and the third waits behind"
    );
    assert_eq!(schedule.next(), [share(0, 32)]);
    schedule.computed(share(0, 32));
    assert_eq!(schedule.next(), [], "the store is behind");
    schedule.stored(0, 8);
    assert_eq!(schedule.next(), [share(0, 8)]);
    schedule.remove(0);
    assert_eq!((schedule.admit(), schedule.admit()), (Some(1), Some(2)));
    assert_eq!(schedule.next(), [share(1, 9), share(2, 8)]);
}

#[test]
fn after_failures_passes_are_smaller_for_a_time() {
    let mut schedule = schedule(1000, 64, 1000);
    for id in 0..4 {
        schedule.submit(id, 500, 0).unwrap();
    }
    while schedule.admit().is_some() {}
    let mut sizes = Vec::new();
    loop {
        let shares = schedule.next();
        sizes.push((shares.len(), shares.iter().map(|share| share.tokens).sum::<usize>()));
        if let Some(failed) = schedule.failed(&shares) {
            assert_eq!(failed, 0);
            break;
        }
    }
    assert_eq!(sizes, [(2, 64), (1, 64), (1, 32), (1, 16), (1, 8), (1, 4), (1, 2), (1, 1)]);
    assert_eq!(schedule.next(), [share(1, 32), share(2, 32)], "the one to blame is gone");
    assert_eq!(schedule.failed(&[share(1, 64)]), None);
    for _ in 0..PASSES_TO_GROW {
        assert_eq!(pass(&mut schedule).iter().map(|share| share.tokens).sum::<usize>(), 32);
    }
    assert_eq!(pass(&mut schedule).iter().map(|share| share.tokens).sum::<usize>(), 64);
}

proptest! {
    /// Whatever comes when, and however slow the store is: no pass is too large, pages never run out, nobody is further ahead
    /// of the store than allowed, and every prompt ends, though short ones keep coming.
    #[test]
    fn every_prompt_ends_within_the_limits(
        pages in 1usize..30, batch in 1usize..100, piece in 1usize..40,
        prompts in vec((1usize..200, 0usize..6, 0usize..300), 1..30), fails in any::<u64>(), lag in 1usize..5,
        gone in any::<u64>(),
    ) {
        let ahead = 2 * batch.max(piece);
        let mut schedule = schedule(pages, batch, ahead);
        let mut coming: VecDeque<_> = prompts.iter().copied().enumerate().collect();
        let mut open: BTreeMap<PromptId, (usize, usize)> = BTreeMap::new();
        let (mut refused, mut ended) = (BTreeSet::new(), BTreeSet::new());
        let (mut rounds, mut next) = (0usize, 0);
        let mut puts: VecDeque<(usize, Share)> = VecDeque::new();
        while refused.len() + ended.len() < prompts.len() {
            rounds += 1;
            next += 1;
            prop_assert!(rounds < 100_000, "{:?} did not end", open.keys());
            while let Some((id, (tokens, _, reused))) = coming.pop_front_if(|(_, (_, at, _))| next > *at) {
                if schedule.submit(id as PromptId, tokens, reused.min(tokens - 1)).is_err() {
                    prop_assert!(tokens > pages * 8);
                    refused.insert(id as PromptId);
                }
                next = 0;
            }
            while let Some(id) = schedule.admit() {
                open.insert(id, (0, 0));
            }
            // What is reused comes piece by piece, or is gone.
            for (&id, (computed, stored)) in &mut open {
                let (total, _, reused) = prompts[id as usize];
                if schedule.lacks(id) && gone >> ((id as usize + rounds) % 64) & 1 == 1 {
                    schedule.reuse(id, *computed);
                } else if schedule.lacks(id) {
                    let tokens = piece.min(reused.min(total - 1) - *computed);
                    schedule.computed(Share { id, tokens });
                    schedule.stored(id, tokens);
                    *computed += tokens;
                    *stored += tokens;
                }
            }
            prop_assert!(open.keys().map(|id| prompts[*id as usize].0.div_ceil(8)).sum::<usize>() <= pages);
            while let Some((_, put)) = puts.pop_front_if(|(at, _)| *at <= rounds) {
                schedule.stored(put.id, put.tokens);
                if let Some((_, stored)) = open.get_mut(&put.id) {
                    *stored += put.tokens;
                }
            }
            let lacking: BTreeSet<_> = open.keys().copied().filter(|id| schedule.lacks(*id)).collect();
            let shares = schedule.next();
            prop_assert!(shares.iter().map(|share| share.tokens).sum::<usize>() <= batch);
            prop_assert_eq!(shares.iter().map(|share| share.id).collect::<BTreeSet<_>>().len(), shares.len());
            // A single token never fails here.
            if fails >> (rounds % 64) & 1 == 1 && shares.iter().map(|share| share.tokens).sum::<usize>() > 1 {
                prop_assert_eq!(schedule.failed(&shares), None);
                continue;
            }
            schedule.passed();
            for share in shares {
                schedule.computed(share);
                let (computed, stored) = open.get_mut(&share.id).unwrap();
                let total = prompts[share.id as usize].0;
                prop_assert!(share.tokens > 0 && !lacking.contains(&share.id));
                let before = *computed;
                *computed += share.tokens;
                prop_assert!(*computed <= total && computed.saturating_sub(*stored) <= ahead);
                // Only whole pieces are stored.
                let stored = if *computed == total { total } else { *computed / piece * piece };
                puts.push_back((rounds + lag, Share { id: share.id, tokens: stored - (before / piece * piece).min(stored) }));
                if *computed == total {
                    schedule.remove(share.id);
                    open.remove(&share.id);
                    ended.insert(share.id);
                }
            }
        }
        prop_assert_eq!(schedule.admit(), None);
    }
}
