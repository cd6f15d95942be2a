//! Randomness for pauses, which need not be good.

use std::hash::{BuildHasher, RandomState};

/// 64 random bits, others at each call.
pub(crate) fn entropy() -> u64 {
    RandomState::new().hash_one(0u8)
}
