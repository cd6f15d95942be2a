//! The input file: a request a line.

use std::collections::HashSet;

use baton_contract::{batch::Problem, causes};
use baton_openai::{BatchLine, Endpoint, RawLine, Splitter};
use baton_storage::files;
use bytes::Bytes;
use futures::{Stream, StreamExt};

/// Requests that a batch may have.
pub(super) const MAX_REQUESTS: u64 = 50_000;
/// Bytes of a line: a request is one message of the broker's.
const MAX_LINE: usize = 8 << 20;
/// Problems that are told of a file.
const MAX_PROBLEMS: usize = 50;

/// Why a file could not be read to its end.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("line {line} has more than {MAX_LINE} bytes")]
    LongLine { line: u64 },
    #[error(transparent)]
    Files(#[from] files::Error),
}

/// The lines of a file, one at a time; those that are blank are left out.
pub(super) struct Lines<S> {
    pieces: S,
    splitter: Splitter,
    ended: bool,
}

/// A line with its number, from 1.
pub(super) struct Line {
    pub(super) number: u64,
    pub(super) bytes: Vec<u8>,
}

impl<S: Stream<Item = Result<Bytes, files::Error>> + Unpin> Lines<S> {
    pub(super) fn new(pieces: S) -> Self {
        Self { pieces, splitter: Splitter::new(MAX_LINE), ended: false }
    }

    /// The next line. May be given up and called again without losing anything.
    pub(super) async fn next(&mut self) -> Result<Option<Line>, Error> {
        loop {
            match self.splitter.next() {
                Some(RawLine { number, bytes, whole: true }) => return Ok(Some(Line { number, bytes })),
                Some(RawLine { number, .. }) => return Err(Error::LongLine { line: number }),
                None if self.ended => return Ok(None),
                None => match self.pieces.next().await {
                    Some(piece) => self.splitter.push(&piece?),
                    None => {
                        self.ended = true;
                        self.splitter.end();
                    }
                },
            }
        }
    }
}

impl Line {
    /// Its request; or what is wrong with it, in which case the batch fails as a whole.
    pub(super) fn read(&self, endpoint: Endpoint) -> Result<BatchLine, Problem> {
        let problem = |code: &str, param: Option<&str>, message: String| Problem {
            code: code.into(),
            line: Some(self.number),
            message,
            param: param.map(Into::into),
        };
        let line =
            baton_openai::read_line(&self.bytes).map_err(|error| problem(error.code, error.param, error.message))?;
        if line.endpoint != endpoint {
            let message = format!("url: expected the batch's endpoint, {:?}", endpoint.path());
            return Err(problem("invalid_url", Some("url"), message));
        }
        Ok(line)
    }
}

/// Reads a whole file: how many requests it has, or what is wrong with it.
pub(super) async fn validate<S>(
    mut lines: Lines<S>,
    endpoint: Endpoint,
) -> Result<Result<u64, Vec<Problem>>, files::Error>
where
    S: Stream<Item = Result<Bytes, files::Error>> + Unpin,
{
    let whole =
        |code: &str, message: String, line: Option<u64>| Problem { code: code.into(), line, message, param: None };
    let mut problems = Vec::new();
    // Sixteen bytes of a hash each, so that ids of any length take the same.
    let mut seen: HashSet<u128> = HashSet::new();
    let mut requests = 0u64;
    while problems.len() < MAX_PROBLEMS {
        let line = match lines.next().await {
            Ok(Some(line)) => line,
            Ok(None) => break,
            Err(Error::Files(error)) => return Err(error),
            Err(error @ Error::LongLine { line }) => {
                problems.push(whole("invalid_json_line", causes(&error), Some(line)));
                break;
            }
        };
        requests += 1;
        if requests > MAX_REQUESTS {
            let message = format!("expected at most {MAX_REQUESTS} requests; split the file into several batches");
            problems.push(whole("too_many_requests", message, None));
            break;
        }
        match line.read(endpoint) {
            Ok(asked) if seen.insert(short_hash(&asked.custom_id)) => {}
            Ok(asked) => {
                let message = format!("the custom_id {:?} is that of an earlier line", asked.custom_id);
                let problem = whole("duplicate_custom_id", message, Some(line.number));
                problems.push(Problem { param: Some("custom_id".into()), ..problem });
            }
            Err(problem) => problems.push(problem),
        }
    }
    if requests == 0 && problems.is_empty() {
        problems.push(whole("empty_file", "the input file has no requests".into(), None));
    }
    Ok(if problems.is_empty() { Ok(requests) } else { Err(problems) })
}

fn short_hash(text: &str) -> u128 {
    use sha2::{Digest, Sha256};
    let digest: [u8; 32] = Sha256::digest(text.as_bytes()).into();
    u128::from_le_bytes(std::array::from_fn(|at| digest[at]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &[u8], step: usize) -> Lines<impl Stream<Item = Result<Bytes, files::Error>> + Unpin> {
        let pieces: Vec<_> = text.chunks(step).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
        Lines::new(futures::stream::iter(pieces))
    }

    fn request(custom_id: &str) -> String {
        format!(r#"{{"custom_id":"{custom_id}","method":"POST","url":"/v1/completions","body":{{"prompt":"x"}}}}"#)
    }

    #[tokio::test]
    async fn lines_are_the_same_however_the_file_comes() {
        let text = b"\nfirst\r\n\n  \nsecond\nlast";
        for step in 1..=text.len() {
            let mut lines = lines(text, step);
            let mut found = Vec::new();
            while let Some(line) = lines.next().await.unwrap() {
                found.push((line.number, String::from_utf8(line.bytes).unwrap()));
            }
            let expected = [(2, "first\r"), (5, "second"), (6, "last")].map(|(at, text)| (at, text.to_string()));
            assert_eq!(found, expected, "{step}");
        }
    }

    #[tokio::test]
    async fn a_file_holds_or_every_problem_is_told_with_its_line() {
        let endpoint = Endpoint::Completions;
        let check = async |text: &str| validate(lines(text.as_bytes(), 7), endpoint).await.unwrap();
        let good = format!("\u{feff}{}\r\n{}\n", request("a"), request("b"));
        assert_eq!(check(&good).await, Ok(2));
        let bad = [
            request("a"),
            "not json".into(),
            request("a"),
            request("b").replace("/v1/completions", "/v1/embeddings"),
            request("c").replace("POST", "GET"),
            request("d").replace("custom_id", "id"),
            request(""),
            r#"{"custom_id":"e","method":"POST","url":"/v1/completions"}"#.into(),
        ];
        let problems = check(&bad.join("\n")).await.unwrap_err();
        let told: Vec<_> = problems.iter().map(|problem| (problem.line.unwrap(), problem.code.as_str())).collect();
        let expected = [
            (2, "invalid_json_line"),
            (3, "duplicate_custom_id"),
            (4, "invalid_url"),
            (5, "invalid_method"),
            (6, "invalid_json_line"),
            (7, "invalid_custom_id"),
            (8, "missing_required_parameter"),
        ];
        assert_eq!(told, expected);
        for empty in ["", "\n \n"] {
            assert_eq!(check(empty).await.unwrap_err()[0].code, "empty_file");
        }
        let many: String = (0..=MAX_REQUESTS).map(|n| request(&n.to_string()) + "\n").collect();
        assert_eq!(check(&many).await.unwrap_err()[0].code, "too_many_requests");
        let long = "x".repeat(MAX_LINE + 10);
        assert_eq!(check(&long).await.unwrap_err()[0].line, Some(1));
    }
}
