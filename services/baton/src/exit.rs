//! What a command tells the shell by its exit code. `baton --help` documents the codes; every command keeps to them.

use std::{io, process::ExitCode};

use baton_contract::causes;

use baton_terminal::output::Closed;

use crate::output::note;

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// All that was asked for is done.
    Success,
    /// It could not be done, or a check did not pass.
    Failure,
    /// The command line makes no sense; clap ends with the same code.
    Usage,
    /// The command did its part, and jobs did not complete.
    JobsFailed,
    /// Ctrl-C or SIGTERM came before the end.
    Interrupted,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(match exit {
            Exit::Success => 0,
            Exit::Failure => 1,
            Exit::Usage => 2,
            Exit::JobsFailed => 3,
            Exit::Interrupted => 130,
        })
    }
}

impl Exit {
    /// Success if every job completed.
    pub fn of_jobs(all_completed: bool) -> ExitCode {
        if all_completed { Self::Success } else { Self::JobsFailed }.into()
    }
}

/// Arguments that clap takes one by one and that make no sense together.
#[derive(Debug, thiserror::Error)]
#[error("{0} (see --help)")]
pub struct Usage(pub String);

/// The command was asked to stop before it was done.
#[derive(Debug, thiserror::Error)]
#[error("stopped before the end")]
pub struct Interrupted;

/// Says what went wrong, and which code that is.
pub fn report(result: anyhow::Result<()>) -> ExitCode {
    let Err(error) = result else { return Exit::Success.into() };
    let closed = |error: &io::Error| error.get_ref().is_some_and(|cause| cause.is::<Closed>());
    if error.chain().any(|cause| cause.downcast_ref().is_some_and(closed)) {
        return Exit::Success.into();
    }
    note!("error: {}", causes(error.as_ref()));
    if error.is::<Usage>() {
        Exit::Usage.into()
    } else if error.is::<Interrupted>() {
        Exit::Interrupted.into()
    } else {
        Exit::Failure.into()
    }
}
