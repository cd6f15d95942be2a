//! What the simulated model says: lower-case words, each chosen by all of the KV before it.

use half::bf16;

use serde::{Deserialize, Serialize};

/// 256 bytes and [`END`].
pub(super) const VOCABULARY: usize = 257;
/// The token that ends an answer.
const END: u32 = 256;

const LIKELY: f32 = 8.0;
/// Certain at every temperature that requests may ask for.
const CERTAIN: f32 = 1000.0;
const IMPOSSIBLE: f32 = -1000.0;

const WORDS: [&str; 64] = [
    "amber", "apple", "autumn", "barley", "basket", "bell", "birch", "bridge", "candle", "cedar", "clay", "cloud",
    "copper", "crane", "dawn", "dune", "ember", "falcon", "fern", "field", "flint", "forest", "garden", "glass",
    "grain", "harbour", "hazel", "heron", "hill", "honey", "island", "ivory", "juniper", "kettle", "lantern", "lark",
    "linen", "maple", "meadow", "mill", "moss", "nettle", "oak", "orchard", "otter", "pebble", "pine", "quarry",
    "rain", "reed", "river", "robin", "sail", "salt", "slate", "spring", "stone", "thistle", "tide", "valley",
    "violet", "willow", "winter", "yarrow",
];

/// The bounds of an answer's length, both included. The prompt decides where between them.
///
/// Nothing tells a model where the prompt ended, so tokens are counted from the last byte that is neither a lower-case
/// letter nor a space; the chat template ends with such a byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AnswerTokens {
    /// The fewest.
    pub min: u32,
    /// The most.
    pub max: u32,
}

/// All that the next token depends on, kept up to date row by row.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Story {
    /// Digest of every KV value so far.
    history: u64,
    /// `history` at the last token that no answer contains: what stands before the answer.
    prompt: u64,
    /// Tokens since then.
    answered: u32,
    /// `history` where the current word began: chooses the word.
    word: u64,
    /// Letters of the word so far; none once they are another word's.
    spelled: Option<usize>,
}

impl Story {
    /// Goes on by the KV of one token in all layers.
    pub(super) fn read(&mut self, row: &[u16]) {
        self.history = digest(self.history, row);
        let letter = u8::try_from(token(row)).ok().filter(|byte| byte.is_ascii_lowercase() || *byte == b' ');
        match letter {
            None => (self.prompt, self.answered) = (self.history, 0),
            Some(_) => self.answered = self.answered.saturating_add(1),
        }
        match letter {
            None | Some(b' ') => (self.word, self.spelled) = (self.history, Some(0)),
            Some(letter) => {
                self.spelled = self.spelled.filter(|&at| self.word().get(at) == Some(&letter)).map(|at| at + 1);
            }
        }
    }

    /// The logits `[VOCABULARY]` of the next token: one stands out, the other letters and the space have a chance.
    pub(super) fn logits(&self, answer_tokens: Option<AnswerTokens>) -> Vec<f32> {
        let mut logits = vec![IMPOSSIBLE; VOCABULARY];
        for (index, byte) in (0..).zip((b'a'..=b'z').chain([b' '])) {
            logits[usize::from(byte)] = (mix(self.history ^ index) >> 40) as f32 * (4.0 / (1u64 << 24) as f32);
        }
        logits[usize::from(self.next_byte())] = LIKELY;
        if self.has_ended(answer_tokens) {
            logits[END as usize] = CERTAIN;
        }
        logits
    }

    fn word(&self) -> &'static [u8] {
        WORDS[(mix(self.word) % WORDS.len() as u64) as usize].as_bytes()
    }

    fn next_byte(&self) -> u8 {
        self.spelled.and_then(|at| self.word().get(at)).copied().unwrap_or(b' ')
    }

    fn has_ended(&self, answer_tokens: Option<AnswerTokens>) -> bool {
        answer_tokens.is_some_and(|AnswerTokens { min, max }| {
            let lengths = u64::from(max.saturating_sub(min)) + 1;
            u64::from(self.answered) >= u64::from(min) + mix(self.prompt) % lengths
        })
    }
}

/// How K begins: the two bytes of a token's id, as bf16, which holds integers up to 256 exactly.
pub(super) fn token_values(token: u32) -> [u16; 2] {
    [token & 0xff, token >> 8 & 0xff].map(|byte| bf16::from_f32(byte as f32).to_bits())
}

/// The token id that a row of KV begins with.
pub(super) fn token(row: &[u16]) -> u32 {
    let byte = |index: usize| row.get(index).map_or(0, |&bits| bf16::from_bits(bits).to_f32() as u32 & 0xff);
    byte(0) | byte(1) << 8
}

/// SplitMix64's finalizer: a bijection of 64 bits in which every bit in changes half of the bits out.
pub(super) fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// Digest of a row after what came before it. Four lanes, each a chain of bijections, so that a row that differs in
/// one value never has the same digest.
fn digest(before: u64, row: &[u16]) -> u64 {
    let mut lanes = [before, before ^ 1, before ^ 2, before ^ 3].map(mix);
    for values in row.chunks(16) {
        for (lane, four) in lanes.iter_mut().zip(values.chunks(4)) {
            let word = four.iter().fold(0, |word, &value| word << 16 | u64::from(value));
            *lane = (*lane ^ word).wrapping_mul(0x9fb2_1c65_1e98_df25).rotate_left(29);
        }
    }
    lanes.iter().fold(0, |sum, &lane| mix(sum.wrapping_add(lane)))
}
