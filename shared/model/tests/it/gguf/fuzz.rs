//! The fuzz corpus, and mutations of it from a seeded generator: an error or a model, never a panic.

use std::ops::Range;
use std::panic;
use std::path::Path;

#[path = "../../../fuzz/decode.rs"]
mod decode;

/// Mutations of each model in the corpus.
const ROUNDS: u64 = 5_000;

/// Files of the corpus by name, in order.
fn corpus() -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/gguf");
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    let mut files: Vec<_> =
        entries.map(|entry| (entry.file_name().into_string().unwrap(), std::fs::read(entry.path()).unwrap())).collect();
    files.sort();
    files
}

#[test]
fn corpus_is_read_or_refused() {
    let files = corpus();
    assert!(files.len() >= 9);
    for (name, bytes) in files {
        let found = decode::gguf(&bytes);
        assert_eq!(found.model, !name.starts_with("refused-"), "{name}");
        assert!(found.vocabulary || !name.ends_with("-bpe.gguf"), "{name}");
    }
}

#[test]
fn mutations_never_panic() {
    let files = corpus();
    let (mut models, mut refused) = (0, 0);
    for (name, bytes) in files.iter().filter(|(name, _)| !name.starts_with("refused-")) {
        for seed in 0..ROUNDS {
            let mut random = Random(seed);
            let mut mutated = bytes.clone();
            for _ in 0..[1, 1, 2, 4][random.below(4)] {
                mutate(&mut mutated, &files, &mut random);
            }
            match panic::catch_unwind(|| decode::gguf(&mutated)) {
                Ok(found) if found.model => models += 1,
                Ok(_) => refused += 1,
                Err(_) => panic!("{name} mutated with seed {seed} did it"),
            }
        }
    }
    // Neither too wild to get past the first check nor too tame to break anything.
    assert!(models > ROUNDS / 2 && refused > ROUNDS / 2, "{models} models, {refused} refused");
}

/// One change: bits, bytes, numbers, or what is there at all.
fn mutate(bytes: &mut Vec<u8>, files: &[(String, Vec<u8>)], random: &mut Random) {
    const NUMBERS: [u64; 10] = [0, 1, 31, 255, 1 << 16, 1 << 31, u32::MAX as u64, 1 << 32, 1 << 63, u64::MAX];
    let at = random.place(bytes.len());
    match random.below(16) {
        0..6 => {
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= 1 << random.below(8);
            }
        }
        6 | 7 => {
            if let Some(byte) = bytes.get_mut(at) {
                *byte = random.below(256) as u8;
            }
        }
        8 => bytes.truncate(at),
        9 => {
            // A piece of some file over or into this one.
            let (_, other) = &files[random.below(files.len())];
            let piece = &other[random.range(other.len())];
            let end = if random.below(2) == 0 { at } else { (at + piece.len()).min(bytes.len()) };
            bytes.splice(at..end, piece.iter().copied());
        }
        10 => {
            let range = random.range(bytes.len());
            bytes.drain(range);
        }
        // A number instead of one that could be a length: any 8 or 4 bytes that say less than the file has.
        kind => {
            let width = if kind < 14 { 8 } else { 4 };
            let number = |bytes: &[u8]| bytes.iter().rev().fold(0u64, |number, byte| number << 8 | u64::from(*byte));
            let lengths = |at: &usize| number(&bytes[*at..at + width]) <= bytes.len() as u64;
            if let Some(at) = (at..(bytes.len() + 1).saturating_sub(width)).find(lengths) {
                let new = NUMBERS[random.below(NUMBERS.len())].to_le_bytes();
                bytes[at..at + width].copy_from_slice(&new[..width]);
            }
        }
    }
}

/// Steele, Lea and Flood's SplitMix64 ("Fast splittable pseudorandom number generators", 2014).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % limit as u64) as usize
    }

    /// A place in `len` bytes or at their end: any, or one whose distance from the beginning, where the lengths are, has
    /// any number of digits.
    fn place(&mut self, len: usize) -> usize {
        let digits = (len + 1).ilog2() as usize + 1;
        let within = if self.below(2) == 0 { len + 1 } else { 1 << self.below(digits) };
        self.below(within)
    }

    /// Up to 64 bytes of `len`.
    fn range(&mut self, len: usize) -> Range<usize> {
        let start = self.place(len);
        start..(start + self.below(64)).min(len)
    }
}
