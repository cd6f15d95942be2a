//! The processes of a run: workers, the broker, commands. All end with the value that stands for them.

use std::{
    ffi::OsString,
    fs::OpenOptions,
    path::{Path, PathBuf},
    process::{Output, Stdio},
    time::Duration,
};

use baton_contract::causes;
use nix::{
    sys::signal::{self, Signal},
    unistd::Pid,
};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    time::{Instant, sleep, timeout},
};

use super::{Error, clock, kind::Role};

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

    /// The same with more settings.
    pub fn with(&self, settings: impl IntoIterator<Item = String>) -> Self {
        let mut more = self.clone();
        more.settings.extend(settings);
        more
    }

    /// The words to put before a command so that it ends when this process does, however that happens.
    pub fn launcher(&self) -> Vec<OsString> {
        vec![self.baton.clone().into(), "guard".into(), std::process::id().to_string().into()]
    }

    pub fn command(&self, words: impl IntoIterator<Item = OsString>) -> Command {
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
        successful(arguments, self.to_its_end(arguments, Some(broker)).await?)
    }

    /// The same, also if it fails.
    pub async fn attempt(&self, arguments: &[&str], broker: &str) -> Result<Output, Error> {
        self.to_its_end(arguments, Some(broker)).await
    }

    /// The same without a pipeline.
    pub async fn bare(&self, arguments: &[&str]) -> Result<Output, Error> {
        successful(arguments, self.to_its_end(arguments, None).await?)
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
        output.map_err(|error| failed(causes(&error)))
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

    /// Lines of the workers' logs that tell of a panic. That of async-nats at a header that is none ends a connection which the
    /// bus then makes again (`connection`), and nothing else.
    pub fn panics(&self) -> Vec<String> {
        let Ok(logs) = std::fs::read_dir(&self.logs) else { return Vec::new() };
        let at_header = |line: &str| line.contains("/async-nats-") && line.contains("/src/header.rs:");
        let panicked = |line: &&str| line.contains("panicked at") && !at_header(line);
        let texts = logs.flatten().filter_map(|entry| std::fs::read(entry.path()).ok());
        let lines = texts.flat_map(|text| {
            let text = String::from_utf8_lossy(&text);
            text.lines().filter(panicked).map(str::to_owned).collect::<Vec<_>>()
        });
        lines.collect()
    }
}

fn successful(arguments: &[&str], output: Output) -> Result<Output, Error> {
    if output.status.success() {
        return Ok(output);
    }
    let said = [output.stdout, output.stderr].concat();
    let problem = format!("{}: {}", output.status, String::from_utf8_lossy(&said).trim());
    Err(Error::Command { command: arguments.join(" "), problem })
}

pub fn send(child: &Child, signal: Signal) {
    // One that has ended gets none, and whoever looks after it finds out.
    if let Some(id) = child.id() {
        let _ = signal::kill(Pid::from_raw(id as i32), signal);
    }
}

/// Ends a process at once.
pub async fn end(child: &mut Child) {
    let process = child.id();
    // Fails only for one that has ended.
    let _ = child.kill().await;
    process.into_iter().for_each(clock::tidy);
}

/// A worker's or gateway's place: whoever has it now, it has the same name.
#[derive(Debug)]
pub struct Worker {
    program: Program,
    /// The command of `baton` that it runs.
    words: Vec<String>,
    pub name: String,
    /// Where it finds the broker.
    broker: String,
    /// How far its clock is off, by which library.
    clock: Option<(String, &'static str)>,
    child: Option<Child>,
    /// How often it ended by itself once it had been ready.
    pub crashes: u64,
}

impl Worker {
    /// The one of a number, from 0. A gateway listens on `port`.
    pub fn new(program: Program, role: Role, number: usize, broker: String, port: u16) -> Self {
        let (name, words) = match role {
            Role::Stage(stage) => (format!("{stage}-{}", number + 1), vec!["worker".to_owned(), stage.to_string()]),
            Role::Gateway => {
                let listen = format!("127.0.0.1:{port}");
                (format!("gateway-{}", number + 1), vec!["gateway".to_owned(), "--listen".to_owned(), listen])
            }
        };
        Self { program, words, name, broker, clock: None, child: None, crashes: 0 }
    }

    /// From its next start on its clock is off by so much, or right.
    pub fn set_clock(&mut self, clock: Option<(String, &'static str)>) {
        self.clock = clock;
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
        let words = self.words.iter().map(String::as_str).chain(["--name", &self.name]).map(OsString::from);
        let baton = OsString::from(self.program.baton.clone());
        let mut command = self.program.command(self.program.launcher().into_iter().chain([baton]).chain(words));
        self.program.set(&mut command, &self.broker);
        if let Some((library, by)) = &self.clock {
            command.envs(clock::environment(library, by));
        }
        let mut child = command.stdout(Stdio::piped()).stderr(log).spawn()?;
        let mut lines = BufReader::new(child.stdout.take().ok_or_else(|| std::io::Error::other("no output"))?).lines();
        match lines.next_line().await? {
            Some(line) if line == "ready" || line.starts_with("ready ") => Ok(child),
            other => {
                child.kill().await?;
                Err(std::io::Error::other(format!("expected the line \"ready\", found {other:?}")))
            }
        }
    }

    /// Ends it at once.
    pub async fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            end(&mut child).await;
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
