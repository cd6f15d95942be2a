//! Token ids to text, while they are generated: whole characters only, and nothing of a stop string.

use std::sync::Arc;

use crate::vocabulary::Vocabulary;

/// What a token added to an answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Delta {
    /// Text that is now final. Often empty: half a character or the possible beginning of a stop string is held back.
    pub text: String,
    /// A stop string was found: the answer is complete, and further tokens add nothing.
    pub stopped: bool,
}

/// Turns tokens into text, one by one.
///
/// All deltas and [`finish`](TextStream::finish) together are the decoded tokens up to the stop string. The work for a
/// token depends on the lengths of the token and of the stop strings, not on what came before.
pub struct TextStream {
    vocabulary: Arc<Vocabulary>,
    stop: Vec<String>,
    /// Bytes at the end that may become a character: at most three.
    bytes: Vec<u8>,
    /// Text at the end that may become a stop string: shorter than the longest of them.
    held: String,
    stopped: bool,
    /// Bytes of text that the tokens have made so far, and those of them that are final.
    made: usize,
    released: usize,
}

impl TextStream {
    /// A stream that ends before the first of the `stop` strings to be completed; of those completed by the same
    /// character, the longest counts. Empty ones never match.
    pub fn new(vocabulary: Arc<Vocabulary>, stop: &[String]) -> TextStream {
        let stop = stop.iter().filter(|text| !text.is_empty()).cloned().collect();
        TextStream { vocabulary, stop, bytes: Vec::new(), held: String::new(), stopped: false, made: 0, released: 0 }
    }

    /// Adds a token. Control tokens, such as those that end an answer, have no text.
    pub fn push(&mut self, token: u32) -> Delta {
        if self.stopped {
            return Delta { text: String::new(), stopped: true };
        }
        self.bytes.extend_from_slice(self.vocabulary.token_bytes(token));
        let held = self.held.len();
        take_characters(&mut self.bytes, &mut self.held);
        self.made += self.held.len() - held;
        let delta = self.release();
        self.released += delta.text.len();
        delta
    }

    /// Bytes of text that the tokens have made so far, final or not.
    pub fn made(&self) -> usize {
        self.made
    }

    /// Bytes of text that are final.
    pub fn released(&self) -> usize {
        self.released
    }

    /// The text that was held back. Call it once, after the last token.
    pub fn finish(&mut self) -> String {
        if self.stopped {
            return String::new();
        }
        if !self.bytes.is_empty() {
            self.bytes.clear();
            self.held.push(char::REPLACEMENT_CHARACTER);
        }
        let mut text = self.release().text;
        text.push_str(&std::mem::take(&mut self.held));
        self.released += text.len();
        text
    }

    /// Splits off what is certain of the held text.
    fn release(&mut self) -> Delta {
        let found = (self.stop.iter())
            .filter_map(|stop| self.held.find(stop.as_str()).map(|start| (start + stop.len(), start)))
            .min();
        if let Some((_, start)) = found {
            self.stopped = true;
            let mut text = std::mem::take(&mut self.held);
            text.truncate(start);
            return Delta { text, stopped: true };
        }
        let keep = self.stop.iter().map(|stop| overlap(&self.held, stop)).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - keep);
        Delta { text: std::mem::replace(&mut self.held, rest), stopped: false }
    }
}

/// Bytes of the longest end of `text` that `stop` begins with but goes beyond.
fn overlap(text: &str, stop: &str) -> usize {
    let (text, stop) = (text.as_bytes(), stop.as_bytes());
    (1..stop.len().min(text.len() + 1)).rev().find(|&length| text.ends_with(&stop[..length])).unwrap_or(0)
}

/// Moves all that is decided from `bytes` to `text`: characters, and U+FFFD for what can't become one. What remains is
/// the beginning of a character.
fn take_characters(bytes: &mut Vec<u8>, text: &mut String) {
    let mut at = 0;
    while at < bytes.len() {
        let rest = &bytes[at..];
        match std::str::from_utf8(rest) {
            Ok(valid) => {
                text.push_str(valid);
                at = bytes.len();
            }
            Err(error) => {
                let (valid, invalid) = rest.split_at(error.valid_up_to());
                text.push_str(&String::from_utf8_lossy(valid));
                at += valid.len();
                let Some(length) = error.error_len() else { break };
                text.push(char::REPLACEMENT_CHARACTER);
                at += length.min(invalid.len());
            }
        }
    }
    bytes.drain(..at);
}
