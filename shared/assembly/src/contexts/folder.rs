//! Where the contexts lie, and which one is selected.

use std::{
    env,
    fs::{self, DirBuilder, OpenOptions},
    io::{ErrorKind, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::PathBuf,
};

use baton_contract::Name;

use super::{context::Context, error::Error};

/// `contexts/NAME.toml`, and the selected one's name in `context`.
pub struct Folder {
    path: PathBuf,
}

impl Folder {
    /// Baton's part of the user's configuration.
    pub fn of_user() -> Result<Self, Error> {
        let variable = |name| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let configuration = variable("XDG_CONFIG_HOME").or_else(|| variable("HOME").map(|home| home.join(".config")));
        let path = configuration.ok_or(Error::NoHome)?;
        Ok(Self { path: path.join("baton") })
    }

    fn file(&self, name: &Name) -> PathBuf {
        self.path.join("contexts").join(format!("{name}.toml"))
    }

    fn selection(&self) -> PathBuf {
        self.path.join("context")
    }

    /// The contexts there are, by name.
    pub fn names(&self) -> Result<Vec<Name>, Error> {
        let path = self.path.join("contexts");
        let entries = match fs::read_dir(&path) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => return Err(Error::File { attempt: "list", path, source }),
        };
        let name = |file: &str| Name::new(file.strip_suffix(".toml")?).ok();
        let mut names: Vec<Name> = entries.flatten().filter_map(|entry| name(entry.file_name().to_str()?)).collect();
        names.sort();
        Ok(names)
    }

    /// A context; an error if there is none of this name.
    pub fn read(&self, name: &Name) -> Result<Context, Error> {
        let path = self.file(name);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Err(Error::Unknown { name: name.clone() });
            }
            Err(source) => return Err(Error::File { attempt: "read", path, source }),
        };
        toml::from_str(&text).map_err(|source| Error::Read { path, source })
    }

    /// Writes a context down; another of its name only goes if it is to be replaced.
    pub fn write(&self, name: &Name, context: &Context, replace: bool) -> Result<(), Error> {
        let path = self.file(name);
        if !replace && path.exists() {
            return Err(Error::Taken { name: name.clone() });
        }
        self.put(&path, &toml::to_string(context)?)
    }

    /// Removes a context, and the selection if it was the selected one.
    pub fn remove(&self, name: &Name) -> Result<(), Error> {
        self.read(name)?;
        if self.selected()?.as_ref() == Some(name) {
            self.select(None)?;
        }
        let path = self.file(name);
        fs::remove_file(&path).map_err(|source| Error::File { attempt: "remove", path, source })
    }

    /// The selected context's name.
    pub fn selected(&self) -> Result<Option<Name>, Error> {
        let path = self.selection();
        match fs::read_to_string(&path) {
            Ok(text) => Name::new(text.trim()).map(Some).map_err(|source| Error::Selection { path, source }),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(source) => Err(Error::File { attempt: "read", path, source }),
        }
    }

    /// Selects a context, or none.
    pub fn select(&self, name: Option<&Name>) -> Result<(), Error> {
        let path = self.selection();
        match name {
            Some(name) => self.put(&path, &format!("{name}\n")),
            None => match fs::remove_file(&path) {
                Err(source) if source.kind() != ErrorKind::NotFound => {
                    Err(Error::File { attempt: "remove", path, source })
                }
                _ => Ok(()),
            },
        }
    }

    /// Puts a file in its place at once, for its owner's eyes only: URLs may hold passwords.
    fn put(&self, path: &std::path::Path, text: &str) -> Result<(), Error> {
        let put = || {
            DirBuilder::new().recursive(true).mode(0o700).create(self.path.join("contexts"))?;
            let new = path.with_extension(format!("new-{}", std::process::id()));
            let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
            file.write_all(text.as_bytes())?;
            fs::rename(&new, path)
        };
        put().map_err(|source| Error::File { attempt: "write", path: path.to_owned(), source })
    }
}
