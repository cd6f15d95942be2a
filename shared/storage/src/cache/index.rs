//! Which entries a bounded cache holds, and which go when it is full. No values, no I/O.

use std::{
    collections::{BTreeMap, HashMap},
    hash::Hash,
};

/// Keys with sizes, at most a budget of bytes together; the least recently used go first.
#[derive(Clone, Debug)]
pub struct Index<K> {
    budget: u64,
    bytes: u64,
    /// Counts uses, so that it orders them.
    clock: u64,
    entries: HashMap<K, Entry>,
    by_use: BTreeMap<u64, K>,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    bytes: u64,
    used: u64,
}

impl<K: Clone + Eq + Hash> Index<K> {
    /// An empty index of at most `budget` bytes.
    pub fn new(budget: u64) -> Self {
        Self { budget, bytes: 0, clock: 0, entries: HashMap::new(), by_use: BTreeMap::new() }
    }

    /// Enters a key of `bytes` bytes, or gives it these, as the most recently used, and returns those that had to go, the
    /// least recently used first. A key that is larger than the budget by itself is not entered and is all that goes.
    pub fn insert(&mut self, key: K, bytes: u64) -> Vec<K> {
        self.remove(&key);
        if bytes > self.budget {
            return vec![key];
        }
        let mut evicted = Vec::new();
        while self.bytes > self.budget - bytes {
            let Some((_, oldest)) = self.by_use.pop_first() else { break };
            self.bytes -= self.entries.remove(&oldest).map_or(0, |entry| entry.bytes);
            evicted.push(oldest);
        }
        self.clock += 1;
        self.bytes += bytes;
        self.entries.insert(key.clone(), Entry { bytes, used: self.clock });
        self.by_use.insert(self.clock, key);
        evicted
    }

    /// Makes a key the most recently used. `false` if it is not there.
    pub fn touch(&mut self, key: &K) -> bool {
        let Some(entry) = self.entries.get_mut(key) else { return false };
        self.clock += 1;
        if let Some(key) = self.by_use.remove(&entry.used) {
            self.by_use.insert(self.clock, key);
        }
        entry.used = self.clock;
        true
    }

    /// Takes a key out. `false` if it was not there.
    pub fn remove(&mut self, key: &K) -> bool {
        let Some(entry) = self.entries.remove(key) else { return false };
        self.by_use.remove(&entry.used);
        self.bytes -= entry.bytes;
        true
    }

    /// Whether a key is there. This is no use of it.
    pub fn contains(&self, key: &K) -> bool {
        self.entries.contains_key(key)
    }

    /// Bytes of all keys together.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The number of keys.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is no key.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    /// The same in the plainest way: a list, the least recently used first.
    #[derive(Default)]
    struct Model(Vec<(u8, u64)>);

    impl Model {
        fn bytes(&self) -> u64 {
            self.0.iter().map(|(_, bytes)| bytes).sum()
        }

        fn remove(&mut self, key: u8) -> Option<u64> {
            let at = self.0.iter().position(|(found, _)| *found == key)?;
            Some(self.0.remove(at).1)
        }

        fn insert(&mut self, key: u8, bytes: u64, budget: u64) -> Vec<u8> {
            self.remove(key);
            if bytes > budget {
                return vec![key];
            }
            let mut evicted = Vec::new();
            while self.bytes() + bytes > budget {
                evicted.push(self.0.remove(0).0);
            }
            self.0.push((key, bytes));
            evicted
        }

        fn touch(&mut self, key: u8) -> bool {
            let found = self.remove(key);
            self.0.extend(found.map(|bytes| (key, bytes)));
            found.is_some()
        }
    }

    proptest! {
        #[test]
        fn it_does_what_a_plain_list_does(budget in 0u64..60, steps in vec((0u8..3, 0u8..12, 0u64..25), 0..300)) {
            let (mut index, mut model) = (Index::new(budget), Model::default());
            for (what, key, bytes) in steps {
                match what {
                    0 => prop_assert_eq!(index.insert(key, bytes), model.insert(key, bytes, budget)),
                    1 => prop_assert_eq!(index.touch(&key), model.touch(key)),
                    _ => prop_assert_eq!(index.remove(&key), model.remove(key).is_some()),
                }
                prop_assert_eq!(index.bytes(), model.bytes());
                prop_assert!(index.bytes() <= budget);
                prop_assert_eq!(index.len(), model.0.len());
                prop_assert!(model.0.iter().all(|(key, _)| index.contains(key)));
            }
        }
    }
}
