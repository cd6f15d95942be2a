//! A `nats-server` of one's own, as a child process: JetStream on, any free port, this machine only.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use tokio::{
    process::{Child, Command},
    time::{Instant, sleep, timeout},
};

/// What the child runs with; paths and ports come with its command line.
const CONFIGURATION: &str = include_str!("../../../infra/nats/embedded.conf");

/// The configuration's line about flushes, and what it is where none may be lost.
const SYNC_INTERVAL: &str = "sync_interval: \"10s\"";
const SYNC_ALWAYS: &str = "sync_interval: always";

const START_WITHIN: Duration = Duration::from_secs(15);
const STOP_WITHIN: Duration = Duration::from_secs(10);

/// How a server is started.
#[derive(Clone, Debug)]
pub struct Options {
    /// The `nats-server` binary, 2.11 or later.
    pub binary: PathBuf,
    /// Where streams, log and ports file live; created if missing. One server per directory.
    pub directory: PathBuf,
    /// A command that runs the rest of its command line in its own place (by `exec`), for example one that ties the child
    /// to its parent's life; empty for none.
    pub launcher: Vec<OsString>,
    /// Flushes each message to the disk itself before it is acknowledged, so that not even a machine that loses power loses
    /// one; without it messages survive the death of any process, and are flushed every ten seconds.
    pub sync_always: bool,
}

/// Why the server does not run.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say what the variants mean")]
pub enum Error {
    #[error("cannot prepare {path} for nats-server")]
    Directory { path: PathBuf, source: std::io::Error },
    #[error("cannot start {binary}; run `baton setup`, or put nats-server on the PATH")]
    Spawn { binary: PathBuf, source: std::io::Error },
    #[error("nats-server ended while starting ({status}); its log is {log}:\n{tail}")]
    Ended { status: String, log: PathBuf, tail: String },
    #[error("nats-server was not ready within {START_WITHIN:?}; its log is {log}")]
    NotReady { log: PathBuf },
    #[error("cannot signal nats-server")]
    Signal(#[source] std::io::Error),
}

/// A running server; killed if it is dropped without [`Server::stop`].
#[derive(Debug)]
pub struct Server {
    child: Child,
    url: String,
}

impl Server {
    /// Starts the server and waits until it has told its port.
    pub async fn start(options: Options) -> Result<Self, Error> {
        let directory = &options.directory;
        let unusable = |source| Error::Directory { path: directory.clone(), source };
        // Requests and results lie in it.
        let mut private = std::fs::DirBuilder::new();
        #[cfg(unix)]
        std::os::unix::fs::DirBuilderExt::mode(&mut private, 0o700);
        private.recursive(true).create(directory).map_err(unusable)?;
        let ports = directory.join("ports");
        // Files of earlier runs would be mistaken for this one's.
        let _ = std::fs::remove_dir_all(&ports);
        std::fs::create_dir_all(&ports).map_err(unusable)?;
        let configuration = directory.join("nats.conf");
        std::fs::write(&configuration, configuration_text(options.sync_always)).map_err(unusable)?;
        let log = directory.join("nats.log");

        let mut words = options.launcher.clone();
        words.push(options.binary.clone().into());
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).arg("-c").arg(&configuration).arg("-sd").arg(directory.join("streams"));
        command.arg("--ports_file_dir").arg(&ports).arg("-l").arg(&log);
        // A group of its own, so that Ctrl-C in a terminal reaches the parent, which stops the server last.
        command.process_group(0).kill_on_drop(true);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().map_err(|source| Error::Spawn { binary: options.binary.clone(), source })?;

        let deadline = Instant::now() + START_WITHIN;
        loop {
            if let Some(url) = read_url(&ports) {
                return Ok(Self { child, url });
            }
            if let Ok(Some(status)) = child.try_wait() {
                return Err(Error::Ended { status: status.to_string(), tail: tail(&log), log });
            }
            if Instant::now() > deadline {
                return Err(Error::NotReady { log });
            }
            sleep(Duration::from_millis(10)).await;
        }
    }

    /// The URL to connect to.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Its process id, as long as it has not ended.
    pub fn process(&self) -> Option<u32> {
        self.child.id()
    }

    /// Ends the server at once, as a crash would. What it has acknowledged is in its directory.
    pub async fn kill(mut self) -> Result<(), Error> {
        self.child.kill().await.map_err(Error::Signal)
    }

    /// Asks the server to end, waits until it has, and kills it if it takes too long.
    pub async fn stop(mut self) -> Result<(), Error> {
        if let Some(id) = self.child.id() {
            let pid = nix::unistd::Pid::from_raw(id as i32);
            nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM)
                .map_err(|error| Error::Signal(error.into()))?;
        }
        if timeout(STOP_WITHIN, self.child.wait()).await.is_err() {
            self.child.kill().await.map_err(Error::Signal)?;
        }
        Ok(())
    }
}

fn configuration_text(sync_always: bool) -> String {
    if sync_always { CONFIGURATION.replace(SYNC_INTERVAL, SYNC_ALWAYS) } else { CONFIGURATION.to_owned() }
}

/// The client URL from the ports file, once the server has written it whole.
fn read_url(directory: &Path) -> Option<String> {
    let entry = std::fs::read_dir(directory)
        .ok()?
        .flatten()
        .find(|entry| entry.path().extension().is_some_and(|extension| extension == "ports"))?;
    let text = std::fs::read_to_string(entry.path()).ok()?;
    let ports: serde_json::Value = serde_json::from_str(&text).ok()?;
    Some(ports.get("nats")?.get(0)?.as_str()?.to_owned())
}

fn tail(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(5)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flushing_always_changes_one_line_of_the_configuration() {
        let (usual, always) = (configuration_text(false), configuration_text(true));
        let changed: Vec<_> = usual.lines().zip(always.lines()).filter(|(usual, always)| usual != always).collect();
        assert_eq!(usual.lines().count(), always.lines().count());
        assert_eq!(changed, [("  sync_interval: \"10s\"", "  sync_interval: always")]);
    }
}
