//! The processes of a run: workers, the broker, commands. All end with the value that stands for them.

use std::{
    ffi::OsString,
    fs::OpenOptions,
    path::{Path, PathBuf},
    process::{Output, Stdio},
    time::Duration,
};

use baton_bus::server::{self, Server};
use baton_contract::{causes, subject::Stage};
use nix::{
    sys::signal::{self, Signal},
    unistd::Pid,
};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    time::{Instant, sleep, timeout},
};

use super::Error;

/// A worker that is started while the broker is away ends at once, and is started again.
const START_AGAIN: Duration = Duration::from_millis(250);
const START_WITHIN: Duration = Duration::from_secs(120);
const DRAIN_WITHIN: Duration = Duration::from_secs(60);
const COMMAND_WITHIN: Duration = Duration::from_secs(300);
/// Marks every process that comes of a run.
const MARK: &str = "BATON_CHAOS_RUN";
/// The pipeline's own settings must come from the run alone.
const SETTINGS: &str = "BATON__";

/// How to start Baton's processes.
#[derive(Clone, Debug)]
pub struct Program {
    baton: PathBuf,
    /// Tells this run's processes from others.
    mark: String,
    /// `--set` values of all processes.
    settings: Vec<String>,
    environment: Vec<(String, String)>,
    logs: PathBuf,
}

impl Program {
    /// Logs go into a directory that exists.
    pub fn new(baton: PathBuf, settings: Vec<String>, environment: Vec<(String, String)>, logs: PathBuf) -> Self {
        Self { baton, mark: uuid::Uuid::now_v7().to_string(), settings, environment, logs }
    }

    /// The words to put before a command so that it ends when this process does, however that happens.
    pub fn launcher(&self) -> Vec<OsString> {
        vec![self.baton.clone().into(), "guard".into(), std::process::id().to_string().into()]
    }

    fn command(&self, words: impl IntoIterator<Item = OsString>) -> Command {
        let mut words = words.into_iter();
        let mut command = Command::new(words.next().unwrap_or_default());
        command.args(words).env(MARK, &self.mark).envs(self.environment.iter().cloned());
        for (key, _) in std::env::vars_os().filter(|(key, _)| key.to_str().is_some_and(|key| key.starts_with(SETTINGS)))
        {
            command.env_remove(key);
        }
        command.kill_on_drop(true).stdin(Stdio::null());
        command
    }

    /// Runs a `baton` command about the pipeline at `broker` to its end.
    pub async fn baton(&self, arguments: &[&str], broker: &str) -> Result<Output, Error> {
        self.to_its_end(arguments, Some(broker)).await
    }

    /// The same without a pipeline.
    pub async fn bare(&self, arguments: &[&str]) -> Result<Output, Error> {
        self.to_its_end(arguments, None).await
    }

    async fn to_its_end(&self, arguments: &[&str], broker: Option<&str>) -> Result<Output, Error> {
        let words = [self.baton.clone().into()].into_iter().chain(arguments.iter().map(OsString::from));
        let mut command = self.command(words);
        if let Some(broker) = broker {
            self.set(&mut command, broker);
        }
        let failed = |problem: String| Error::Command { command: arguments.join(" "), problem };
        let output = timeout(COMMAND_WITHIN, command.output()).await;
        let output = output.map_err(|_| failed(format!("it did not end within {COMMAND_WITHIN:?}")))?;
        let output = output.map_err(|error| failed(causes(&error)))?;
        if output.status.success() {
            Ok(output)
        } else {
            let said = [output.stdout, output.stderr].concat();
            Err(failed(format!("{}: {}", output.status, String::from_utf8_lossy(&said).trim())))
        }
    }

    fn set(&self, command: &mut Command, broker: &str) {
        for setting in self.settings.iter().cloned().chain([format!("broker.url={broker}")]) {
            command.arg("--set").arg(setting);
        }
    }

    /// The command lines of processes that come of this run and have not ended; none where the system does not tell.
    pub fn remaining(&self) -> Vec<String> {
        let mark = format!("{MARK}={}", self.mark);
        let Ok(processes) = std::fs::read_dir("/proc") else { return Vec::new() };
        let command_line = |directory: &Path| {
            let environment = std::fs::read(directory.join("environ")).ok()?;
            environment.split(|byte| *byte == 0).find(|variable| *variable == mark.as_bytes())?;
            let words = std::fs::read(directory.join("cmdline")).ok()?;
            Some(String::from_utf8_lossy(&words).replace('\0', " ").trim().to_owned())
        };
        processes.flatten().filter_map(|entry| command_line(&entry.path())).filter(|words| !words.is_empty()).collect()
    }

    /// Lines of the workers' logs that tell of a panic.
    pub fn panics(&self) -> Vec<String> {
        let Ok(logs) = std::fs::read_dir(&self.logs) else { return Vec::new() };
        let texts = logs.flatten().filter_map(|entry| std::fs::read(entry.path()).ok());
        let lines = texts.flat_map(|text| {
            let text = String::from_utf8_lossy(&text);
            text.lines().filter(|line| line.contains("panicked at")).map(str::to_owned).collect::<Vec<_>>()
        });
        lines.collect()
    }
}

fn send(child: &Child, signal: Signal) {
    // One that has ended gets none, and whoever looks after it finds out.
    if let Some(id) = child.id() {
        let _ = signal::kill(Pid::from_raw(id as i32), signal);
    }
}

/// A worker's place: whoever has it now, it has the same name.
#[derive(Debug)]
pub struct Worker {
    program: Program,
    stage: Stage,
    pub name: String,
    /// Where it finds the broker.
    broker: String,
    child: Option<Child>,
    /// How often it ended by itself once it had been ready.
    pub crashes: u64,
}

impl Worker {
    pub fn new(program: Program, stage: Stage, number: usize, broker: String) -> Self {
        Self { program, stage, name: format!("{stage}-{}", number + 1), broker, child: None, crashes: 0 }
    }

    /// Starts it, as often as it takes, and waits until it takes jobs.
    pub async fn start(&mut self) -> Result<(), Error> {
        let deadline = Instant::now() + START_WITHIN;
        loop {
            let started = timeout(deadline - Instant::now(), self.start_once()).await;
            if let Ok(Ok(child)) = started {
                self.child = Some(child);
                return Ok(());
            }
            if Instant::now() + START_AGAIN >= deadline {
                let problem = match started {
                    Ok(Err(error)) => causes(&error),
                    _ => "it never said that it takes jobs".into(),
                };
                return Err(Error::Worker { name: self.name.clone(), log: self.log(), problem });
            }
            sleep(START_AGAIN).await;
        }
    }

    fn log(&self) -> PathBuf {
        self.program.logs.join(format!("{}.log", self.name))
    }

    async fn start_once(&self) -> std::io::Result<Child> {
        let log = OpenOptions::new().create(true).append(true).open(self.log())?;
        let words = ["worker", self.stage.as_str(), "--name", &self.name].map(OsString::from);
        let baton = OsString::from(self.program.baton.clone());
        let mut command = self.program.command(self.program.launcher().into_iter().chain([baton]).chain(words));
        self.program.set(&mut command, &self.broker);
        let mut child = command.stdout(Stdio::piped()).stderr(log).spawn()?;
        let mut lines = BufReader::new(child.stdout.take().ok_or_else(|| std::io::Error::other("no output"))?).lines();
        match lines.next_line().await? {
            Some(line) if line == "ready" => Ok(child),
            other => {
                child.kill().await?;
                Err(std::io::Error::other(format!("expected the line \"ready\", found {other:?}")))
            }
        }
    }

    /// Ends it at once.
    pub async fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // Fails only for one that has ended.
            let _ = child.kill().await;
        }
    }

    /// Asks it to end, and waits until it has.
    pub async fn drain(&mut self) -> Result<(), Error> {
        let Some(mut child) = self.child.take() else { return Ok(()) };
        send(&child, Signal::SIGTERM);
        match timeout(DRAIN_WITHIN, child.wait()).await {
            Ok(_) => Ok(()),
            Err(_) => Err(Error::Worker {
                name: self.name.clone(),
                log: self.log(),
                problem: format!("it did not end within {DRAIN_WITHIN:?} of SIGTERM"),
            }),
        }
    }

    pub fn stop(&self) {
        self.child.iter().for_each(|child| send(child, Signal::SIGSTOP));
    }

    pub fn resume(&self) {
        self.child.iter().for_each(|child| send(child, Signal::SIGCONT));
    }

    /// Starts it again if it has ended by itself.
    pub async fn revive(&mut self) -> Result<(), Error> {
        let ended = self.child.as_mut().is_none_or(|child| !matches!(child.try_wait(), Ok(None)));
        if ended {
            self.crashes += u64::from(self.child.is_some());
            self.start().await?;
        }
        Ok(())
    }
}

/// The broker's place: its directory stays, and who asks the proxies finds whoever has it now.
#[derive(Debug)]
pub struct Broker {
    options: server::Options,
    server: Option<Server>,
}

impl Broker {
    pub fn new(program: &Program, binary: PathBuf, directory: PathBuf) -> Self {
        let options = server::Options { binary, directory, launcher: program.launcher(), sync_always: false };
        Self { options, server: None }
    }

    /// Starts it; returns its `host:port`.
    pub async fn start(&mut self) -> Result<String, Error> {
        let server = Server::start(self.options.clone()).await?;
        let address = server.url().trim_start_matches("nats://").to_owned();
        self.server = Some(server);
        Ok(address)
    }

    pub async fn stop(&mut self) -> Result<(), Error> {
        if let Some(server) = self.server.take() {
            server.stop().await?;
        }
        Ok(())
    }

    pub async fn kill(&mut self) -> Result<(), Error> {
        if let Some(server) = self.server.take() {
            server.kill().await?;
        }
        Ok(())
    }

    fn send(&self, signal: Signal) {
        if let Some(id) = self.server.as_ref().and_then(Server::process) {
            // As for workers.
            let _ = signal::kill(Pid::from_raw(id as i32), signal);
        }
    }

    pub fn pause(&self) {
        self.send(Signal::SIGSTOP);
    }

    pub fn resume(&self) {
        self.send(Signal::SIGCONT);
    }
}
