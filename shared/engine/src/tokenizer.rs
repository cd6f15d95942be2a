//! Text to token ids: the byte-level BPE that model files describe, and the plain bytes of the sim engine.

use std::collections::BTreeSet;

use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::tokenizer::Model as _;
use tokenizers::utils::SysRegex;

use crate::gguf;

/// GPT-2's word pattern. White space that matches nothing else stays a piece of its own.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
/// Llama 3's word pattern: numbers in groups of at most three digits.
const LLAMA_BPE: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Qwen 2's word pattern: as Llama 3's, but every digit stands alone.
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// What `tokenizer.ggml.pre` may say.
const SUPPORTED_PRE: &str = "smollm, gpt-2, default, llama-bpe, qwen2";
/// Longest word handed to the merges as one, in bytes. Nothing that people write comes near; it keeps the time and the
/// memory for one endless word bounded.
const MAX_WORD_BYTES: usize = 1 << 16;
/// Tokens whose name alone says that a model ends its answer with them.
const END_NAMES: [&str; 4] = ["<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|endoftext|>"];

/// Values of `tokenizer.ggml.token_type` that mark special tokens.
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the model file's {key} is missing or malformed, expected {expected}; fetch the file again")]
    Metadata { key: &'static str, expected: &'static str },
    #[error("tokenizer.ggml.model is {found:?}, only \"gpt2\" (byte-level BPE) is supported; use another model file")]
    UnsupportedModel { found: String },
    #[error("tokenizer.ggml.pre is {found:?}, supported are {SUPPORTED_PRE}; use another model file")]
    UnsupportedPre { found: String },
    #[error("the model file's merges don't fit its tokens: {0}; fetch the file again")]
    Merges(String),
    #[error("the text has {bytes} bytes, more than {limit} can't fit the model's context; shorten it")]
    TooLong { bytes: usize, limit: usize },
    #[error("a word could not be encoded: {0}")]
    Word(String),
}

/// Turns text into token ids and tells what bytes each id stands for.
pub struct Tokenizer {
    kind: Kind,
    /// Text of the special tokens, longest first.
    specials: Vec<Special>,
    /// Bytes of all tokens, one after the other; token `i` is `bytes[offsets[i]..offsets[i + 1]]`.
    bytes: Vec<u8>,
    offsets: Vec<usize>,
    longest: usize,
    ends: BTreeSet<u32>,
    bos: Option<Named>,
    eos: Option<Named>,
    add_bos: bool,
}

struct Special {
    id: u32,
    text: String,
    /// Control tokens steer the model; text of users must not be able to produce them.
    control: bool,
}

struct Named {
    id: u32,
    text: String,
}

enum Kind {
    /// Token id = byte.
    Bytes,
    Bpe {
        merges: Box<BPE>,
        stages: Vec<Stage>,
    },
}

/// One pass of splitting text into words; what the pattern leaves between its matches are words too.
struct Stage {
    pattern: SysRegex,
    /// Whether the pattern matches every text from its first to its last byte. A search that ends early has then hit
    /// the pattern engine's limit.
    total: bool,
}

impl Tokenizer {
    /// 256 byte tokens and `<end>`.
    pub fn bytes() -> Tokenizer {
        let end = Named { id: 256, text: "<end>".to_owned() };
        Tokenizer {
            kind: Kind::Bytes,
            specials: vec![Special { id: end.id, text: end.text.clone(), control: true }],
            bytes: (0..=255).collect(),
            offsets: (0..=256).chain([256]).collect(),
            longest: end.text.len(),
            ends: BTreeSet::from([end.id]),
            bos: None,
            eos: Some(end),
            add_bos: false,
        }
    }

    /// The tokenizer that a model file describes.
    pub fn from_gguf(file: &gguf::File) -> Result<Tokenizer, Error> {
        let model = file.get("tokenizer.ggml.model").and_then(gguf::Value::as_str).unwrap_or("none");
        if model != "gpt2" {
            return Err(Error::UnsupportedModel { found: model.to_owned() });
        }
        let pre = file.get("tokenizer.ggml.pre").and_then(gguf::Value::as_str).unwrap_or("default");
        let tokens = strings(file, "tokenizer.ggml.tokens")?;
        let merges = strings(file, "tokenizer.ggml.merges")?;
        let types = match file.get("tokenizer.ggml.token_type") {
            None => vec![1; tokens.len()],
            Some(value) => (value.as_array())
                .and_then(|types| types.iter().map(gguf::Value::as_i64).collect::<Option<Vec<_>>>())
                .filter(|types| types.len() == tokens.len())
                .ok_or(Error::Metadata { key: "tokenizer.ggml.token_type", expected: "an integer for each token" })?,
        };
        let named = |key: &'static str| match file.get(key) {
            None => Ok(None),
            Some(value) => (value.as_u64())
                .and_then(|id| Some((u32::try_from(id).ok()?, tokens.get(usize::try_from(id).ok()?)?)))
                .map(|(id, text)| Some(Named { id, text: (*text).to_owned() }))
                .ok_or(Error::Metadata { key, expected: "the id of a token" }),
        };
        let bos = named("tokenizer.ggml.bos_token_id")?;
        let eos = named("tokenizer.ggml.eos_token_id")?;
        let eot = named("tokenizer.ggml.eot_token_id")?;
        let add_bos = file.get("tokenizer.ggml.add_bos_token").and_then(gguf::Value::as_bool);

        let mut specials = Vec::new();
        let mut bytes = Vec::new();
        let mut offsets = vec![0];
        let mut ends: BTreeSet<u32> = [&eos, &eot].into_iter().flatten().map(|token| token.id).collect();
        let mut longest = 1;
        for (id, (&text, &kind)) in (0..).zip(tokens.iter().zip(&types)) {
            let special = kind == CONTROL || kind == USER_DEFINED;
            if special && !text.is_empty() {
                specials.push(Special { id, text: text.to_owned(), control: kind == CONTROL });
                longest = longest.max(text.len());
            }
            if END_NAMES.contains(&text) {
                ends.insert(id);
            }
            match kind {
                CONTROL => {}
                USER_DEFINED => bytes.extend_from_slice(text.as_bytes()),
                _ => bytes.extend(raw_bytes(text)),
            }
            longest = longest.max(bytes.len() - offsets[offsets.len() - 1]);
            offsets.push(bytes.len());
        }
        specials.sort_by_key(|special| std::cmp::Reverse(special.text.len()));

        let kind = Kind::Bpe { merges: Box::new(bpe(&tokens, &merges, pre)?), stages: stages(pre)? };
        let add_bos = add_bos.unwrap_or(pre == "llama-bpe");
        Ok(Tokenizer { kind, specials, bytes, offsets, longest, ends, bos, eos, add_bos })
    }

    /// Entries of the vocabulary.
    pub fn len(&self) -> usize {
        self.offsets.len() - 1
    }

    /// Whether there is no token at all.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of the longest token: no text of `n` tokens has more than `n` times as many.
    pub fn longest_token(&self) -> usize {
        self.longest
    }

    /// The bytes a token adds to a text: none for control tokens and for ids outside the vocabulary.
    pub fn token_bytes(&self, token: u32) -> &[u8] {
        let token = token as usize;
        match (self.offsets.get(token), self.offsets.get(token + 1)) {
            (Some(&start), Some(&end)) => &self.bytes[start..end],
            _ => &[],
        }
    }

    /// Whether the model ends an answer with this token.
    pub fn is_end(&self, token: u32) -> bool {
        self.ends.contains(&token)
    }

    /// Text of the token that begins a sequence, if the model has one.
    pub fn bos_text(&self) -> Option<&str> {
        self.bos.as_ref().map(|token| token.text.as_str())
    }

    /// Text of the token that ends a sequence, if the model has one.
    pub fn eos_text(&self) -> Option<&str> {
        self.eos.as_ref().map(|token| token.text.as_str())
    }

    /// Texts of the control tokens.
    pub fn control_texts(&self) -> impl Iterator<Item = &str> {
        self.specials.iter().filter(|special| special.control).map(|special| special.text.as_str())
    }

    /// Token ids of a text. With `parse_special`, the text of a control token becomes that token; without it, such text
    /// is text like any other. `guard` is taken out of the text after control tokens were looked for: a control token
    /// with the guard inside is not one. Bytes that the vocabulary has no token for (rare control characters in some
    /// models) are left out, as llama.cpp does.
    pub(crate) fn encode(&self, text: &str, parse_special: bool, guard: Option<char>) -> Result<Vec<u32>, Error> {
        let mut out = Vec::with_capacity(text.len() / 3 + 1);
        let mut first_bytes = [false; 256];
        for special in self.specials.iter().filter(|special| parse_special || !special.control) {
            first_bytes[usize::from(special.text.as_bytes()[0])] = true;
        }
        let mut start = 0;
        let mut at = 0;
        while at < text.len() {
            let rest = &text.as_bytes()[at..];
            let special = (self.specials.iter())
                .filter(|_| first_bytes[usize::from(rest[0])])
                .find(|special| (parse_special || !special.control) && rest.starts_with(special.text.as_bytes()));
            let Some(special) = special else {
                at += 1;
                continue;
            };
            self.encode_plain(&text[start..at], guard, &mut out)?;
            out.push(special.id);
            at += special.text.len();
            start = at;
        }
        self.encode_plain(&text[start..], guard, &mut out)?;
        match &self.bos {
            Some(bos) if self.add_bos && out.first() != Some(&bos.id) => out.insert(0, bos.id),
            _ => {}
        }
        Ok(out)
    }

    /// Encodes text in which no token is special.
    fn encode_plain(&self, text: &str, guard: Option<char>, out: &mut Vec<u32>) -> Result<(), Error> {
        let unguarded = guard.filter(|guard| text.contains(*guard)).map(|guard| text.replace(guard, ""));
        let text = unguarded.as_deref().unwrap_or(text);
        match &self.kind {
            Kind::Bytes => out.extend(text.bytes().map(u32::from)),
            Kind::Bpe { merges, stages } => {
                let words = stages.iter().fold(vec![text], |words, stage| {
                    words.into_iter().fold(Vec::new(), |mut split, word| {
                        stage.split(word, &mut split);
                        split
                    })
                });
                let mut word_text = String::new();
                for word in words {
                    word_text.clear();
                    word_text.extend(word.bytes().map(byte_char));
                    let tokens = merges.tokenize(&word_text).map_err(|error| Error::Word(error.to_string()))?;
                    out.extend(tokens.iter().map(|token| token.id));
                }
            }
        }
        Ok(())
    }
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

/// The strings of an array of strings.
fn strings<'f>(file: &'f gguf::File, key: &'static str) -> Result<Vec<&'f str>, Error> {
    file.get(key)
        .and_then(gguf::Value::as_array)
        .and_then(|values| values.iter().map(gguf::Value::as_str).collect())
        .ok_or(Error::Metadata { key, expected: "an array of strings" })
}

fn bpe(tokens: &[&str], merges: &[&str], pre: &str) -> Result<BPE, Error> {
    let vocabulary: Vocab = (0..).zip(tokens).map(|(id, token)| ((*token).to_owned(), id)).collect();
    let merges = (merges.iter())
        .map(|merge| merge.split_once(' ').map(|(left, right)| (left.to_owned(), right.to_owned())))
        .collect::<Option<Vec<_>>>()
        .ok_or(Error::Metadata { key: "tokenizer.ggml.merges", expected: "two tokens and a space between them" })?;
    (BPE::builder().vocab_and_merges(vocabulary, merges))
        .ignore_merges(pre == "llama-bpe")
        .build()
        .map_err(|error| Error::Merges(error.to_string()))
}

/// The splitting passes that a value of `tokenizer.ggml.pre` stands for.
fn stages(pre: &str) -> Result<Vec<Stage>, Error> {
    let patterns: &[(&str, bool)] = match pre {
        "smollm" => &[(r"\p{N}", false), (GPT2, true)],
        "gpt-2" => &[(GPT2, true)],
        "default" => &[(r"[\p{P}\$\+<=>\^~\|]+", false), (GPT2, true), (r"\p{N}+", false), (r"[0-9][0-9][0-9]", false)],
        "llama-bpe" => &[(LLAMA_BPE, true)],
        "qwen2" => &[(QWEN2, true)],
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
fn raw_bytes(text: &str) -> Vec<u8> {
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
        let refused = stages("tekken").err().expect("unsupported").to_string();
        assert!(refused.contains("tekken") && refused.contains(SUPPORTED_PRE));
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
