//! Lines of a batch's input, however its bytes come.

/// What some editors begin a file with.
pub const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// Splits bytes into lines; those that are blank are left out, and so is a byte order mark before the first.
#[derive(Debug)]
pub struct Splitter {
    /// Bytes that a line may have, without its end.
    most: usize,
    held: Vec<u8>,
    /// Where the next line begins in `held`.
    start: usize,
    /// Bytes of that line that hold no end.
    searched: usize,
    /// Lines that have ended, blank ones among them.
    number: u64,
    /// Whether the rest of a line is left out that was too long.
    skips: bool,
    ended: bool,
}

/// A line as it was written, without its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawLine {
    /// Its place in the file, from 1.
    pub number: u64,
    /// The line, or as much of it as a line may have.
    pub bytes: Vec<u8>,
    /// Whether that is all of it.
    pub whole: bool,
}

impl Splitter {
    /// Splits into lines of at most `most` bytes each.
    pub fn new(most: usize) -> Self {
        Self { most, held: Vec::new(), start: 0, searched: 0, number: 0, skips: false, ended: false }
    }

    /// Adds the next bytes; what was added before is to be taken first, or memory grows.
    pub fn push(&mut self, bytes: &[u8]) {
        self.held.drain(..std::mem::take(&mut self.start));
        self.held.extend_from_slice(bytes);
    }

    /// No more bytes come: what is left is the last line.
    pub fn end(&mut self) {
        self.ended = true;
    }

    /// Looks whether the line that has no end yet is too long already.
    fn unended(&mut self) -> Option<RawLine> {
        let length = self.held.len() - self.start;
        // Of the first line the byte order mark does not count.
        if !self.skips && length <= self.most + BYTE_ORDER_MARK.len() {
            self.searched = length;
            return None;
        }
        let bytes = self.take(length, 0);
        if std::mem::replace(&mut self.skips, true) {
            return None;
        }
        self.number += 1;
        self.line(bytes)
    }

    /// Takes bytes out, and leaves out as many as their end has.
    fn take(&mut self, length: usize, end: usize) -> Vec<u8> {
        let bytes = match self.skips {
            true => Vec::new(),
            false => self.held[self.start..self.start + length].to_vec(),
        };
        self.start += length + end;
        self.searched = 0;
        bytes
    }

    fn line(&self, mut bytes: Vec<u8>) -> Option<RawLine> {
        if self.number == 1 && bytes.starts_with(BYTE_ORDER_MARK) {
            bytes.drain(..BYTE_ORDER_MARK.len());
        }
        let whole = bytes.len() <= self.most;
        bytes.truncate(self.most);
        let blank = bytes.iter().all(u8::is_ascii_whitespace);
        (!blank || !whole).then_some(RawLine { number: self.number, bytes, whole })
    }
}

impl Iterator for Splitter {
    type Item = RawLine;

    /// The next line that is not blank, if it is there already. More may come after none.
    fn next(&mut self) -> Option<RawLine> {
        loop {
            let rest = &self.held[self.start..];
            let end = rest[self.searched..].iter().position(|byte| *byte == b'\n').map(|at| self.searched + at);
            let length = match end {
                Some(end) => end,
                None if self.ended && !rest.is_empty() => rest.len(),
                None => return self.unended(),
            };
            let line = self.take(length, usize::from(end.is_some()));
            self.number += u64::from(!self.skips);
            let skipped = std::mem::take(&mut self.skips);
            if !skipped && let Some(line) = self.line(line) {
                return Some(line);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The lines of bytes that come in pieces of a length.
    fn lines(bytes: &[u8], step: usize, most: usize) -> Vec<RawLine> {
        let (mut splitter, mut found) = (Splitter::new(most), Vec::new());
        for piece in bytes.chunks(step) {
            splitter.push(piece);
            found.extend(splitter.by_ref());
        }
        splitter.end();
        found.extend(splitter.by_ref());
        found
    }

    #[test]
    fn lines_are_the_same_however_their_bytes_come() {
        let text = b"\xef\xbb\xbf\n\xef\xbb\xbffirst\r\n\n  \n0123456789abcdef\nafter\n0123456789abcdef";
        let line = |number, text: &str, whole| RawLine { number, bytes: text.into(), whole };
        let expected = [
            line(2, "\u{feff}first\r", true),
            line(5, "0123456789", false),
            line(6, "after", true),
            line(7, "0123456789", false),
        ];
        for step in 1..=text.len() {
            assert_eq!(lines(text, step, 10), expected, "{step}");
        }
        assert_eq!(lines(b"\xef\xbb\xbf{}\n", 2, 10), [line(1, "{}", true)]);
        assert_eq!(lines(b"0123456789", 4, 10), [line(1, "0123456789", true)]);
        assert_eq!(lines(b"", 4, 10), []);
    }
}
