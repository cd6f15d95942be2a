//! Requests of a trace, in the format of the Mooncake traces.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::PathBuf;

use serde::Deserialize;

use super::Options;

/// A request's prompt. What else a line says is of no matter here.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Request {
    /// Tokens of the prompt.
    pub input_length: u64,
    /// Names of the prompt's blocks; each depends on all tokens up to the block's end.
    pub hash_ids: Vec<u64>,
}

impl Request {
    pub(super) fn blocks(&self) -> u64 {
        self.hash_ids.len() as u64
    }

    /// Tokens of the prompt's first `blocks` blocks.
    pub(super) fn tokens(&self, blocks: u64, block_tokens: u64) -> u64 {
        (blocks * block_tokens).min(self.input_length)
    }
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot read the trace {}; check its path", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("line {line} of the trace is no request with input_length and hash_ids")]
    Line { line: usize, source: serde_json::Error },
    #[error(
        "line {line} of the trace: expected {expected} hash_ids, one for each {block_tokens} of {tokens} tokens, found \
         {found}; give the trace's own block size with --block-tokens"
    )]
    Blocks { line: usize, expected: u64, block_tokens: u64, tokens: u64, found: u64 },
    #[error("the trace {} holds no prompts; give one with at least one request", path.display())]
    Empty { path: PathBuf },
}

/// All requests in the file's order; empty lines are skipped.
pub(super) fn read(options: &Options) -> Result<Vec<Request>, Error> {
    let path = &options.trace;
    let failed = |source| Error::Read { path: path.clone(), source };
    let block_tokens = u64::from(options.block_tokens.get());
    let mut requests = Vec::new();
    for (line, text) in (1..).zip(BufReader::new(File::open(path).map_err(failed)?).lines()) {
        let text = text.map_err(failed)?;
        if text.trim().is_empty() {
            continue;
        }
        let request: Request = serde_json::from_str(&text).map_err(|source| Error::Line { line, source })?;
        let (tokens, found) = (request.input_length, request.blocks());
        let expected = tokens.div_ceil(block_tokens);
        if found != expected {
            return Err(Error::Blocks { line, expected, block_tokens, tokens, found });
        }
        requests.push(request);
    }
    if requests.iter().all(|request| request.hash_ids.is_empty()) {
        return Err(Error::Empty { path: path.clone() });
    }
    Ok(requests)
}
