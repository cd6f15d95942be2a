use std::time::UNIX_EPOCH;

use proptest::{collection::vec, prelude::*};

use super::*;

const NOW: u64 = 1_000;

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// Chunks by (seconds since their last use, bytes, live); one may be used in the future of our clock.
fn stored(chunks: &[(u64, u64, bool)]) -> (Vec<Object>, HashSet<ChunkId>) {
    let object = |(number, &(age, bytes, _)): (usize, &(u64, u64, bool))| {
        let mut id = [0; 32];
        id[..8].copy_from_slice(&(number as u64).to_le_bytes());
        Object { id: ChunkId(id), bytes, used: UNIX_EPOCH + seconds(NOW + 10 - age) }
    };
    let objects: Vec<_> = chunks.iter().enumerate().map(object).collect();
    let live = objects.iter().zip(chunks).filter(|(_, (_, _, live))| *live).map(|(object, _)| object.id).collect();
    (objects, live)
}

#[test]
fn age_takes_the_forgotten_and_the_budget_the_longest_unused_of_the_rest() {
    let (objects, live) = stored(&[
        (110, 10, false), // over max_age
        (110, 10, true),  // live
        (60, 10, false),  // the longest unused of the rest
        (50, 10, false),
        (40, 10, false),
        (15, 100, false), // young
        (0, 10, false),   // put by a clock that is ahead
    ]);
    let now = UNIX_EPOCH + seconds(NOW);
    let gone = |max_age, max_bytes, grace| -> Vec<_> {
        let options = Options { max_age: seconds(max_age), max_bytes, grace: seconds(grace) };
        plan(&objects, &live, now, &options).iter().map(|removal| (removal.object.id.0[0], removal.reason)).collect()
    };
    use Reason::{Age, Budget};
    assert_eq!(gone(100, None, 10), [(0, Age)]);
    assert_eq!(gone(101, None, 10), []);
    assert_eq!(gone(100, Some(131), 10), [(0, Age), (2, Budget), (3, Budget)]);
    assert_eq!(gone(100, Some(140), 10), [(0, Age), (2, Budget)]);
    // All that may go is not enough.
    assert_eq!(gone(100, Some(0), 10), [(0, Age), (2, Budget), (3, Budget), (4, Budget)]);
    assert_eq!(gone(0, None, 0).len(), 6, "all but the live one");
}

proptest! {
    #[test]
    fn a_plan_spares_the_live_and_young_and_takes_the_oldest_as_far_as_it_must(
        chunks in vec((0u64..200, 0u64..50, prop::bool::weighted(0.3)), 0..40),
        max_age in 0u64..200, grace in 0u64..200, max_bytes in prop::option::of(0u64..600),
    ) {
        let (objects, live) = stored(&chunks);
        let now = UNIX_EPOCH + seconds(NOW);
        let options = Options { max_age: seconds(max_age), max_bytes, grace: seconds(grace) };
        let removals = plan(&objects, &live, now, &options);
        for removal in &removals {
            prop_assert!(!live.contains(&removal.object.id) && removal.object.age(now) >= options.grace);
            prop_assert_eq!(removal.reason == Reason::Age, removal.object.age(now) >= options.max_age);
        }
        prop_assert!(removals.is_sorted_by_key(|removal| removal.object.used), "the oldest first");
        let gone: HashSet<_> = removals.iter().map(|removal| removal.object.id).collect();
        prop_assert_eq!(gone.len(), removals.len(), "each once");
        let left: Vec<_> = objects.iter().filter(|object| !gone.contains(&object.id)).collect();
        let could_go: Vec<_> =
            left.iter().filter(|object| !live.contains(&object.id) && object.age(now) >= options.grace).collect();
        prop_assert!(could_go.iter().all(|object| object.age(now) < options.max_age));
        let bytes: u64 = left.iter().map(|object| object.bytes).sum();
        prop_assert!(max_bytes.is_none_or(|budget| bytes <= budget) || could_go.is_empty());
        if let Some(last) = removals.last() {
            prop_assert!(could_go.iter().all(|object| object.used >= last.object.used));
            let without_it = bytes + last.object.bytes;
            prop_assert!(last.reason == Reason::Age || max_bytes.is_some_and(|budget| without_it > budget), "too many");
        }
    }
}
