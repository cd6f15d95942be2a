//! A stream that a terminal shows and does not obey. On a terminal control characters are shown by their numbers; piped, every
//! byte is as it is.

use std::{
    borrow::Cow,
    io::{self, Write},
};

/// Whoever read standard output has seen enough, as `head` does. Broken connections are other errors.
#[derive(Debug, thiserror::Error)]
#[error("standard output was closed")]
pub struct Closed;

fn closed(error: io::Error) -> io::Error {
    if error.kind() == io::ErrorKind::BrokenPipe { io::Error::new(error.kind(), Closed) } else { error }
}

/// A stream of the process, perhaps to a terminal.
pub struct Output<W> {
    stream: W,
    is_terminal: bool,
}

impl<W> Output<W> {
    /// Writes to a stream.
    pub fn new(stream: W, is_terminal: bool) -> Self {
        Self { stream, is_terminal }
    }
}

impl<W: Write> Write for Output<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if !self.is_terminal {
            return self.stream.write(bytes).map_err(closed);
        }
        self.stream.write_all(harmless(&String::from_utf8_lossy(bytes)).as_bytes()).map_err(closed)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush().map_err(closed)
    }
}

/// A text that a terminal shows and does not obey.
fn harmless(text: &str) -> Cow<'_, str> {
    let steers = |c: char| c.is_control() && !matches!(c, '\n' | '\t');
    if !text.contains(steers) {
        return Cow::Borrowed(text);
    }
    let shown = |c: char| if steers(c) { c.escape_unicode().to_string() } else { c.to_string() };
    Cow::Owned(text.chars().map(shown).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_is_not_steered_and_a_pipe_gets_every_byte() {
        let text = "one\ttwo\n\u{1b}[2Jthree\r\u{9b}31m\u{7}\u{7f} größe\n";
        let written = |is_terminal| {
            let mut output = Output { stream: Vec::new(), is_terminal };
            write!(output, "{text}").unwrap();
            String::from_utf8(output.stream).unwrap()
        };
        assert_eq!(written(false), text);
        assert_eq!(written(true), "one\ttwo\n\\u{1b}[2Jthree\\u{d}\\u{9b}31m\\u{7}\\u{7f} größe\n");
    }
}
