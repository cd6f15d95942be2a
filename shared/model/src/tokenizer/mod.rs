//! Text to token ids: what model files describe (byte-level BPE, SentencePiece), and the plain bytes of the sim engine.

mod byte_level;
mod error;
pub(crate) mod keys;
mod ranked;
mod sentence_piece;
mod specials;

use std::collections::BTreeSet;

use tokenizers::{NormalizedString, Normalizer as _};

use crate::checkpoint::{Checkpoint, Value};
use byte_level::ByteLevel;
pub(crate) use byte_level::{takes_whole_words, word_pattern};
pub use error::Error;
use keys::{BYTE, CONTROL, END_IDS, NFC, RANKED_PIECES, SPACE_PREFIX, UNKNOWN, USER_DEFINED};
use ranked::Ranked;
use sentence_piece::SentencePiece;
pub(crate) use sentence_piece::named_byte;
use specials::{Special, Specials};

/// Tokens whose name alone says that a model ends its answer with them.
const END_NAMES: [&str; 6] =
    ["<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<end_of_turn>", "<|endoftext|>"];

/// Turns text into token ids and tells what bytes each id stands for.
pub struct Tokenizer {
    kind: Kind,
    specials: Specials,
    /// Bytes of all tokens, one after the other; token `i` is `bytes[offsets[i]..offsets[i + 1]]`.
    bytes: Vec<u8>,
    offsets: Vec<usize>,
    longest: usize,
    ends: BTreeSet<u32>,
    bos: Option<Named>,
    eos: Option<Named>,
    add_bos: bool,
    /// Whether text is brought to Unicode's normal form C.
    nfc: bool,
}

struct Named {
    id: u32,
    text: String,
}

/// How text becomes tokens where none is special.
enum Kind {
    /// Token id = byte.
    Bytes,
    ByteLevel(Box<ByteLevel>),
    SentencePiece(Box<SentencePiece>),
    Ranked(Box<Ranked>),
}

impl Tokenizer {
    /// 256 byte tokens and `<end>`.
    pub fn bytes() -> Tokenizer {
        let mut tokenizer = Tokenizer::empty(Kind::Bytes);
        (0..=255).for_each(|byte| tokenizer.add(None, &[byte]));
        tokenizer.add(Some(("<end>", true)), &[]);
        tokenizer.ends.insert(256);
        tokenizer.eos = Some(Named { id: 256, text: "<end>".to_owned() });
        tokenizer
    }

    /// The tokenizer that a model file describes.
    pub fn from_gguf(file: &Checkpoint) -> Result<Tokenizer, Error> {
        let tokens = strings(file, "tokenizer.ggml.tokens")?;
        let types = match file.get("tokenizer.ggml.token_type") {
            None => vec![1; tokens.len()],
            Some(value) => (value.as_array())
                .and_then(|types| types.iter().map(Value::as_i64).collect::<Option<Vec<_>>>())
                .filter(|types| types.len() == tokens.len())
                .ok_or(Error::Metadata { key: "tokenizer.ggml.token_type", expected: "an integer for each token" })?,
        };
        // An id that no token has stands for none, as everywhere else.
        let id = |key: &'static str| match file.get(key) {
            None => Ok(None),
            Some(value) => (value.as_i64().or(value.as_u64().map(|_| i64::MAX)))
                .map(|id| u32::try_from(id).ok().filter(|id| (*id as usize) < tokens.len()))
                .ok_or(Error::Metadata { key, expected: "the id of a token" }),
        };
        let flag = |key: &str| file.get(key).and_then(Value::as_bool);

        let model = file.get("tokenizer.ggml.model").and_then(Value::as_str).unwrap_or("none");
        let (kind, begins, composes) = match model {
            "gpt2" => {
                let pre = file.get("tokenizer.ggml.pre").and_then(Value::as_str).unwrap_or("default");
                let words = ByteLevel::new(&tokens, &strings(file, "tokenizer.ggml.merges")?, pre)?;
                (Kind::ByteLevel(Box::new(words)), byte_level::begins_sequences(pre), byte_level::composes(pre))
            }
            "llama" => {
                let space_prefix = flag("tokenizer.ggml.add_space_prefix").unwrap_or(true);
                let mut pieces = SentencePiece::new(space_prefix, id("tokenizer.ggml.unknown_token_id")?);
                let scores = floats(file, "tokenizer.ggml.scores", tokens.len())?;
                for (id, ((text, kind), score)) in (0..).zip(tokens.iter().zip(&types).zip(scores)) {
                    match *kind {
                        CONTROL | UNKNOWN => {}
                        BYTE => sentence_piece::named_byte(text).into_iter().for_each(|byte| pieces.add_byte(byte, id)),
                        _ => pieces.add_piece(text, id, score),
                    }
                }
                (Kind::SentencePiece(Box::new(pieces)), true, false)
            }
            RANKED_PIECES => {
                let merges = strings(file, "tokenizer.ggml.merges")?;
                let unknown = id("tokenizer.ggml.unknown_token_id")?;
                let prefix = file.get(SPACE_PREFIX).and_then(Value::as_str);
                (Kind::Ranked(Box::new(Ranked::new(&tokens, &merges, unknown, prefix)?)), false, false)
            }
            other => return Err(Error::UnsupportedModel { found: other.to_owned() }),
        };

        let mut tokenizer = Tokenizer::empty(kind);
        for (text, kind) in tokens.iter().zip(&types) {
            match (*kind, &tokenizer.kind) {
                (CONTROL | UNKNOWN, _) => tokenizer.add(Some((text, true)), &[]),
                (USER_DEFINED, _) => tokenizer.add(Some((text, false)), text.as_bytes()),
                (BYTE, Kind::SentencePiece(_) | Kind::Ranked(_)) => {
                    let byte = sentence_piece::named_byte(text);
                    tokenizer.add(None, byte.as_slice());
                }
                (_, Kind::SentencePiece(_) | Kind::Ranked(_)) => {
                    tokenizer.add(None, &sentence_piece::piece_bytes(text))
                }
                _ => tokenizer.add(None, &byte_level::raw_bytes(text)),
            }
        }
        let named = |id: u32| Named { id, text: tokens[id as usize].to_owned() };
        let eos = id("tokenizer.ggml.eos_token_id")?;
        tokenizer.ends.extend([eos, id("tokenizer.ggml.eot_token_id")?].into_iter().flatten());
        tokenizer.ends.extend((0..).zip(&tokens).filter(|(_, text)| END_NAMES.contains(text)).map(|(id, _)| id));
        if let Some(ends) = file.get(END_IDS) {
            let ids = (ends.as_array().unwrap_or_default().iter()).filter_map(Value::as_u64);
            tokenizer.ends.extend(ids.filter_map(|id| u32::try_from(id).ok()));
        }
        tokenizer.bos = id("tokenizer.ggml.bos_token_id")?.map(named);
        tokenizer.eos = eos.map(named);
        tokenizer.add_bos = flag("tokenizer.ggml.add_bos_token").unwrap_or(begins);
        tokenizer.nfc = flag(NFC).unwrap_or(composes);
        Ok(tokenizer)
    }

    /// Without a token yet.
    fn empty(kind: Kind) -> Tokenizer {
        Tokenizer {
            kind,
            specials: Specials::default(),
            bytes: Vec::new(),
            offsets: vec![0],
            longest: 1,
            ends: BTreeSet::new(),
            bos: None,
            eos: None,
            add_bos: false,
            nfc: false,
        }
    }

    /// Adds the token with the next id: the bytes it stands for and, if it is a special one, its text and whether it is a
    /// control token.
    fn add(&mut self, special: Option<(&str, bool)>, bytes: &[u8]) {
        if let Some((text, control)) = special {
            self.specials.add(text, Special { id: self.len() as u32, control });
            self.longest = self.longest.max(text.len());
        }
        self.bytes.extend_from_slice(bytes);
        self.offsets.push(self.bytes.len());
        self.longest = self.longest.max(bytes.len());
    }

    /// Entries of the vocabulary.
    pub fn len(&self) -> usize {
        self.offsets.len() - 1
    }

    /// Entries of the vocabulary without the special tokens at its end, which a model may not know.
    pub fn words(&self) -> usize {
        let last = (0..self.len() as u32).rev().find(|id| !self.specials.contains(*id));
        last.map_or(0, |id| id as usize + 1)
    }

    /// The text of a special token; of others nothing.
    pub(crate) fn special_text(&self, id: u32) -> &str {
        self.specials.text(id).unwrap_or_default()
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
        self.specials.controls()
    }

    /// Token ids of a text. With `parse_special`, the text of a control token becomes that token; without it, such text
    /// is text like any other. `guard` is taken out of the text after control tokens were looked for: a control token
    /// with the guard inside is not one. Bytes that the vocabulary has no token for (rare control characters in some
    /// models) are left out, as llama.cpp does.
    pub fn encode(&self, text: &str, parse_special: bool, guard: Option<char>) -> Result<Vec<u32>, Error> {
        let mut out = Vec::with_capacity(text.len() / 3 + 1);
        let mut start = 0;
        let mut at = 0;
        while at < text.len() {
            let Some((special, length)) = self.specials.at(&text.as_bytes()[at..], parse_special) else {
                at += 1;
                continue;
            };
            self.encode_plain(&text[start..at], guard, &mut out)?;
            out.push(special.id);
            at += length;
            start = at;
        }
        self.encode_plain(&text[start..], guard, &mut out)?;
        match &self.bos {
            Some(bos) if self.add_bos && out.first() != Some(&bos.id) => out.insert(0, bos.id),
            _ => {}
        }
        Ok(out)
    }

    /// Encodes text in which no token is special, at the beginning or right behind a special token.
    fn encode_plain(&self, text: &str, guard: Option<char>, out: &mut Vec<u32>) -> Result<(), Error> {
        let unguarded = guard.filter(|guard| text.contains(*guard)).map(|guard| text.replace(guard, ""));
        let text = unguarded.as_deref().unwrap_or(text);
        let composed = (self.nfc && !text.is_ascii()).then(|| compose(text)).transpose()?;
        let text = composed.as_deref().unwrap_or(text);
        match &self.kind {
            Kind::Bytes => out.extend(text.bytes().map(u32::from)),
            Kind::ByteLevel(words) => words.encode(text, out)?,
            Kind::SentencePiece(pieces) => pieces.encode(text, out),
            Kind::Ranked(pieces) => pieces.encode(text, out)?,
        }
        Ok(())
    }
}

/// Unicode's normal form C of a text.
fn compose(text: &str) -> Result<String, Error> {
    let mut normalized = NormalizedString::from(text);
    tokenizers::normalizers::NFC.normalize(&mut normalized).map_err(|error| Error::Word(error.to_string()))?;
    Ok(normalized.get().to_owned())
}

/// The strings of an array of strings.
fn strings<'f>(file: &'f Checkpoint, key: &'static str) -> Result<Vec<&'f str>, Error> {
    file.get(key)
        .and_then(Value::as_array)
        .and_then(|values| values.iter().map(Value::as_str).collect())
        .ok_or(Error::Metadata { key, expected: "an array of strings" })
}

/// The numbers of an array of `len` floats.
fn floats(file: &Checkpoint, key: &'static str, len: usize) -> Result<Vec<f32>, Error> {
    file.get(key)
        .and_then(Value::as_array)
        .filter(|values| values.len() == len)
        .and_then(|values| values.iter().map(|value| value.as_f64().map(|value| value as f32)).collect())
        .ok_or(Error::Metadata { key, expected: "a float for each token" })
}
