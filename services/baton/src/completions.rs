//! `baton completions`: what a shell needs to complete Baton's commands and options.

use std::io::Write;

use clap_complete::Shell;

use crate::output::stdout;

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  baton completions bash > ~/.local/share/bash-completion/completions/baton
  baton completions zsh > ~/.zfunc/_baton          with `fpath+=~/.zfunc` before `compinit` in ~/.zshrc
  baton completions fish > ~/.config/fish/completions/baton.fish

The script is for this version's commands: write it again after an update.")]
pub struct Arguments {
    /// The shell to write the script for
    shell: Shell,
}

/// Prints the script of a shell for `command`.
pub fn run(arguments: &Arguments, mut command: clap::Command) -> anyhow::Result<()> {
    // Into memory first: clap_complete panics when its writer fails, as a closed pipe does.
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut command, "baton", &mut script);
    Ok(stdout().write_all(&script)?)
}
