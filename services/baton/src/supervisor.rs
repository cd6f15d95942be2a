//! `baton up`: a whole pipeline on this machine, each worker a process of its own, restarted when it fails.

mod commands;

use std::{
    ffi::OsString,
    fs::File,
    io::Write,
    path::PathBuf,
    process::Stdio,
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::Context;
use baton_bus::server::{self, Server};
use baton_topology::{BrokerUrl, Plan, StoreUrl};
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, BufReader},
    process::{Child, Command},
    sync::{mpsc, watch},
    task::{JoinSet, spawn_blocking},
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use self::commands::{own_command, workers};
use crate::{
    context::{self, CONTEXT_VARIABLE, PipelineArguments, PipelineHome, Running},
    guard,
    setup::Setup,
    worker,
};

/// A worker that fails again and again is started again after a pause that grows from the one to the other.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  baton up                              one worker a stage, embedded broker and store
  baton up pipelines/balanced.toml      three prefill and three decode workers
  baton up --set stages.decode.replicas=2 --store s3://kv/baton

Other commands on this machine find the running pipeline by its root: `baton submit 'Hello' --stream`.")]
pub struct Arguments {
    /// Pipeline file (the same as --pipeline)
    #[arg(value_name = "PIPELINE")]
    file: Option<PathBuf>,
    #[command(flatten)]
    pipeline: PipelineArguments,
}

pub async fn run(mut arguments: Arguments) -> anyhow::Result<()> {
    if arguments.file.is_some() {
        arguments.pipeline.pipeline = arguments.file.take();
    }
    let plan = arguments.pipeline.plan()?;
    let telemetry = context::telemetry(&plan, "baton-up", "up", &plan.telemetry.log)?;
    let home = PipelineHome::new(&plan.root);
    let pipeline = Pipeline::start(plan, home, Logs::Stderr).await?;
    tracing::info!(
        nats = pipeline.nats_url(),
        store = pipeline.store_url(),
        "the pipeline runs; Ctrl-C drains and stops it"
    );
    let serves = async {
        match pipeline.gateway_url().await {
            Some(url) => invite(&url),
            None => std::future::pending().await,
        }
        std::future::pending::<anyhow::Result<()>>().await
    };
    tokio::select! {
        stopped = context::asked_to_stop() => stopped?,
        never = serves => never?,
    }
    tracing::info!("draining");
    pipeline.stop().await?;
    telemetry.shutdown().await;
    Ok(())
}

/// Shows what to do with a gateway.
fn invite(url: &str) {
    let request = r#"{"messages": [{"role": "user", "content": "Why is the sea salty?"}], "stream": true}"#;
    eprintln!(
        "OpenAI's API: {url}/v1, for example\n  curl -N {url}/v1/chat/completions -H 'Content-Type: application/json' -d '{request}'"
    );
}

/// Where the workers' log lines go.
pub enum Logs {
    Stderr,
    File(PathBuf),
}

/// A running pipeline: its broker if it is embedded, and its workers.
pub struct Pipeline {
    plan: Plan,
    home: PipelineHome,
    server: Option<Server>,
    keepers: JoinSet<()>,
    stopping: CancellationToken,
    ready: mpsc::Receiver<anyhow::Result<()>>,
    /// The gateway's URL.
    gateway: watch::Receiver<Option<String>>,
    _lock: File,
}

impl Pipeline {
    pub async fn start(plan: Plan, home: PipelineHome, logs: Logs) -> anyhow::Result<Self> {
        Self::start_with(plan, home, logs, false).await
    }

    /// The same; with `sync_always` an embedded broker flushes each message to the disk before it acknowledges it.
    pub async fn start_with(mut plan: Plan, home: PipelineHome, logs: Logs, sync_always: bool) -> anyhow::Result<Self> {
        let lock = home.lock()?;
        let mut server = None;
        if plan.broker.url == BrokerUrl::Embedded {
            let binary = spawn_blocking(|| Setup::from_environment(false).ensure_nats_server()).await??;
            let directory = home.directory.join("nats");
            let options = server::Options { binary, directory, launcher: guard::launcher()?, sync_always };
            let started = Server::start(options).await?;
            plan.broker.url = BrokerUrl::Servers(started.url().to_owned());
            server = Some(started);
        }
        // Before anybody hears of the pipeline, so that submitters need not wait for the first worker.
        context::connect(&plan, "baton-up").await?.provision(&context::retention(&plan)).await?;
        if plan.store.url == StoreUrl::Embedded {
            plan.store.url = StoreUrl::Url(home.store_url());
        }
        // Once here rather than by every worker at the same time.
        for model in plan.models.values().cloned().collect::<Vec<_>>() {
            spawn_blocking(move || context::source(&model)).await??;
        }
        let resolved = home.plan_file();
        std::fs::write(&resolved, plan.to_toml()).with_context(|| format!("cannot write {}", resolved.display()))?;
        let announcement = Announcement { home: home.clone(), nats_url: plan.broker.url.as_str().to_owned() };
        if server.is_some() {
            announcement.make(None)?;
        }

        let stopping = CancellationToken::new();
        let (told, ready) = mpsc::channel(64);
        let sink = Arc::new(Sink::open(logs)?);
        let (found, gateway) = watch::channel(None);
        let mut keepers = JoinSet::new();
        for number in 1..=plan.gateway.replicas {
            let (name, command) = own_command(&["gateway"], &resolved, &format!("gateway-{number}"))?;
            let keeper = Keeper {
                command,
                name,
                sink: sink.clone(),
                told: told.clone(),
                found: Some((found.clone(), announcement.clone())),
                stopping: stopping.clone(),
            };
            keepers.spawn(keeper.run());
        }
        let mut others: Vec<_> = workers(&plan).into_iter().map(|worker| worker.command(&resolved)).collect();
        if plan.planner.enabled {
            others.push(own_command(&["planner"], &resolved, "planner-1"));
        }
        for command in others {
            let (name, command) = command?;
            let keeper = Keeper {
                command,
                name,
                sink: sink.clone(),
                told: told.clone(),
                found: None,
                stopping: stopping.clone(),
            };
            keepers.spawn(keeper.run());
        }
        Ok(Self { plan, home, server, keepers, stopping, ready, gateway, _lock: lock })
    }

    /// The plan with every URL known.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    pub fn nats_url(&self) -> &str {
        self.plan.broker.url.as_str()
    }

    pub fn store_url(&self) -> &str {
        self.plan.store.url.as_str()
    }

    /// Where the gateway is found, once it takes requests; none if the pipeline has none.
    pub async fn gateway_url(&self) -> Option<String> {
        if self.plan.gateway.replicas == 0 {
            return None;
        }
        let mut gateway = self.gateway.clone();
        let url = gateway.wait_for(Option::is_some).await.ok()?;
        url.clone()
    }

    /// Waits until every worker has said that it takes jobs; fails as soon as one ends instead.
    pub async fn ready(&mut self) -> anyhow::Result<()> {
        for _ in 0..self.keepers.len() {
            self.ready.recv().await.context("no worker is left")??;
        }
        Ok(())
    }

    /// Drains the workers, then stops the broker.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        self.stopping.cancel();
        while self.keepers.join_next().await.is_some() {}
        self.home.withdraw();
        if let Some(server) = self.server.take() {
            server.stop().await?;
        }
        Ok(())
    }
}

/// How other processes on this machine hear of the pipeline.
#[derive(Clone)]
struct Announcement {
    home: PipelineHome,
    nats_url: String,
}

impl Announcement {
    fn make(&self, gateway_url: Option<&str>) -> anyhow::Result<()> {
        self.home.announce(&Running { nats_url: self.nats_url.clone(), gateway_url: gateway_url.map(str::to_owned) })
    }
}

/// Keeps one worker, or the gateway, running.
struct Keeper {
    command: Vec<OsString>,
    name: String,
    sink: Arc<Sink>,
    told: mpsc::Sender<anyhow::Result<()>>,
    /// Whom a gateway's URL is told, and how others hear of it.
    found: Option<(watch::Sender<Option<String>>, Announcement)>,
    stopping: CancellationToken,
}

impl Keeper {
    async fn run(self) {
        let mut pause = FIRST_PAUSE;
        while !self.stopping.is_cancelled() {
            let started = Instant::now();
            if let Err(error) = self.run_once().await {
                tracing::warn!(worker = self.name, "{error:#}; it is started again");
                // Nobody may be waiting any more.
                let _ = self.told.try_send(Err(error.context(format!("worker {}", self.name))));
            }
            if started.elapsed() > LONGEST_PAUSE {
                pause = FIRST_PAUSE;
            }
            tokio::select! {
                () = self.stopping.cancelled() => return,
                () = sleep(pause) => pause = (pause * 2).min(LONGEST_PAUSE),
            }
        }
    }

    /// Runs the worker until it ends; fails if it did not end by request.
    async fn run_once(&self) -> anyhow::Result<()> {
        let mut command = Command::new(&self.command[0]);
        command.args(&self.command[1..]).process_group(0).kill_on_drop(true);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // The plan file says everything; the variables have gone into it.
        for (key, _) in std::env::vars_os() {
            let said = |key: &str| key.starts_with(baton_topology::ENVIRONMENT_PREFIX) || key == CONTEXT_VARIABLE;
            if key.to_str().is_some_and(said) {
                command.env_remove(key);
            }
        }
        let mut child = command.spawn().context("cannot start the worker")?;
        let lines = tokio::spawn(self.sink.clone().copy(self.name.clone(), child.stderr.take()));
        let (told, stdout, found) = (self.told.clone(), child.stdout.take(), self.found.clone());
        tokio::spawn(async move {
            let Some(stdout) = stdout else { return };
            let mut words = BufReader::new(stdout).lines();
            while let Ok(Some(word)) = words.next_line().await {
                let Some(url) = word.strip_prefix("ready") else { continue };
                if let Some((found, announcement)) = &found {
                    let url = url.trim();
                    if let Err(error) = announcement.make(Some(url)) {
                        tracing::warn!("{error:#}; other commands don't find the gateway");
                    }
                    found.send_replace(Some(url.to_owned()));
                }
                // Nobody may be waiting any more.
                let _ = told.try_send(Ok(()));
            }
        });
        let status = tokio::select! {
            status = child.wait() => status,
            () = self.stopping.cancelled() => return self.stop(child, lines).await,
        };
        anyhow::bail!("the worker ended ({})", status?)
    }

    async fn stop(&self, mut child: Child, lines: tokio::task::JoinHandle<()>) -> anyhow::Result<()> {
        if let Some(id) = child.id() {
            let pid = nix::unistd::Pid::from_raw(id as i32);
            nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).context("cannot signal the worker")?;
        }
        if timeout(worker::DRAIN + Duration::from_secs(15), child.wait()).await.is_err() {
            child.kill().await.context("cannot kill the worker")?;
        }
        let _ = lines.await;
        Ok(())
    }
}

/// The one place where all workers' log lines come together.
struct Sink(Mutex<Box<dyn Write + Send>>);

impl Sink {
    fn open(logs: Logs) -> anyhow::Result<Self> {
        let out: Box<dyn Write + Send> = match logs {
            Logs::Stderr => Box::new(std::io::stderr()),
            Logs::File(path) => {
                Box::new(File::create(&path).with_context(|| format!("cannot create {}", path.display()))?)
            }
        };
        Ok(Self(Mutex::new(out)))
    }

    /// Copies a worker's lines, whole, until it ends.
    async fn copy(self: Arc<Self>, name: String, lines: Option<impl AsyncRead + Unpin>) {
        let Some(lines) = lines else { return };
        let mut lines = BufReader::new(lines).split(b'\n');
        while let Ok(Some(line)) = lines.next_segment().await {
            let line = String::from_utf8_lossy(&line);
            // The worker's own lines name it; others (a panic, the dynamic linker) would be nobody's.
            let line = if line.contains(name.as_str()) { format!("{line}\n") } else { format!("{name}: {line}\n") };
            if let Ok(mut out) = self.0.lock() {
                // A log that can't be written must not stop the pipeline.
                let _ = out.write_all(line.as_bytes());
            }
        }
    }
}
