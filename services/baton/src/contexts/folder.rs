//! Where the contexts lie, and which one is selected.

use std::{
    env,
    fs::{self, DirBuilder, OpenOptions},
    io::{ErrorKind, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::PathBuf,
};

use anyhow::{Context as _, bail};
use baton_contract::{Name, causes};

use super::Context;

/// `contexts/NAME.toml`, and the selected one's name in `context`.
pub struct Folder {
    path: PathBuf,
}

impl Folder {
    /// Baton's part of the user's configuration.
    pub fn of_user() -> anyhow::Result<Self> {
        let variable = |name| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let configuration = variable("XDG_CONFIG_HOME").or_else(|| variable("HOME").map(|home| home.join(".config")));
        let path = configuration.context("there is no home directory; set XDG_CONFIG_HOME to an absolute path")?;
        Ok(Self { path: path.join("baton") })
    }

    fn file(&self, name: &Name) -> PathBuf {
        self.path.join("contexts").join(format!("{name}.toml"))
    }

    fn selection(&self) -> PathBuf {
        self.path.join("context")
    }

    /// The contexts there are, by name.
    pub fn names(&self) -> anyhow::Result<Vec<Name>> {
        let path = self.path.join("contexts");
        let entries = match fs::read_dir(&path) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error).with_context(|| format!("cannot list {}", path.display())),
        };
        let name = |file: &str| Name::new(file.strip_suffix(".toml")?).ok();
        let mut names: Vec<Name> = entries.flatten().filter_map(|entry| name(entry.file_name().to_str()?)).collect();
        names.sort();
        Ok(names)
    }

    /// A context; an error if there is none of this name.
    pub fn read(&self, name: &Name) -> anyhow::Result<Context> {
        let path = self.file(name);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                bail!("there is no context {name}; `baton context ls` lists those there are, `add` makes one")
            }
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
        };
        toml::from_str(&text).with_context(|| format!("{} is no context", path.display()))
    }

    /// Writes a context down; another of its name only goes if it is to be replaced.
    pub fn write(&self, name: &Name, context: &Context, replace: bool) -> anyhow::Result<()> {
        let path = self.file(name);
        if !replace && path.exists() {
            bail!("there is a context {name} already; --replace replaces it");
        }
        self.put(&path, &toml::to_string(context).context("cannot write the context as TOML")?)
    }

    /// Removes a context, and the selection if it was the selected one.
    pub fn remove(&self, name: &Name) -> anyhow::Result<()> {
        self.read(name)?;
        if self.selected()?.as_ref() == Some(name) {
            self.select(None)?;
        }
        let path = self.file(name);
        fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))
    }

    /// The selected context's name.
    pub fn selected(&self) -> anyhow::Result<Option<Name>> {
        let path = self.selection();
        match fs::read_to_string(&path) {
            Ok(text) => {
                Ok(Some(Name::new(text.trim()).with_context(|| format!("{} does not name a context", path.display()))?))
            }
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
    }

    /// Selects a context, or none.
    pub fn select(&self, name: Option<&Name>) -> anyhow::Result<()> {
        let path = self.selection();
        match name {
            Some(name) => self.put(&path, &format!("{name}\n")),
            None => match fs::remove_file(&path) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    Err(error).with_context(|| format!("cannot remove {}", path.display()))
                }
                _ => Ok(()),
            },
        }
    }

    /// Puts a file in its place at once, for its owner's eyes only: URLs may hold passwords.
    fn put(&self, path: &std::path::Path, text: &str) -> anyhow::Result<()> {
        let failed = || format!("cannot write {}", path.display());
        DirBuilder::new().recursive(true).mode(0o700).create(self.path.join("contexts")).with_context(failed)?;
        let new = path.with_extension(format!("new-{}", std::process::id()));
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new);
        let file = file.as_mut().map_err(|error| anyhow::anyhow!(causes(error))).with_context(failed)?;
        file.write_all(text.as_bytes()).with_context(failed)?;
        fs::rename(&new, path).with_context(failed)
    }
}
