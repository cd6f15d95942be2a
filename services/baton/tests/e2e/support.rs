//! Brokers, workers and commands for the tests; all end with the value that stands for them.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    process::{ExitStatus, Output, Stdio},
    sync::OnceLock,
    time::Duration,
};

use baton_bus::{Bus, Retention, clients::follower::Follower};
use baton_contract::{JobId, Name, outcome::Outcome, subject::Layout};
use baton_provision::server::{self, Server};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    time::timeout,
};

pub const BATON: &str = env!("CARGO_BIN_EXE_baton");
/// A test that waits longer than this has failed.
pub const PATIENCE: Duration = Duration::from_secs(300);

/// Where `baton setup` has put nats-server and the default model; brought when they are missing, and with them the model
/// that the engine's own tests want besides.
pub fn provisioned() -> &'static (PathBuf, PathBuf) {
    static PATHS: OnceLock<(PathBuf, PathBuf)> = OnceLock::new();
    PATHS.get_or_init(|| {
        let setup = |arguments: &[&str]| -> Value {
            let output = std::process::Command::new(BATON).args(["setup", "--json"]).args(arguments).output().unwrap();
            assert!(output.status.success(), "baton setup: {}", String::from_utf8_lossy(&output.stderr));
            serde_json::from_slice(&output.stdout).unwrap()
        };
        setup(&["--model", "gemma3-270m"]);
        let paths = setup(&[]);
        let path = |key: &str| PathBuf::from(paths[key].as_str().unwrap());
        (path("nats_server"), path("model"))
    })
}

/// The lanes of a pipeline that is not of any file.
pub fn lanes() -> Vec<Name> {
    vec![name("interactive"), name("batch")]
}

pub fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

pub fn job_id(text: &str) -> JobId {
    JobId::new(text).unwrap()
}

/// A broker of its own with an empty local store beside it.
pub struct Ground {
    pub directory: TempDir,
    pub server: Server,
    /// `--set` values that every process of this ground gets.
    settings: Vec<String>,
    environment: Vec<(String, String)>,
}

impl Ground {
    pub async fn new(settings: &[&str]) -> Self {
        Self::started(tempfile::tempdir().unwrap(), Vec::new(), settings).await
    }

    /// A broker that stores no more than `most`, as its configuration says it.
    pub async fn small(most: &str, settings: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let limit = format!("sed -i s/16GB/{most}/ {}/nats/nats.conf && exec \"$@\"", directory.path().display());
        let launcher = ["sh", "-c", &limit, "limit"].map(Into::into).to_vec();
        Self::started(directory, launcher, settings).await
    }

    async fn started(directory: TempDir, launcher: Vec<OsString>, settings: &[&str]) -> Self {
        let options = server::Options {
            binary: provisioned().0.clone(),
            directory: directory.path().join("nats"),
            launcher,
            sync_always: false,
        };
        let server = Server::start(options).await.unwrap();
        let mut ground = Self { server, settings: Vec::new(), environment: Vec::new(), directory };
        ground.settings.push(format!("broker.url={}", ground.server.url()));
        ground.settings.push(format!("store.url=file://{}", ground.store().display()));
        ground.settings.push("telemetry.log=warn".into());
        ground.settings.extend(settings.iter().map(ToString::to_string));
        ground
    }

    /// A sim pipeline: no weights, no time spent unless `settings` say so.
    pub async fn sim(settings: &[&str]) -> Self {
        let mut all = vec!["models.sim.source=sim", "default_model=sim", "models.sim.sim.layers=2"];
        all.extend(settings);
        Self::new(&all).await
    }

    pub fn environment(mut self, variables: impl IntoIterator<Item = (String, String)>) -> Self {
        self.environment.extend(variables);
        self
    }

    pub fn store(&self) -> PathBuf {
        self.directory.path().join("store")
    }

    pub async fn bus(&self) -> Bus {
        let options = baton_bus::Options {
            url: self.server.url().to_owned(),
            credentials: None,
            name: "test".into(),
            layout: Layout::new(name("baton")),
        };
        Bus::connect(options).await.unwrap()
    }

    /// A command with this ground's settings, to be started.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(BATON);
        // Whatever context the tests' user has selected.
        command.args(arguments).env("BATON_CONTEXT", "").envs(self.environment.iter().cloned()).kill_on_drop(true);
        for setting in &self.settings {
            command.arg("--set").arg(setting);
        }
        command
    }

    /// Starts a worker and waits until it takes jobs.
    pub async fn worker(&self, stage: &str, worker: &str) -> Worker {
        self.process(&["worker", stage, "--name", worker]).await
    }

    /// Starts a worker that may be prefill or decode, `role` to begin with.
    pub async fn flexible(&self, role: &str, worker: &str) -> Worker {
        self.process(&["worker", "--roles", "prefill,decode", "--role", role, "--name", worker]).await
    }

    /// Starts a command that serves until it is told to stop, and waits until it says that it is ready.
    pub async fn process(&self, arguments: &[&str]) -> Worker {
        let (worker, told) = serving(self.command(arguments)).await;
        assert_eq!(told, "ready", "{arguments:?}");
        worker
    }

    /// Starts a gateway with `settings` besides the ground's and waits until it takes requests; also returns its URL.
    pub async fn gateway(&self, settings: &[&str]) -> (Worker, String) {
        let mut command = self.command(&["gateway", "--listen", "127.0.0.1:0", "--name", "gateway-1"]);
        for setting in settings {
            command.arg("--set").arg(setting);
        }
        let (gateway, told) = serving(command).await;
        (gateway, told.strip_prefix("ready ").expect("the gateway says where it is").to_owned())
    }

    /// One worker of each stage.
    pub async fn workers(&self) -> [Worker; 3] {
        [
            self.worker("ingest", "ingest-1").await,
            self.worker("prefill", "prefill-1").await,
            self.worker("decode", "decode-1").await,
        ]
    }

    /// Runs a `baton` command that takes a pipeline's options to its end.
    pub async fn baton(&self, arguments: &[&str]) -> Output {
        timeout(PATIENCE, self.command(arguments).stdin(Stdio::null()).output()).await.expect("too slow").unwrap()
    }

    /// Submits requests through the command line, waits, and returns the results by id.
    pub async fn submit_all(&self, requests: &[Value]) -> Vec<Outcome> {
        let file = self.directory.path().join(format!("requests-{}.jsonl", uuid::Uuid::now_v7()));
        std::fs::write(&file, lines(requests)).unwrap();
        let output = self.baton(&["submit", "--wait", "--json", "--jsonl", file.to_str().unwrap()]).await;
        let mut outcomes = outcomes(&output);
        outcomes.sort_by_key(|outcome| requests.iter().position(|request| request["id"] == outcome.id.as_str()));
        assert_eq!(outcomes.len(), requests.len(), "{}", String::from_utf8_lossy(&output.stderr));
        outcomes
    }
}

/// A connection to a ground's broker with all streams of a pipeline.
pub async fn streams(ground: &Ground) -> Bus {
    let bus = ground.bus().await;
    bus.provision(&Retention {
        replicas: 1,
        results: Duration::from_secs(3600),
        backlog: Default::default(),
        lanes: lanes(),
    })
    .await
    .unwrap();
    bus
}

pub fn lines(requests: &[Value]) -> String {
    requests.iter().map(|request| format!("{request}\n")).collect()
}

pub fn outcomes(output: &Output) -> Vec<Outcome> {
    let text = std::str::from_utf8(&output.stdout).unwrap();
    let read = |line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
    let outcomes: Vec<Outcome> = text.lines().map(read).collect();
    assert!(!outcomes.is_empty(), "no results; {}", String::from_utf8_lossy(&output.stderr));
    outcomes
}

/// Starts a command that serves, and waits for its first line, which tells that it does.
pub async fn serving(mut command: Command) -> (Worker, String) {
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let line = timeout(PATIENCE, lines.next_line()).await.expect("it was not ready in time").unwrap();
    (Worker { child }, line.expect("it ended"))
}

/// A worker process; killed when dropped.
pub struct Worker {
    child: Child,
}

impl Worker {
    pub async fn kill(mut self) {
        self.child.kill().await.unwrap();
    }

    pub fn id(&self) -> u32 {
        self.child.id().unwrap()
    }

    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.id() as i32);
        kill(pid, signal).unwrap();
    }

    /// Asks it to drain and waits until it has ended.
    pub async fn drain(mut self) {
        self.signal(Signal::SIGTERM);
        let status = timeout(PATIENCE, self.child.wait()).await.expect("the worker did not drain").unwrap();
        assert!(status.success(), "{status}");
    }

    /// How it ended, waited for.
    pub async fn ended(mut self) -> ExitStatus {
        timeout(PATIENCE, self.child.wait()).await.expect("the process did not end").unwrap()
    }

    /// Whether it still runs.
    pub fn lives(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }
}

/// The result of a job, waited for.
pub async fn result(follower: &mut Follower, job: &JobId) -> Outcome {
    timeout(PATIENCE, follower.result(job)).await.expect("no result in time").unwrap()
}

/// All files below a directory.
pub fn files(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        // Whose store it is, is noted there.
        if path.ends_with("pipelines") {
            continue;
        }
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found.sort();
    found
}

/// The prompts of the reference files as requests, the chats first.
pub fn reference_requests(max_tokens: u32) -> Vec<Value> {
    let mut requests = Vec::new();
    for file in ["smollm2-chat.jsonl", "smollm2-raw.jsonl"] {
        for line in std::fs::read_to_string(reference(file)).unwrap().lines() {
            let case: Value = serde_json::from_str(line).unwrap();
            let mut request = serde_json::json!({ "id": case["id"], "max_tokens": max_tokens });
            for key in ["messages", "prompt"] {
                if let Some(value) = case.get(key) {
                    request[key] = value.clone();
                }
            }
            requests.push(request);
        }
    }
    requests
}

pub fn reference(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/model/tests/reference").join(file)
}

/// The next result of any job.
pub async fn any_result(follower: &mut Follower) -> Outcome {
    timeout(PATIENCE, follower.next_result()).await.expect("no result in time").unwrap()
}
