//! `baton guard`: becomes another program that ends when the caller does.

use std::ffi::OsString;

#[derive(clap::Args)]
pub struct Arguments {
    /// The parent's process id
    parent: u32,
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<OsString>,
}

pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let (program, rest) = (&arguments.command[0], &arguments.command[1..]);
    Ok(baton_provision::guard::become_child(arguments.parent, program, rest)?)
}
