//! Token ids of prompts: no text, only as many tokens as asked for, and the same ones where prompts are to share a prefix.

use std::ops::Range;

use rand::{Rng, RngExt};

use crate::{FIRST_PROMPT, stream};

/// The `index`-th prompt of a seed: it shares nothing with others. Ids are from `vocabulary`, which must not be empty.
pub fn random(seed: u64, index: u64, tokens: u32, vocabulary: Range<u32>) -> Vec<u32> {
    let mut prompt = Vec::new();
    fill(&mut prompt, tokens as usize, &mut stream(seed, FIRST_PROMPT.wrapping_add(index)), &vocabulary);
    prompt
}

/// A prompt of `tokens` tokens that consists of named blocks, each of at most `block_tokens` tokens: the same name is the
/// same tokens, so that prompts whose names begin alike begin alike. What the names don't cover belongs to the last one.
pub fn of_blocks(seed: u64, blocks: &[u64], block_tokens: u32, tokens: u32, vocabulary: Range<u32>) -> Vec<u32> {
    let (tokens, block_tokens) = (tokens as usize, block_tokens.max(1) as usize);
    let mut prompt = Vec::with_capacity(tokens);
    for (place, block) in blocks.iter().enumerate() {
        let left = tokens - prompt.len();
        let here = if place + 1 == blocks.len() { left } else { left.min(block_tokens) };
        // Not the streams of the prompts without names.
        let mut random = stream(seed ^ 0x5eed_b10c, *block);
        fill(&mut prompt, here, &mut random, &vocabulary);
    }
    prompt
}

fn fill(prompt: &mut Vec<u32>, tokens: usize, random: &mut impl Rng, vocabulary: &Range<u32>) {
    prompt.extend((0..tokens).map(|_| random.random_range(vocabulary.clone())));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_share_what_their_blocks_share() {
        let of = |blocks: &[u64], tokens| of_blocks(3, blocks, 100, tokens, 32..256);
        let (a, b) = (of(&[1, 2, 3], 250), of(&[1, 2, 4], 290));
        assert_eq!((a.len(), b.len()), (250, 290));
        assert_eq!(a[..200], b[..200]);
        assert_ne!(a[200..210], b[200..210]);
        assert_eq!(of(&[1, 2, 3], 230), a[..230], "a name stands for the same tokens however many there are");
        // Fewer tokens than its blocks would hold.
        assert_eq!(of(&[1, 2, 3], 150)[..], a[..150]);
        assert!(a.iter().all(|token| (32..256).contains(token)));

        assert_eq!(random(3, 7, 40, 32..40), random(3, 7, 40, 32..40));
        assert_ne!(random(3, 7, 40, 32..40), random(3, 8, 40, 32..40));
        assert!(random(3, 7, 40, 32..40).iter().all(|token| (32..40).contains(token)));
    }
}
