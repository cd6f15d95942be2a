//! Why a context is not to be had.

use std::{io, path::PathBuf};

use baton_contract::Name;

/// What is wrong with a context, or with the folder of all of them.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say what the variants mean")]
pub enum Error {
    #[error("there is no home directory; set XDG_CONFIG_HOME to an absolute path")]
    NoHome,
    #[error("{name:?} is no name of a context")]
    Name { name: String, source: baton_contract::name::Error },
    #[error("there is no context {name}; `baton context ls` lists those there are, `add` makes one")]
    Unknown { name: Name },
    #[error("there is a context {name} already; --replace replaces it")]
    Taken { name: Name },
    #[error("{path} is no context")]
    Read { path: PathBuf, source: toml::de::Error },
    #[error("cannot write the context as TOML")]
    Write(#[from] toml::ser::Error),
    #[error("{path} does not name a context")]
    Selection { path: PathBuf, source: baton_contract::name::Error },
    #[error("cannot {attempt} {path}")]
    File { attempt: &'static str, path: PathBuf, source: io::Error },
}
