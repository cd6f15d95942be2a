use std::collections::{BTreeMap, VecDeque};

use baton_contract::Name;
use proptest::prelude::*;

use super::Rounds;

fn tenant(index: usize) -> Name {
    Name::new(&format!("t{index}")).unwrap()
}

fn counts(queues: &[VecDeque<u64>]) -> BTreeMap<Name, u64> {
    queues.iter().enumerate().map(|(index, queue)| (tenant(index), queue.len() as u64)).collect()
}

fn index(name: &Name) -> usize {
    name.as_str()[1..].parse().unwrap()
}

#[test]
fn a_newcomer_need_not_wait_for_a_backlog() {
    let mut rounds = Rounds::default();
    let waiting = |a: u64, b: u64| BTreeMap::from([(tenant(0), a), (tenant(1), b)]);
    assert_eq!(rounds.next(waiting(100_000, 0), |_| 3, 8), [(tenant(0), 3), (tenant(0), 3), (tenant(0), 2)]);
    // Its turn goes on, then the other has one.
    let order = rounds.next(waiting(99_992, 4), |_| 3, 8);
    assert_eq!(order, [(tenant(0), 1), (tenant(1), 3), (tenant(0), 3), (tenant(1), 1)]);
    assert_eq!(rounds.next(waiting(0, 0), |_| 3, 8), []);
    assert_eq!(rounds.next(waiting(1, 1), |_| 3, 0), []);
}

proptest! {
    /// Whatever the room, the weights and who comes when: no more is taken than waits or fits, no room is left while
    /// somebody waits, and in a time in which two have jobs all along, what each has got for its weight differs by one turn at
    /// most; so nobody starves.
    #[test]
    fn shares_follow_the_weights(
        weights in prop::collection::vec(1u64..6, 1..6),
        steps in prop::collection::vec((prop::collection::vec(0u64..9, 6), 0u64..12), 1..60),
    ) {
        let mut rounds = Rounds::default();
        let count = weights.len();
        let mut queues = vec![VecDeque::new(); count];
        let mut arrived = vec![0u64; count];
        // What each got since it has jobs without a break.
        let mut got: Vec<Vec<u64>> = vec![vec![0; count]; count];
        for (arrivals, room) in steps {
            for (index, queue) in queues.iter_mut().enumerate() {
                for _ in 0..arrivals[index] {
                    queue.push_back(arrived[index]);
                    arrived[index] += 1;
                }
            }
            let waiting: u64 = queues.iter().map(|queue| queue.len() as u64).sum();
            let order = rounds.next(counts(&queues), |name| weights[index(name)], room);
            let taken: u64 = order.iter().map(|(_, jobs)| jobs).sum();
            prop_assert_eq!(taken, room.min(waiting), "room was left, or made up");
            for (name, jobs) in &order {
                let who = index(name);
                prop_assert!(*jobs > 0 && *jobs <= weights[who]);
                for _ in 0..*jobs {
                    prop_assert!(queues[who].pop_front().is_some(), "more was taken than waits");
                }
                got[who].iter_mut().for_each(|got| *got += jobs);
                // Who has none waiting can claim nothing for the time before; from here on both are measured anew.
                for idle in (0..count).filter(|&idle| queues[idle].is_empty()) {
                    got[idle].fill(0);
                    got.iter_mut().for_each(|row| row[idle] = 0);
                }
            }
            for a in (0..count).filter(|&a| !queues[a].is_empty()) {
                for b in (0..count).filter(|&b| !queues[b].is_empty()) {
                    let (mine, others) = (got[a][b] as f64 / weights[a] as f64, got[b][a] as f64 / weights[b] as f64);
                    prop_assert!(mine - others <= 1.0, "{a} is {mine} turns ahead of {others} of {b}");
                }
            }
        }
    }
}
