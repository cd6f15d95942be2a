//! Ties a child process to its parent's life: the kernel sends it SIGTERM when the parent ends, however that happens.
//!
//! `baton guard PARENT COMMAND...` asks for that signal and then becomes COMMAND, which keeps it across `exec`.

use std::{
    ffi::{OsStr, OsString},
    os::unix::process::CommandExt,
    process::{Command, id},
};

use crate::Error;

/// The words to put before a command line to tie it to this process.
pub fn launcher() -> Result<Vec<OsString>, Error> {
    let own = std::env::current_exe().map_err(Error::OwnPath)?;
    Ok(vec![own.into(), "guard".into(), id().to_string().into()])
}

/// Becomes `program`, and ends when the process `parent` does. Returns only if it can't.
pub fn become_child(parent: u32, program: &OsStr, arguments: &[OsString]) -> Result<(), Error> {
    die_with_parent(parent)?;
    let source = Command::new(program).args(arguments).exec();
    Err(Error::Run { program: program.into(), source })
}

#[cfg(target_os = "linux")]
fn die_with_parent(parent: u32) -> Result<(), Error> {
    nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGTERM)?;
    // The parent may have ended before the kernel was asked.
    let present = nix::unistd::getppid().as_raw() as u32;
    if present == parent { Ok(()) } else { Err(Error::ParentEnded { parent }) }
}

/// Elsewhere the parent's orderly end stops its children; after a kill -9 they must be ended by hand.
#[cfg(not(target_os = "linux"))]
fn die_with_parent(_parent: u32) -> Result<(), Error> {
    Ok(())
}
