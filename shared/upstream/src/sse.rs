//! Server-sent events, as far as engines use them; pure. Bounded: a line, and an event, may have [`MOST_BYTES`].

use bytes::{Buf, BytesMut};

/// Bytes of an event. The first one of vLLM's has the prompt's token ids: a million of them take seven bytes each.
pub(crate) const MOST_BYTES: usize = 8 << 20;

/// An event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Message {
    /// Its lines of data.
    pub(crate) data: Vec<u8>,
    /// Whether it is named an error.
    pub(crate) is_error: bool,
}

/// Why what came are no events.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Malformed {
    #[error("an event has more than {MOST_BYTES} bytes")]
    TooLong,
    #[error("expected an event stream, found {0:?}")]
    Other(String),
}

/// A stream of events, cut anywhere.
#[derive(Debug, Default)]
pub(crate) struct Events {
    bytes: BytesMut,
    /// Bytes in which no end of a line was found.
    searched: usize,
    data: Vec<u8>,
    lines: usize,
    is_error: bool,
    begun: bool,
}

impl Events {
    /// Takes what came.
    pub(crate) fn feed(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The next event, if all of it has come.
    pub(crate) fn next(&mut self) -> Result<Option<Message>, Malformed> {
        loop {
            let Some(end) = self.bytes[self.searched..].iter().position(|byte| *byte == b'\n') else {
                self.searched = self.bytes.len();
                return if self.bytes.len() > MOST_BYTES { Err(Malformed::TooLong) } else { Ok(None) };
            };
            let line = self.bytes.split_to(self.searched + end);
            self.bytes.advance(1);
            self.searched = 0;
            if let Some(message) = self.read(line.strip_suffix(b"\r").unwrap_or(&line))? {
                return Ok(Some(message));
            }
        }
    }

    /// The last event, if the stream ended in it: after its data, without an empty line.
    pub(crate) fn end(&mut self) -> Result<Option<Message>, Malformed> {
        let line = std::mem::take(&mut self.bytes);
        self.searched = 0;
        match self.read(line.strip_suffix(b"\r").unwrap_or(&line))? {
            Some(message) => Ok(Some(message)),
            None => Ok(self.take()),
        }
    }

    fn read(&mut self, line: &[u8]) -> Result<Option<Message>, Malformed> {
        let line = match self.begun {
            false => line.strip_prefix("\u{feff}".as_bytes()).unwrap_or(line),
            true => line,
        };
        if line.is_empty() {
            return Ok(self.take());
        }
        let (name, value) = match line.iter().position(|byte| *byte == b':') {
            Some(colon) => (&line[..colon], &line[colon + 1..]),
            None => (line, &[][..]),
        };
        let value = value.strip_prefix(b" ").unwrap_or(value);
        match name {
            b"data" => self.add(value)?,
            // Older releases of llama.cpp name their errors so.
            b"error" => {
                self.is_error = true;
                self.add(value)?;
            }
            b"event" => self.is_error = value == b"error",
            b"" | b"id" | b"retry" => {}
            // Unknown names are passed over, but what begins with one is something else.
            _ if self.begun => {}
            _ => {
                let found: String = String::from_utf8_lossy(line).chars().take(60).collect();
                return Err(Malformed::Other(found));
            }
        }
        self.begun = true;
        Ok(None)
    }

    fn add(&mut self, value: &[u8]) -> Result<(), Malformed> {
        if self.data.len() + value.len() > MOST_BYTES {
            return Err(Malformed::TooLong);
        }
        if self.lines > 0 {
            self.data.push(b'\n');
        }
        self.data.extend_from_slice(value);
        self.lines += 1;
        Ok(())
    }

    fn take(&mut self) -> Option<Message> {
        let (lines, is_error) = (std::mem::take(&mut self.lines), std::mem::take(&mut self.is_error));
        let data = std::mem::take(&mut self.data);
        (lines > 0).then_some(Message { data, is_error })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All events of a stream that comes in these pieces.
    fn all<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Result<Vec<(String, bool)>, Malformed> {
        let (mut events, mut found) = (Events::default(), Vec::new());
        let mut keep = |message: Message| found.push((String::from_utf8(message.data).unwrap(), message.is_error));
        for piece in pieces {
            events.feed(piece);
            while let Some(message) = events.next()? {
                keep(message);
            }
        }
        while let Some(message) = events.end()? {
            keep(message);
        }
        Ok(found)
    }

    #[test]
    fn events_are_the_same_wherever_the_stream_is_cut() {
        let stream = "\u{feff}: hello\r\n\r\ndata: {\"a\":1}\r\n\r\ndata:two\ndata: lines\nid: 7\nretry: 1\n\n: beat\n\nevent: error\ndata: bad\n\nunknown\ndata: é\n\nerror: {}\n\ndata\n\ndata: [DONE]";
        let texts = [
            ("{\"a\":1}", false),
            ("two\nlines", false),
            ("bad", true),
            ("é", false),
            ("{}", true),
            ("", false),
            ("[DONE]", false),
        ];
        let expected: Vec<(String, bool)> = texts.map(|(text, is_error)| (text.to_owned(), is_error)).into();
        let bytes = stream.as_bytes();
        for cut in 0..=bytes.len() {
            assert_eq!(all([&bytes[..cut], &bytes[cut..]]).unwrap(), expected, "{cut}");
        }
        assert_eq!(all(bytes.chunks(1)).unwrap(), expected);
    }

    #[test]
    fn what_is_no_stream_of_events_is_seen_at_its_first_line() {
        for (text, found) in
            [("<html>\n<body>", "<html>"), ("{\"error\":\"no\"}\n", "{\"error\":\"no\"}"), ("hello", "hello")]
        {
            assert_eq!(all([text.as_bytes()]), Err(Malformed::Other(found.into())));
        }
        assert_eq!(all([&b""[..], b"\n\n", b": only a comment"]), Ok(Vec::new()));
    }

    #[test]
    fn neither_a_line_nor_an_event_grows_without_end() {
        let mut events = Events::default();
        let piece = [b'a'; 1 << 16];
        events.feed(b"data: ");
        let whole = (0..).find(|_| {
            events.feed(&piece);
            events.next() == Err(Malformed::TooLong)
        });
        assert_eq!(whole, Some(MOST_BYTES / piece.len() - 1));

        let mut events = Events::default();
        let line = [b"data: ", &piece[..], b"\n"].concat();
        let whole = (0..).find(|_| {
            events.feed(&line);
            events.next() == Err(Malformed::TooLong)
        });
        assert_eq!(whole, Some(MOST_BYTES / piece.len() - 1), "with the line feeds between the lines");

        let mut events = Events::default();
        for _ in 0..1_000 {
            events.feed(b": beat\n\n");
            assert_eq!(events.next(), Ok(None));
        }
        assert_eq!(events.bytes.len(), 0);
    }
}
