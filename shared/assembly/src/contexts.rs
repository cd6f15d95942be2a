//! Names for the pipelines that a user works with, each a small file in the user's configuration folder.

mod context;
mod error;
mod folder;

use baton_contract::Name;

pub use self::{context::Context, error::Error, folder::Folder};

/// Names the context of commands that are given no other.
pub const CONTEXT_VARIABLE: &str = "BATON_CONTEXT";

/// The context of this name; an error if there is none.
pub fn named(name: &str) -> Result<Context, Error> {
    let name = Name::new(name).map_err(|source| Error::Name { name: name.to_owned(), source })?;
    Folder::of_user()?.read(&name)
}

/// The context that `baton context select` chose, if one is.
pub fn selected() -> Result<Option<Context>, Error> {
    let Ok(folder) = Folder::of_user() else { return Ok(None) };
    folder.selected()?.map(|name| folder.read(&name)).transpose()
}
