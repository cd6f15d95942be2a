//! SentencePiece's BPE (Kudo and Richardson, 2018): characters are joined to ever longer pieces of the vocabulary, always
//! the pair whose piece has the highest score, among equals the leftmost; what is no piece falls back to bytes.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap};

/// What stands for a space, in pieces and in texts that are cut into them.
const SPACE: char = '\u{2581}';
/// No neighbour.
const NONE: usize = usize::MAX;

pub(super) struct SentencePiece {
    /// Id and score of the pieces that text may become.
    pieces: HashMap<Box<str>, (u32, f32)>,
    /// Bytes of the longest piece.
    longest: usize,
    bytes: Box<[Option<u32>; 256]>,
    unknown: Option<u32>,
    /// Whether a space goes before every text.
    space_prefix: bool,
}

/// A stretch of the text that is a piece or a single character.
#[derive(Clone, Copy)]
struct Symbol {
    start: usize,
    /// Equal to `start` when it was joined to the one before.
    end: usize,
    before: usize,
    after: usize,
}

/// Two neighbours that make a piece together.
struct Pair {
    score: f32,
    left: usize,
    right: usize,
    /// Bytes of both together: if it isn't that any more, one of them was joined with another.
    len: usize,
}

impl SentencePiece {
    pub(super) fn new(space_prefix: bool, unknown: Option<u32>) -> SentencePiece {
        SentencePiece { pieces: HashMap::new(), longest: 0, bytes: Box::new([None; 256]), unknown, space_prefix }
    }

    /// Adds a piece that text may become.
    pub(super) fn add_piece(&mut self, text: &str, id: u32, score: f32) {
        self.longest = self.longest.max(text.len());
        self.pieces.insert(text.into(), (id, score));
    }

    /// Adds the token of a byte.
    pub(super) fn add_byte(&mut self, byte: u8, id: u32) {
        self.bytes[usize::from(byte)] = Some(id);
    }

    /// Appends the tokens of `text`, which begins a sequence or follows a special token.
    pub(super) fn encode(&self, text: &str, out: &mut Vec<u32>) {
        if text.is_empty() {
            return;
        }
        let mut escaped = String::with_capacity(text.len() + text.len() / 3);
        escaped.extend((self.space_prefix).then_some(SPACE));
        escaped.extend(text.chars().map(|character| if character == ' ' { SPACE } else { character }));
        for symbol in self.join(&escaped) {
            let piece = &escaped[symbol.start..symbol.end];
            match self.pieces.get(piece) {
                Some((id, _)) => out.push(*id),
                // Bytes without a token are left out if the vocabulary has none for the unknown.
                None => out.extend(piece.bytes().filter_map(|byte| self.bytes[usize::from(byte)].or(self.unknown))),
            }
        }
    }

    /// Joins the characters of `text`. Each join costs a few looks at the vocabulary and at a heap that holds at most
    /// three pairs a character.
    fn join(&self, text: &str) -> impl Iterator<Item = Symbol> {
        let mut symbols: Vec<Symbol> = (text.char_indices().enumerate())
            .map(|(index, (start, character))| Symbol {
                start,
                end: start + character.len_utf8(),
                before: index.wrapping_sub(1),
                after: index + 1,
            })
            .collect();
        if let Some(last) = symbols.last_mut() {
            last.after = NONE;
        }
        let mut pairs: BinaryHeap<Pair> =
            (1..symbols.len()).filter_map(|right| self.pair(text, &symbols, right - 1, right)).collect();
        while let Some(Pair { left, right, len, .. }) = pairs.pop() {
            let (first, second) = (symbols[left], symbols[right]);
            let stale = first.start == first.end || second.start == second.end || second.end - first.start != len;
            if stale {
                continue;
            }
            symbols[left].end = second.end;
            symbols[left].after = second.after;
            symbols[right].end = second.start;
            if second.after != NONE {
                symbols[second.after].before = left;
                pairs.extend(self.pair(text, &symbols, left, second.after));
            }
            if first.before != NONE {
                pairs.extend(self.pair(text, &symbols, first.before, left));
            }
        }
        symbols.into_iter().filter(|symbol| symbol.start < symbol.end)
    }

    fn pair(&self, text: &str, symbols: &[Symbol], left: usize, right: usize) -> Option<Pair> {
        let (start, end) = (symbols[left].start, symbols[right].end);
        if end - start > self.longest {
            return None;
        }
        let (_, score) = self.pieces.get(&text[start..end])?;
        Some(Pair { score: *score, left, right, len: end - start })
    }
}

/// The bytes that a piece adds to a text.
pub(super) fn piece_bytes(piece: &str) -> Vec<u8> {
    piece.replace(SPACE, " ").into_bytes()
}

/// The byte that a token such as `<0x0A>` stands for.
pub(crate) fn named_byte(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    let hex = digits.len() == 2 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    hex.then(|| u8::from_str_radix(digits, 16).ok()).flatten()
}

impl Ord for Pair {
    fn cmp(&self, other: &Pair) -> Ordering {
        self.score.total_cmp(&other.score).then_with(|| other.left.cmp(&self.left))
    }
}

impl PartialOrd for Pair {
    fn partial_cmp(&self, other: &Pair) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Pair {
    fn eq(&self, other: &Pair) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Pair {}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ids are the places in the list; scores are given.
    fn pieces(space_prefix: bool, list: &[(&str, f32)]) -> SentencePiece {
        let mut pieces = SentencePiece::new(space_prefix, None);
        (0..).zip(list).for_each(|(id, (text, score))| pieces.add_piece(text, id, *score));
        pieces
    }

    fn encode(pieces: &SentencePiece, text: &str) -> Vec<u32> {
        let mut out = Vec::new();
        pieces.encode(text, &mut out);
        out
    }

    #[test]
    fn the_highest_score_joins_first_then_the_leftmost() {
        let list = [("a", 0.0), ("b", 0.0), ("c", 0.0), ("ab", -1.0), ("bc", -0.5), ("aa", -2.0), ("abc", -3.0)];
        let pieces = pieces(false, &list);
        assert_eq!(encode(&pieces, "abc"), [6], "bc goes first, and abc is a piece too");
        assert_eq!(encode(&pieces, "aaa"), [5, 0]);
        assert_eq!(encode(&pieces, "aabab"), [0, 3, 3]);
        assert_eq!(encode(&pieces, ""), [0; 0]);
    }

    #[test]
    fn spaces_prefixes_and_bytes() {
        let mut pieces = pieces(true, &[("\u{2581}", -2.0), ("a", -3.0), ("\u{2581}a", -1.0)]);
        (0xe0..=0xff).for_each(|byte| pieces.add_byte(byte, u32::from(byte)));
        assert_eq!(encode(&pieces, "a a"), [2, 2]);
        assert_eq!(encode(&pieces, " a"), [0, 2]);
        assert_eq!(encode(&pieces, "aa"), [2, 1]);
        assert_eq!(encode(&pieces, "\u{20ac}"), [0, 0xe2], "its other two bytes have no token");
        pieces.unknown = Some(7);
        assert_eq!(encode(&pieces, "\u{20ac}"), [0, 0xe2, 7, 7]);
        assert_eq!(piece_bytes("\u{2581}a\u{2581}"), b" a ");
        assert_eq!((named_byte("<0x0A>"), named_byte("<0xA>"), named_byte("<0x+A>")), (Some(10), None, None));
    }
}
