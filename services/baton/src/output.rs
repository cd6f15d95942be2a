//! What a command prints. On a terminal, what others have written can't steer it: control characters are shown by their
//! numbers. Piped, every byte is as it is. A reader that has seen enough is the error [`Closed`], with which a command ends
//! quietly ([`crate::exit::report`]).

use std::{
    borrow::Cow,
    fmt,
    io::{self, IsTerminal, StdoutLock, Write},
};

/// Whoever read standard output has seen enough, as `head` does. Broken connections are other errors.
#[derive(Debug, thiserror::Error)]
#[error("standard output was closed")]
pub struct Closed;

fn closed(error: io::Error) -> io::Error {
    if error.kind() == io::ErrorKind::BrokenPipe { io::Error::new(error.kind(), Closed) } else { error }
}

/// Tells a person something, in a line on standard error.
macro_rules! note {
    ($($text:tt)*) => { $crate::output::say(format_args!($($text)*)) };
}
pub(crate) use note;

/// A stream of the process.
pub struct Output<W> {
    stream: W,
    is_terminal: bool,
}

/// Standard output: what scripts may read.
pub fn stdout() -> Output<StdoutLock<'static>> {
    Output { stream: io::stdout().lock(), is_terminal: io::stdout().is_terminal() }
}

/// Standard output as it is, for whoever asks for every byte.
pub fn raw_stdout() -> Output<StdoutLock<'static>> {
    Output { stream: io::stdout().lock(), is_terminal: false }
}

pub fn say(text: fmt::Arguments<'_>) {
    let mut stderr = Output { stream: io::stderr().lock(), is_terminal: io::stderr().is_terminal() };
    // Where it is closed, nobody is left to tell.
    let _ = writeln!(stderr, "{text}");
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
