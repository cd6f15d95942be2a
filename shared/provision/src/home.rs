//! Baton's own folder, and where an embedded pipeline's parts lie in it.

use std::{
    env,
    ffi::OsString,
    fs::{self, File},
    path::PathBuf,
};

use baton_contract::Name;
use serde::{Deserialize, Serialize};

use crate::{Error, private};

/// Baton's own folder, an absolute path: `$BATON_HOME`, or `baton` in the user's data directory.
pub fn home() -> Result<PathBuf, Error> {
    home_of(|name| env::var_os(name))
}

fn home_of(variable: impl Fn(&str) -> Option<OsString>) -> Result<PathBuf, Error> {
    let path = |name| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(path) = path("BATON_HOME") {
        // Other processes, in other directories, are told it.
        return std::path::absolute(&path).map_err(|source| Error::UnknownHome { path, source });
    }
    let absolute = |name| path(name).filter(|path| path.is_absolute());
    absolute("XDG_DATA_HOME")
        .map(|data| data.join("baton"))
        .or_else(|| absolute("HOME").map(|home| home.join(".local/share/baton")))
        .ok_or(Error::NoHome)
}

/// Where the embedded parts of the pipeline under one root live, inside Baton's own folder.
#[derive(Clone)]
pub struct PipelineHome {
    /// The folder itself; made by [`PipelineHome::lock`].
    pub directory: PathBuf,
}

/// What a running embedded pipeline tells other processes on this machine.
#[derive(Serialize, Deserialize)]
pub struct Running {
    /// Where its broker listens.
    pub nats_url: String,
    /// Where its gateway is found, once that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway_url: Option<String>,
}

impl PipelineHome {
    /// The folder of the pipeline under `root`.
    pub fn new(root: &Name) -> Result<Self, Error> {
        Ok(Self { directory: home()?.join("pipelines").join(root.as_str()) })
    }

    /// The URL of the embedded store.
    pub fn store_url(&self) -> String {
        format!("file://{}", self.directory.join("store").display())
    }

    /// Where it lies what holds for the running pipeline's processes on this machine; the broker has the rest.
    pub fn plan_file(&self) -> PathBuf {
        self.directory.join("plan.toml")
    }

    fn running_file(&self) -> PathBuf {
        self.directory.join("running.json")
    }

    /// Takes the directory for this process until the returned file is dropped.
    pub fn lock(&self) -> Result<File, Error> {
        private::create(&self.directory)?;
        let path = self.directory.join("lock");
        let file = File::create(&path).map_err(Error::of("create", &path))?;
        if file.try_lock().is_err() {
            return Err(Error::InUse { directory: self.directory.clone() });
        }
        Ok(file)
    }

    /// Lets other processes on this machine find the pipeline.
    pub fn announce(&self, running: &Running) -> Result<(), Error> {
        let place = self.running_file();
        let text = serde_json::to_vec(running).map_err(|source| Error::Unreadable { path: place.clone(), source })?;
        // At once: others may be reading it.
        let written = self.directory.join("running.json.new");
        private::write(&written, &text)?;
        fs::rename(&written, &place).map_err(Error::of("write", &place))
    }

    /// Takes the announcement back.
    pub fn withdraw(&self) {
        // It may be gone already; a stale one only leads to a failed connection.
        let _ = fs::remove_file(self.running_file());
    }

    /// The pipeline that runs here; an error if none does.
    pub fn running(&self) -> Result<Running, Error> {
        let path = self.running_file();
        let text = fs::read(&path).map_err(|_| Error::NotRunning { directory: self.directory.clone() })?;
        serde_json::from_slice(&text).map_err(|source| Error::Unreadable { path, source })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn the_home_is_absolute_and_its_lack_names_the_variable_that_gives_one() {
        let home = |variables: &[(&str, &str)]| {
            home_of(|name| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| value.into()))
        };
        let here = env::current_dir().unwrap();
        assert_eq!(home(&[("BATON_HOME", "with a space"), ("HOME", "/h")]).unwrap(), here.join("with a space"));
        assert_eq!(home(&[("XDG_DATA_HOME", "relative"), ("HOME", "/h")]).unwrap(), Path::new("/h/.local/share/baton"));
        assert_eq!(home(&[("XDG_DATA_HOME", "/d"), ("HOME", "/h")]).unwrap(), Path::new("/d/baton"));
        for none in [&[][..], &[("HOME", "")], &[("HOME", "relative")]] {
            assert!(home(none).unwrap_err().to_string().contains("BATON_HOME"));
        }
    }
}
