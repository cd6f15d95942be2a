//! Pipelines of this machine: the one that runs, and one that is started for a measurement.

use std::{
    env, io,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use baton_bus::Bus;
use baton_contract::{JobId, Name, causes, outcome::Status, request::Prompt, request::Request, subject::Layout};
use nix::{
    sys::signal::{self, Signal},
    unistd::Pid,
};
use serde::{Deserialize, Serialize};
use tokio::{
    process::{Child, Command},
    time::{Instant, sleep, timeout},
};

const START_WITHIN: Duration = Duration::from_secs(180);
const STOP_WITHIN: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// The pipeline's settings must come from its file alone.
const SETTINGS: &str = "BATON__";

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "no embedded pipeline runs under root {root} (there is no {}); start one with `baton up`, or name a broker by its \
         URL", path.display()
    )]
    NotRunning { root: Name, path: PathBuf },
    #[error("cannot read {}: {message}", path.display())]
    Announcement { path: PathBuf, message: String },
    #[error("cannot run {}; build baton first, or say where it is with --baton", program.display())]
    Start { program: PathBuf, source: std::io::Error },
    #[error("the pipeline {} did not come up: {problem}; try `baton up {}`", file.display(), file.display())]
    NotUp { file: PathBuf, problem: String },
    #[error(transparent)]
    Bus(#[from] baton_bus::Error),
}

/// What `baton up` and `baton demo` tell other processes of this machine.
#[derive(Deserialize)]
struct Running {
    nats_url: String,
}

/// The folder of the embedded pipeline under a root, inside Baton's own.
fn home(root: &Name) -> PathBuf {
    let variable = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let home = variable("BATON_HOME")
        .or_else(|| variable("XDG_DATA_HOME").filter(|path| path.is_absolute()).map(|data| data.join("baton")))
        .or_else(|| variable("HOME").map(|home| home.join(".local/share/baton")))
        .unwrap_or_else(|| PathBuf::from(".baton"));
    home.join("pipelines").join(root.as_str())
}

/// The broker of the embedded pipeline that runs under a root.
pub fn running_url(root: &Name) -> Result<String, Error> {
    let path = home(root).join("running.json");
    let text = std::fs::read(&path).map_err(|_| Error::NotRunning { root: root.clone(), path: path.clone() })?;
    let unread = |error: serde_json::Error| Error::Announcement { path: path.clone(), message: causes(&error) };
    Ok(serde_json::from_slice::<Running>(&text).map_err(unread)?.nats_url)
}

/// Connects to a pipeline's broker, or without a URL to that of this machine's embedded pipeline.
pub async fn connect(url: Option<String>, root: &Name, credentials: Option<PathBuf>) -> Result<Bus, Error> {
    let url = match url {
        Some(url) => url,
        None => running_url(root)?,
    };
    let layout = Layout::new(root.clone());
    Ok(Bus::connect(baton_bus::Options { url, credentials, name: "baton-loadtest".into(), layout }).await?)
}

/// A pipeline that is started with one split of its workers after another.
#[derive(clap::Args, Clone, Debug, Serialize)]
pub struct Workers {
    /// A pipeline file; without it six workers of the sim engine
    #[arg(value_name = "PIPELINE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pipeline: Option<PathBuf>,
    /// The program `baton`; without it the one beside this program
    #[arg(long, value_name = "PATH")]
    #[serde(skip)]
    pub baton: Option<PathBuf>,
    /// Set any key of the pipeline; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Prefill and decode workers together
    #[arg(long = "workers", value_name = "N", default_value_t = 6, value_parser = clap::value_parser!(u32).range(2..=64))]
    #[serde(rename = "workers")]
    pub count: u32,
}

impl Workers {
    /// The pipeline's file; without one `default` is written into the directory.
    pub(crate) fn file(&self, directory: &Path, default: &str) -> io::Result<PathBuf> {
        let own = directory.join("pipeline.toml");
        match &self.pipeline {
            Some(file) => Ok(file.clone()),
            None => std::fs::write(&own, default).map(|()| own),
        }
    }

    /// The program.
    pub(crate) fn baton(&self) -> PathBuf {
        self.baton.clone().unwrap_or_else(baton_beside_this_program)
    }

    /// Starts the pipeline with so many prefill workers, the others for decode, whose roles a planner may change if it is
    /// `planned`.
    pub(crate) async fn start(&self, file: &Path, root: Name, prefill: u32, planned: bool) -> Result<Started, Error> {
        let own = [
            format!("stages.prefill.replicas={prefill}"),
            format!("stages.decode.replicas={}", self.count - prefill),
            format!("planner.enabled={planned}"),
            format!("planner.roles={}", if planned { "flexible" } else { "fixed" }),
        ];
        let settings: Vec<String> = self.set.iter().cloned().chain(own).collect();
        Started::start(&self.baton(), file, root, &settings).await
    }
}

/// `baton` in the directory of the running program, where cargo puts both.
pub(crate) fn baton_beside_this_program() -> PathBuf {
    env::current_exe().map_or_else(|_| "baton".into(), |path| path.with_file_name("baton"))
}

/// A pipeline that was started from a file; it ends with this value, and with this process.
pub struct Started {
    child: Child,
    root: Name,
    pub bus: Bus,
}

impl Started {
    /// Starts `baton up FILE` with `settings`, under a root of its own, and waits until it has answered a request.
    pub async fn start(baton: &Path, file: &Path, root: Name, settings: &[String]) -> Result<Self, Error> {
        let program = || baton.to_owned();
        // One that was killed here may have left its announcement.
        let announcement = home(&root).join("running.json");
        let _ = std::fs::remove_file(&announcement);
        let mut command = Command::new(baton);
        command.arg("guard").arg(std::process::id().to_string()).arg(baton).arg("up").arg(file);
        for setting in settings.iter().cloned().chain([
            format!("root={root}"),
            "telemetry.log=warn".into(),
            "gateway.listen=127.0.0.1:0".into(),
        ]) {
            command.arg("--set").arg(setting);
        }
        for (key, _) in env::vars_os().filter(|(key, _)| key.to_str().is_some_and(|key| key.starts_with(SETTINGS))) {
            command.env_remove(key);
        }
        // What it says would stand in the middle of a progress bar.
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
        let mut child = command.spawn().map_err(|source| Error::Start { program: program(), source })?;
        let not_up = |problem: String| Error::NotUp { file: file.to_owned(), problem };
        let deadline = Instant::now() + START_WITHIN;
        while !announcement.exists() {
            if let Ok(Some(status)) = child.try_wait() {
                return Err(not_up(format!("it ended with {status}")));
            }
            if Instant::now() > deadline {
                return Err(not_up(format!("it said nothing within {START_WITHIN:?}")));
            }
            sleep(LOOK_EVERY).await;
        }
        let bus = connect(None, &root, None).await?;
        match timeout(START_WITHIN, answers(&bus)).await {
            Ok(Ok(Status::Completed)) => Ok(Self { child, root, bus }),
            Ok(Ok(status)) => Err(not_up(format!("its first request {status:?}"))),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(not_up(format!("it answered nothing within {START_WITHIN:?}"))),
        }
    }

    /// Drains and stops it, and removes what it stored.
    pub async fn stop(mut self) {
        if let Some(id) = self.child.id() {
            // Fails only for one that has ended.
            let _ = signal::kill(Pid::from_raw(id as i32), Signal::SIGTERM);
        }
        if timeout(STOP_WITHIN, self.child.wait()).await.is_err() {
            let _ = self.child.kill().await;
        }
        // The root is this run's own.
        let _ = std::fs::remove_dir_all(home(&self.root));
    }
}

/// Asks one short question, for the workers of all stages to have been there.
async fn answers(bus: &Bus) -> Result<Status, Error> {
    let failed = |message: String| baton_bus::Error::Read { what: "the first answer".into(), message };
    let name = |text: &str| Name::new(text).map_err(|error| failed(causes(&error)));
    let (tenant, lane) = (name("loadtest")?, name("interactive")?);
    let id = JobId::new(&uuid::Uuid::now_v7().to_string()).map_err(|error| failed(causes(&error)))?;
    let mut follower = bus.follow(&tenant).await?;
    let request = Request {
        id: Some(id.to_string()),
        prompt: Some(Prompt::Tokens(vec![40; 8])),
        max_tokens: Some(4),
        ..Request::default()
    };
    let body = serde_json::to_vec(&request).map_err(|error| failed(causes(&error)))?;
    bus.submit(&tenant, &lane, body).await?;
    Ok(follower.result(&id).await?.status)
}
