//! What a command prints. A reader that has seen enough is the error [`baton_terminal::output::Closed`], with which a command
//! ends quietly ([`crate::exit::report`]).

use std::{
    fmt,
    io::{self, IsTerminal, StdoutLock, Write},
};

use baton_terminal::output::Output;

/// Tells a person something, in a line on standard error.
macro_rules! note {
    ($($text:tt)*) => { $crate::output::say(format_args!($($text)*)) };
}
pub(crate) use note;

/// Standard output: what scripts may read.
pub fn stdout() -> Output<StdoutLock<'static>> {
    Output::new(io::stdout().lock(), io::stdout().is_terminal())
}

/// Standard output as it is, for whoever asks for every byte.
pub fn raw_stdout() -> Output<StdoutLock<'static>> {
    Output::new(io::stdout().lock(), false)
}

pub fn say(text: fmt::Arguments<'_>) {
    let mut stderr = Output::new(io::stderr().lock(), io::stderr().is_terminal());
    // Where it is closed, nobody is left to tell.
    let _ = writeln!(stderr, "{text}");
}
