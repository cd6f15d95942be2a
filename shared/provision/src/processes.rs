//! Keeps the processes of a pipeline running, each a child of this one, and collects their log lines.

use std::{
    ffi::OsString,
    fs::File,
    hash::{BuildHasher, RandomState},
    io::Write,
    path::PathBuf,
    process::Stdio,
    sync::{Arc, Mutex},
    time::Duration,
};

use baton_contract::{backoff::Backoff, causes};
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, BufReader},
    process::{Child, Command},
    sync::{mpsc, watch},
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{
    Error,
    home::{PipelineHome, Running},
};

/// The pauses of a worker that fails again and again.
const PAUSES: Backoff = Backoff::doubling(Duration::from_millis(500), LONGEST_PAUSE);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// How long the last lines of a process that has ended may take.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// Bytes of a process's last error that are repeated.
const LONGEST_ERROR: usize = 4096;

/// Where the workers' log lines go.
pub enum Logs {
    /// To this process's standard error.
    Stderr,
    /// Into this file.
    File(PathBuf),
}

/// How other processes on this machine hear of the pipeline.
#[derive(Clone)]
pub struct Announcement {
    /// Where it is written down.
    pub home: PipelineHome,
    /// Where the pipeline's broker listens.
    pub nats_url: String,
}

impl Announcement {
    /// Writes it down, with the gateway's URL once that is known.
    pub fn make(&self, gateway_url: Option<&str>) -> Result<(), Error> {
        self.home.announce(&Running { nats_url: self.nats_url.clone(), gateway_url: gateway_url.map(str::to_owned) })
    }
}

/// What becomes of the start of a process, which is named.
pub enum Start {
    /// It serves.
    Ready(String),
    /// It ended by itself, with an error: trying again would not help.
    Failed(String, String),
}

/// Keeps one worker, or the gateway, running.
pub struct Keeper {
    /// The program and its arguments.
    pub command: Vec<OsString>,
    /// Names the process in log lines and in [`Start`].
    pub name: String,
    /// Which variables of the environment the process does not get.
    pub said_by_file: fn(&str) -> bool,
    /// How long the process may take to end after SIGTERM, before it is killed.
    pub stop_within: Duration,
    /// Where its log lines go.
    pub sink: Arc<Sink>,
    /// Gets what becomes of each start.
    pub starts: mpsc::Sender<Start>,
    /// Gets a gateway's URL, and how other processes hear of it.
    pub found: Option<(watch::Sender<Option<String>>, Announcement)>,
    /// Ends the process.
    pub stopping: CancellationToken,
}

impl Keeper {
    /// Runs the process, and starts it again whenever it ends, until it is stopped.
    pub async fn run(self) {
        let mut pauses = PAUSES.pauses(RandomState::new().hash_one(&self.name));
        while !self.stopping.is_cancelled() {
            let started = Instant::now();
            if let Err(error) = self.run_once().await {
                tracing::warn!(worker = self.name, error = %causes(&error), "a worker ended and is started again");
            }
            if started.elapsed() > LONGEST_PAUSE {
                pauses.reset();
            }
            tokio::select! {
                () = self.stopping.cancelled() => return,
                () = sleep(pauses.pause()) => {}
            }
        }
    }

    /// Runs the worker until it ends; fails if it did not end by request.
    async fn run_once(&self) -> Result<(), Error> {
        let mut command = Command::new(&self.command[0]);
        command.args(&self.command[1..]).process_group(0).kill_on_drop(true);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // The plan file says everything; the variables have gone into it.
        for (key, _) in std::env::vars_os() {
            if key.to_str().is_some_and(self.said_by_file) {
                command.env_remove(key);
            }
        }
        let mut child = command.spawn().map_err(Error::Start)?;
        let lines = tokio::spawn(self.sink.clone().copy(self.name.clone(), child.stderr.take()));
        let (starts, stdout, found) = (self.starts.clone(), child.stdout.take(), self.found.clone());
        let name = self.name.clone();
        tokio::spawn(async move {
            let Some(stdout) = stdout else { return };
            let mut words = BufReader::new(stdout).lines();
            while let Ok(Some(word)) = words.next_line().await {
                let Some(url) = word.strip_prefix("ready") else { continue };
                if let Some((found, announcement)) = &found {
                    let url = url.trim();
                    if let Err(error) = announcement.make(Some(url)) {
                        tracing::warn!(error = %causes(&error), "other commands don't find the gateway");
                    }
                    found.send_replace(Some(url.to_owned()));
                }
                // Nobody may be waiting any more.
                let _ = starts.try_send(Start::Ready(name.clone()));
            }
        });
        let status = tokio::select! {
            status = child.wait() => status?,
            () = self.stopping.cancelled() => return self.stop(child, lines).await,
        };
        if status.code().is_some_and(|code| code != 0) {
            // A descendant that keeps the pipe open must not keep us.
            let said = timeout(LAST_WORDS, lines).await.ok().and_then(Result::ok).flatten();
            let said = said.unwrap_or_else(|| status.to_string());
            // Nobody may be waiting any more.
            let _ = self.starts.try_send(Start::Failed(self.name.clone(), said));
        }
        Err(Error::Ended(status))
    }

    async fn stop(&self, mut child: Child, lines: JoinHandle<Option<String>>) -> Result<(), Error> {
        if let Some(id) = child.id() {
            let pid = nix::unistd::Pid::from_raw(id as i32);
            nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).map_err(Error::Signal)?;
        }
        if timeout(self.stop_within, child.wait()).await.is_err() {
            child.kill().await.map_err(Error::Kill)?;
        }
        let _ = lines.await;
        Ok(())
    }
}

/// The one place where all workers' log lines come together.
pub struct Sink(Mutex<Box<dyn Write + Send>>);

impl Sink {
    /// Opens it; creates the file.
    pub fn open(logs: Logs) -> Result<Self, Error> {
        let out: Box<dyn Write + Send> = match logs {
            Logs::Stderr => Box::new(std::io::stderr()),
            Logs::File(path) => Box::new(File::create(&path).map_err(Error::of("create", &path))?),
        };
        Ok(Self(Mutex::new(out)))
    }

    /// Copies a worker's lines, whole, until it ends. Returns the error that it ended with, if it told one.
    async fn copy(self: Arc<Self>, name: String, lines: Option<impl AsyncRead + Unpin>) -> Option<String> {
        let mut lines = BufReader::new(lines?).split(b'\n');
        let mut error: Option<String> = None;
        while let Ok(Some(line)) = lines.next_segment().await {
            let line = String::from_utf8_lossy(&line);
            match (line.strip_prefix("error: "), &mut error) {
                (Some(text), _) => error = Some(text.to_owned()),
                // Some go on for several lines.
                (None, Some(error)) if line.starts_with(' ') && error.len() < LONGEST_ERROR => {
                    error.push('\n');
                    error.push_str(&line);
                }
                _ => {}
            }
            // The worker's own lines name it; others (a panic, the dynamic linker) would be nobody's.
            let line = if line.contains(name.as_str()) { format!("{line}\n") } else { format!("{name}: {line}\n") };
            if let Ok(mut out) = self.0.lock() {
                // A log that can't be written must not stop the pipeline.
                let _ = out.write_all(line.as_bytes());
            }
        }
        error
    }
}
