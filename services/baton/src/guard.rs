//! Ties a child process to its parent's life: the kernel sends it SIGTERM when the parent ends, however that happens.
//!
//! `baton guard PARENT COMMAND...` asks for that signal and then becomes COMMAND, which keeps it across `exec`.

use std::{
    ffi::OsString,
    os::unix::process::CommandExt,
    path::Path,
    process::{Command, id},
};

use anyhow::Context;

#[derive(clap::Args)]
pub struct Arguments {
    /// The parent's process id
    parent: u32,
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<OsString>,
}

pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    die_with_parent(arguments.parent)?;
    let error = Command::new(&arguments.command[0]).args(&arguments.command[1..]).exec();
    Err(error).with_context(|| format!("cannot run {}", Path::new(&arguments.command[0]).display()))
}

/// The words to put before a command line to tie it to this process.
pub fn launcher() -> anyhow::Result<Vec<OsString>> {
    let own = std::env::current_exe().context("cannot find the path of this program")?;
    Ok(vec![own.into(), "guard".into(), id().to_string().into()])
}

#[cfg(target_os = "linux")]
fn die_with_parent(parent: u32) -> anyhow::Result<()> {
    nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGTERM)?;
    // The parent may have ended before the kernel was asked.
    let present = nix::unistd::getppid().as_raw() as u32;
    anyhow::ensure!(present == parent, "the parent process {parent} has ended");
    Ok(())
}

/// Elsewhere the parent's orderly end stops its children; after a kill -9 they must be ended by hand.
#[cfg(not(target_os = "linux"))]
fn die_with_parent(_parent: u32) -> anyhow::Result<()> {
    Ok(())
}
