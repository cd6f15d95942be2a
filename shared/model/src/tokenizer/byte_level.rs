//! GPT-2's byte-level BPE: text is cut into words by a pattern, and a word's bytes, each written as a character, are joined
//! by the rank of their merges.

use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::tokenizer::Model as _;
use tokenizers::utils::SysRegex;

use super::error::Error;

/// GPT-2's word pattern. White space that matches nothing else stays a piece of its own.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
/// Llama 3's word pattern: numbers in groups of at most three digits.
const LLAMA_BPE: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Qwen 2's word pattern: as Llama 3's, but every digit stands alone.
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// The word pattern of Mistral's newer models: words split where capitals follow small letters.
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Longest word handed to the merges as one, in bytes. Nothing that people write comes near; it keeps the time and the
/// memory for one endless word bounded.
const MAX_WORD_BYTES: usize = 1 << 16;

pub(super) struct ByteLevel {
    merges: BPE,
    stages: Vec<Stage>,
}

/// One pass of splitting text into words; what the pattern leaves between its matches are words too.
struct Stage {
    pattern: SysRegex,
    /// Whether the pattern matches every text from its first to its last byte. A search that ends early has then hit
    /// the pattern engine's limit.
    total: bool,
}

impl ByteLevel {
    /// The encoder for tokens by id and the merges by rank, each two tokens with a space between them. `pre` names the
    /// word pattern.
    pub(super) fn new(tokens: &[&str], merges: &[&str], pre: &str) -> Result<ByteLevel, Error> {
        let stages = stages(pre)?;
        let vocabulary: Vocab = (0..).zip(tokens).map(|(id, token)| ((*token).to_owned(), id)).collect();
        let merges = (merges.iter())
            .map(|merge| merge.split_once(' ').map(|(left, right)| (left.to_owned(), right.to_owned())))
            .collect::<Option<Vec<_>>>()
            .ok_or(Error::Metadata { key: "tokenizer.ggml.merges", expected: "two tokens and a space between them" })?;
        let merges = (BPE::builder().vocab_and_merges(vocabulary, merges))
            .ignore_merges(takes_whole_words(pre))
            .build()
            .map_err(|error| Error::Merges(error.to_string()))?;
        Ok(ByteLevel { merges, stages })
    }

    /// Appends the tokens of `text`. Bytes without a token are left out.
    pub(super) fn encode(&self, text: &str, out: &mut Vec<u32>) -> Result<(), Error> {
        let words = self.stages.iter().fold(vec![text], |words, stage| {
            words.into_iter().fold(Vec::new(), |mut split, word| {
                stage.split(word, &mut split);
                split
            })
        });
        let mut word_text = String::new();
        for word in words {
            word_text.clear();
            word_text.extend(word.bytes().map(byte_char));
            let tokens = self.merges.tokenize(&word_text).map_err(|error| Error::Word(error.to_string()))?;
            out.extend(tokens.iter().map(|token| token.id));
        }
        Ok(())
    }
}

/// The name of a word pattern that is all there is to cutting words, if it is one of those supported.
pub(crate) fn word_pattern(pattern: &str) -> Option<&'static str> {
    [(LLAMA_BPE, "llama-bpe"), (QWEN2, "qwen2"), (TEKKEN, "tekken")]
        .into_iter()
        .find_map(|(known, name)| (known == pattern).then_some(name))
}

/// Whether models with that word pattern take a word that is a token at once, whatever the merges.
pub(crate) fn takes_whole_words(pre: &str) -> bool {
    begins_sequences(pre)
}

/// Whether models with that word pattern want a token at a sequence's beginning, if their file doesn't say.
pub(super) fn begins_sequences(pre: &str) -> bool {
    matches!(pre, "llama-bpe" | "llama3" | "llama-v3" | "tekken")
}

/// Whether models with that word pattern bring text to Unicode's normal form C first, if their file doesn't say. GGUF has no
/// key for it.
pub(super) fn composes(pre: &str) -> bool {
    matches!(pre, "qwen2" | "deepseek-r1-qwen")
}

impl Stage {
    /// Appends the words of `text` to `out`.
    fn split<'t>(&self, text: &'t str, out: &mut Vec<&'t str>) {
        let mut rest = text;
        while !rest.is_empty() {
            let mut at = 0;
            for (start, end) in self.pattern.find_iter(rest) {
                push_word(&rest[at..start], out);
                push_word(&rest[start..end], out);
                at = end;
            }
            let (unmatched, beyond) = match self.total {
                true => rest[at..].split_at(word_border(&rest[at..])),
                false => (&rest[at..], ""),
            };
            push_word(unmatched, out);
            rest = beyond;
        }
    }
}

/// Appends a word, cut where it exceeds [`MAX_WORD_BYTES`].
fn push_word<'t>(mut word: &'t str, out: &mut Vec<&'t str>) {
    while !word.is_empty() {
        let (head, tail) = word.split_at(word_border(word));
        out.push(head);
        word = tail;
    }
}

/// The last character border within [`MAX_WORD_BYTES`].
fn word_border(text: &str) -> usize {
    text.floor_char_boundary(MAX_WORD_BYTES)
}

/// The splitting passes that a value of `tokenizer.ggml.pre` stands for.
fn stages(pre: &str) -> Result<Vec<Stage>, Error> {
    let patterns: &[(&str, bool)] = match pre {
        "smollm" => &[(r"\p{N}", false), (GPT2, true)],
        "gpt-2" => &[(GPT2, true)],
        "default" => &[(r"[\p{P}\$\+<=>\^~\|]+", false), (GPT2, true), (r"\p{N}+", false), (r"[0-9][0-9][0-9]", false)],
        "llama-bpe" | "llama3" | "llama-v3" => &[(LLAMA_BPE, true)],
        "qwen2" | "deepseek-r1-qwen" => &[(QWEN2, true)],
        "tekken" => &[(TEKKEN, true)],
        other => return Err(Error::UnsupportedPre { found: other.to_owned() }),
    };
    (patterns.iter())
        .map(|&(pattern, total)| SysRegex::new(pattern).map(|pattern| Stage { pattern, total }))
        .collect::<Result<_, _>>()
        .map_err(|error| Error::Word(error.to_string()))
}

/// How byte-level BPE writes a byte: printable Latin-1 as itself, the others as the characters from U+0100 on, in order.
fn byte_char(byte: u8) -> char {
    let shifted = match byte {
        0x00..=0x20 => u32::from(byte),
        0x7f..=0xa0 => u32::from(byte) - 0x7f + 0x21,
        0xad => 0x43,
        printable => return char::from(printable),
    };
    char::from_u32(0x100 + shifted).unwrap_or(char::REPLACEMENT_CHARACTER)
}

/// The byte that a character of byte-level BPE stands for.
fn char_byte(character: char) -> Option<u8> {
    let byte = match u32::from(character) {
        code @ 0x100..=0x120 => code - 0x100,
        code @ 0x121..=0x142 => code - 0x121 + 0x7f,
        0x143 => 0xad,
        code => code,
    };
    u8::try_from(byte).ok().filter(|&byte| byte_char(byte) == character)
}

/// The bytes of a token's text; a character that stands for no byte stands for itself.
pub(super) fn raw_bytes(text: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    for character in text.chars() {
        match char_byte(character) {
            Some(byte) => out.push(byte),
            None => out.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::error::SUPPORTED_PRE;
    use super::*;

    fn words<'t>(pre: &str, text: &'t str) -> Vec<&'t str> {
        stages(pre).expect("supported").iter().fold(vec![text], |words, stage| {
            let mut split = Vec::new();
            words.into_iter().for_each(|word| stage.split(word, &mut split));
            split
        })
    }

    /// The splits that the models' own tokenizers make of the same text.
    #[test]
    fn each_pre_tokenizer_splits_as_the_models_do() {
        let text = "I'LL pay  $1234,\n\n it's  ok";
        let gpt2 = ["I", "'", "LL", " pay", " ", " $", "1234", ",", "\n\n", " it", "'s", " ", " ok"];
        assert_eq!(words("gpt-2", text), gpt2);
        let digits = ["I", "'", "LL", " pay", " ", " $", "1", "2", "3", "4", ",", "\n\n", " it", "'s", " ", " ok"];
        assert_eq!(words("smollm", text), digits);
        assert_eq!(words("smollm", "a  1"), ["a", "  ", "1"], "what stands before a digit ends there");
        let default = ["I", "'", "LL", " pay", "  ", "$", "123", "4", ",", "\n\n", " it", "'", "s", " ", " ok"];
        assert_eq!(words("default", text), default);
        let llama = ["I", "'LL", " pay", " ", " $", "123", "4", ",\n\n", " it", "'s", " ", " ok"];
        assert_eq!(words("llama-bpe", text), llama);
        let qwen = ["I", "'LL", " pay", " ", " $", "1", "2", "3", "4", ",\n\n", " it", "'s", " ", " ok"];
        assert_eq!(words("qwen2", text), qwen);
        let tekken = ["I", "'LL", " pay", " ", " $", "1", "2", "3", "4", ",\n\n", " it", "'s", " ", " ok"];
        assert_eq!(words("tekken", text), tekken);
        assert_eq!(words("tekken", "camelCaseABC"), ["camel", "Case", "ABC"]);
        let refused = stages("chameleon").err().expect("unsupported").to_string();
        assert!(refused.contains("chameleon") && refused.contains(SUPPORTED_PRE));
    }

    /// More white space than the pattern engine follows back: still every byte is in one word, and none is endless.
    #[test]
    fn endless_white_space_is_cut() {
        for pre in ["smollm", "default", "llama-bpe", "qwen2"] {
            let text = format!("{}x", " ".repeat(3 << 20));
            let words = words(pre, &text);
            assert!(words.concat() == text && words.iter().all(|word| word.len() <= MAX_WORD_BYTES), "{pre}");
        }
    }

    #[test]
    fn every_byte_has_its_own_character() {
        let characters: BTreeSet<char> = (0..=255).map(byte_char).collect();
        assert_eq!(characters.len(), 256);
        assert!((0..=255).all(|byte| char_byte(byte_char(byte)) == Some(byte)));
        assert_eq!((byte_char(b' '), byte_char(b'\n'), byte_char(0xad)), ('Ġ', 'Ċ', 'Ń'));
        assert_eq!((char_byte(' '), char_byte('\u{144}'), char_byte('a')), (None, None, Some(b'a')));
    }
}
