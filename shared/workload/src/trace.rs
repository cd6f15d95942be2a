//! The lines of a recorded load, in the format of the Mooncake traces.

use serde::{Deserialize, Serialize};

/// Tokens of a block that a hash of the published traces stands for.
pub const BLOCK_TOKENS: u32 = 512;

/// A request of a trace: one JSON object a line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Line {
    /// Milliseconds from the trace's beginning.
    pub timestamp: f64,
    /// Tokens of the prompt.
    pub input_length: u64,
    /// Tokens of the answer.
    pub output_length: u64,
    /// Names of the prompt's blocks; each depends on all tokens up to the block's end.
    pub hash_ids: Vec<u64>,
}

/// What is wrong with a line of a trace, which is counted from 1.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is no JSON object with the four fields.
    #[error("line {line} of the trace is no request with timestamp, input_length, output_length and hash_ids")]
    Line {
        /// Its number.
        line: usize,
        /// What the JSON lacks.
        source: serde_json::Error,
    },
    /// The names of blocks don't fit the prompt's length.
    #[error(
        "line {line} of the trace: expected {expected} hash_ids, one for each {block_tokens} of {tokens} tokens, found \
         {found}; give the trace's own block size"
    )]
    Blocks {
        /// Its number.
        line: usize,
        /// Blocks that the prompt has.
        expected: u64,
        /// Tokens of a block.
        block_tokens: u32,
        /// Tokens of the prompt.
        tokens: u64,
        /// Names that the line has.
        found: u64,
    },
    /// It comes before the line above it.
    #[error(
        "line {line} of the trace: expected a timestamp of at least {expected} ms, that of the line before, found {found}"
    )]
    Order {
        /// Its number.
        line: usize,
        /// The least timestamp, in milliseconds.
        expected: f64,
        /// The line's timestamp, in milliseconds.
        found: f64,
    },
}

/// Reads a trace line by line: the checks that need the line before are here.
#[derive(Clone, Debug)]
pub struct Reader {
    block_tokens: u32,
    line: usize,
    last: f64,
}

impl Reader {
    /// Of a trace whose blocks have so many tokens, at least 1.
    pub fn new(block_tokens: u32) -> Self {
        Self { block_tokens: block_tokens.max(1), line: 0, last: 0.0 }
    }

    /// The next line's request; none if the line is empty.
    pub fn read(&mut self, text: &str) -> Result<Option<Line>, Error> {
        self.line += 1;
        let line = self.line;
        if text.trim().is_empty() {
            return Ok(None);
        }
        let request: Line = serde_json::from_str(text).map_err(|source| Error::Line { line, source })?;
        let (tokens, found) = (request.input_length, request.hash_ids.len() as u64);
        let expected = tokens.div_ceil(u64::from(self.block_tokens));
        if found != expected {
            return Err(Error::Blocks { line, expected, block_tokens: self.block_tokens, tokens, found });
        }
        if request.timestamp < self.last {
            return Err(Error::Order { line, expected: self.last, found: request.timestamp });
        }
        self.last = request.timestamp;
        Ok(Some(request))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_in_order_and_what_is_no_trace_is_refused_with_its_line() {
        let text = r#"{"timestamp": 7, "input_length": 513, "output_length": 5, "hash_ids": [1, 2]}"#;
        let mut reader = Reader::new(BLOCK_TOKENS);
        let read = reader.read(text).unwrap().unwrap();
        assert_eq!((read.timestamp, read.input_length, read.output_length, read.hash_ids), (7.0, 513, 5, vec![1, 2]));
        assert!(reader.read(" ").unwrap().is_none());
        let earlier = text.replace('7', "6");
        assert!(matches!(reader.read(&earlier), Err(Error::Order { line: 3, .. })));
        assert!(matches!(reader.read("{}"), Err(Error::Line { line: 4, .. })));
        assert!(matches!(Reader::new(256).read(text), Err(Error::Blocks { line: 1, expected: 3, found: 2, .. })));
    }
}
