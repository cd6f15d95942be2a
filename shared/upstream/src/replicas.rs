//! Which instance gets a request: the one that has answered its like before while that has room, or the one with the most room.

/// An instance that may get a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Standing {
    /// Whether it answers.
    pub(crate) up: bool,
    /// Whether it may get a request now. One that is not up may when it is to be tried again.
    pub(crate) open: bool,
    /// Requests that it has.
    pub(crate) running: usize,
    /// Requests that it may have.
    pub(crate) limit: usize,
    /// Stands for it whichever others there are.
    pub(crate) key: u64,
}

impl Standing {
    fn load(&self) -> f64 {
        self.running as f64 / self.limit.max(1) as f64
    }

    /// How much it is preferred for an `affinity` (rendezvous hashing: an instance that goes takes only its own with it).
    fn preference(&self, affinity: u64) -> u64 {
        mixed(affinity ^ mixed(self.key))
    }
}

/// Chooses by `affinity`; none if there is no room.
pub(crate) fn choose(instances: &[Standing], affinity: u64) -> Option<usize> {
    let numbered = || instances.iter().enumerate();
    // A request is the only way to learn whether it is back.
    if let Some((index, _)) = numbered().find(|(_, instance)| !instance.up && instance.open) {
        return Some(index);
    }
    let up = || numbered().filter(|(_, instance)| instance.up);
    let (preferred, standing) = up().max_by_key(|(_, instance)| instance.preference(affinity))?;
    let mean = up().map(|(_, instance)| instance.load()).sum::<f64>() / up().count() as f64;
    let bearable = 1.25 * mean + 1.0 / standing.limit.max(1) as f64;
    if standing.open && standing.load() <= bearable {
        return Some(preferred);
    }
    let least = |(_, one): &(usize, &Standing), (_, other): &(usize, &Standing)| {
        let by_preference = || other.preference(affinity).cmp(&one.preference(affinity));
        one.load().total_cmp(&other.load()).then_with(by_preference)
    };
    up().filter(|(_, instance)| instance.open).min_by(least).map(|(index, _)| index)
}

/// SplitMix64's output function (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014).
pub(crate) fn mixed(seed: u64) -> u64 {
    let z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    fn standing() -> impl Strategy<Value = Standing> {
        (any::<bool>(), any::<bool>(), 0..40usize, 1..40usize, any::<u64>()).prop_map(
            |(up, open, running, limit, key)| Standing {
                up,
                open: open && (!up || running < limit),
                running,
                limit,
                key,
            },
        )
    }

    fn idle(count: usize) -> Vec<Standing> {
        (0..count as u64).map(|key| Standing { up: true, open: true, running: 0, limit: 8, key }).collect()
    }

    proptest! {
        #[test]
        fn whoever_is_chosen_has_room_and_somebody_is_where_there_is_any(
            instances in vec(standing(), 0..8),
            affinity: u64,
        ) {
            let chosen = choose(&instances, affinity);
            prop_assert_eq!(chosen.is_some(), instances.iter().any(|instance| instance.open));
            if let Some(chosen) = chosen {
                prop_assert!(instances[chosen].open);
            }
        }

        #[test]
        fn a_preferred_one_is_never_far_above_the_others(instances in vec(standing(), 1..8), affinity: u64) {
            let Some(chosen) = choose(&instances, affinity) else { return Ok(()) };
            let up: Vec<_> = instances.iter().filter(|instance| instance.up).collect();
            let due = instances.iter().any(|instance| !instance.up && instance.open);
            if !due {
                let mean = up.iter().map(|instance| instance.load()).sum::<f64>() / up.len() as f64;
                let least = up.iter().filter(|instance| instance.open).map(|instance| instance.load());
                let least = least.fold(f64::MAX, f64::min);
                let chosen = &instances[chosen];
                let bearable = 1.25 * mean + 1.0 / chosen.limit as f64;
                prop_assert!(chosen.load() <= bearable.max(least), "{:?}", instances);
            }
        }

        #[test]
        fn equal_beginnings_meet_and_a_lost_instance_moves_only_its_own(count in 2..8usize, affinity: u64, lost: usize) {
            let mut instances = idle(count);
            let first = choose(&instances, affinity);
            instances[(first.unwrap() + 1) % count].running = 1;
            prop_assert_eq!(choose(&instances, affinity), first, "while it is not overloaded");
            let lost = lost % count;
            instances[lost] = Standing { up: false, open: false, ..instances[lost] };
            let then = choose(&instances, affinity);
            if first != Some(lost) {
                prop_assert_eq!(then, first);
            }
            prop_assert_ne!(then, Some(lost));
        }
    }

    #[test]
    fn affinities_spread_over_all() {
        let mut counts = [0; 4];
        (0..4_000).for_each(|affinity| counts[choose(&idle(4), affinity).unwrap()] += 1);
        assert!(counts.iter().all(|count| (850..1_150).contains(count)), "{counts:?}");
    }
}
