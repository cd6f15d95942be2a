//! `baton up`: a whole pipeline on this machine, each worker a process of its own, restarted when it fails.

mod commands;

use std::{
    collections::BTreeSet,
    ffi::OsString,
    fs::File,
    io::Write,
    path::PathBuf,
    process::Stdio,
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::{Context, bail};
use baton_bus::server::{self, Server};
use baton_contract::causes;
use baton_topology::{BrokerUrl, Plan, Told};
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, BufReader},
    process::{Child, Command},
    sync::{mpsc, watch},
    task::{JoinHandle, JoinSet, spawn_blocking},
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use self::commands::{own_command, workers};
use crate::{
    context::{self, CONTEXT_VARIABLE, PipelineArguments, PipelineHome, Running},
    guard,
    join::Found,
    output::note,
    provision, room,
    setup::Setup,
    worker,
};

/// A worker that fails again and again is started again after a pause that grows from the one to the other.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// How often a start that takes long says what it waits for.
const SAY_EVERY: Duration = Duration::from_secs(10);
/// How long the last lines of a process that has ended may take.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// Bytes of a process's last error that are repeated.
const LONGEST_ERROR: usize = 4096;

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
    let told = arguments.pipeline.told()?;
    let reach = told.reach()?;
    let telemetry = context::telemetry(&reach.telemetry, "baton-up", "up")?;
    let home = PipelineHome::new(&reach.root)?;
    let pipeline = Pipeline::start_told(told, home, Logs::Stderr, false).await?;
    let ran = keep_running(pipeline).await;
    telemetry.shutdown().await;
    ran
}

/// Says when the pipeline runs, and runs it until it is asked to stop. A pipeline that can't start is stopped at once.
async fn keep_running(mut pipeline: Pipeline) -> anyhow::Result<()> {
    let asked = context::asked_to_stop();
    tokio::pin!(asked);
    let started = tokio::select! {
        stopped = &mut asked => stopped.map(|()| false),
        ready = pipeline.ready() => ready.map(|()| true),
    };
    let ran = match started {
        Ok(true) => {
            tracing::info!(
                nats = %pipeline.plan().broker.url,
                store = %pipeline.plan().store.url,
                "the pipeline runs; Ctrl-C drains and stops it"
            );
            invite(&pipeline).await;
            asked.await
        }
        Ok(false) => Ok(()),
        Err(error) => Err(error.context("the pipeline can't start")),
    };
    tracing::info!("draining");
    pipeline.stop().await?;
    ran
}

/// Shows what there is, and what to do next.
async fn invite(pipeline: &Pipeline) {
    let (nats, store) = (&pipeline.plan().broker.url, &pipeline.plan().store.url);
    let page = match pipeline.gateway_url().await {
        Some(url) => format!("  page   {url}/\n  API    {url}/v1 (OpenAI's)\n"),
        None => String::new(),
    };
    note!(
        "{page}  NATS   {nats}\n  store  {store}\nin another terminal:  baton submit 'Why is the sea salty?' --stream"
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
    ready: mpsc::Receiver<Start>,
    /// Those that have not been ready yet.
    starting: BTreeSet<String>,
    /// The gateway's URL.
    gateway: watch::Receiver<Option<String>>,
    _lock: File,
}

impl Pipeline {
    pub async fn start(plan: Plan, home: PipelineHome, logs: Logs) -> anyhow::Result<Self> {
        Self::start_with(plan, home, logs, false).await
    }

    /// The same; with `sync_always` an embedded broker flushes each message to the disk before it acknowledges it.
    pub async fn start_with(plan: Plan, home: PipelineHome, logs: Logs, sync_always: bool) -> anyhow::Result<Self> {
        Self::start_told(Told { file: Some(plan.to_toml()), ..Told::default() }, home, logs, sync_always).await
    }

    /// The same with what was told, which changes the pipeline that stands under its root, if one does.
    pub async fn start_told(mut told: Told, home: PipelineHome, logs: Logs, sync_always: bool) -> anyhow::Result<Self> {
        if told.file.is_some() {
            // What is wrong with it is told before anything starts.
            told.plan()?;
        }
        let lock = home.lock()?;
        let mut server = None;
        let mut reach = told.reach()?;
        if reach.broker.url == BrokerUrl::Embedded {
            let binary = spawn_blocking(|| Setup::from_environment(false)?.ensure_nats_server()).await??;
            let directory = home.directory.join("nats");
            let options = server::Options { binary, directory, launcher: guard::launcher()?, sync_always };
            let started = Server::start(options).await?;
            told.overrides.push(format!("broker.url={}", started.url()));
            reach = told.reach()?;
            server = Some(started);
        }
        // Before anybody hears of the pipeline, so that submitters need not wait for the first worker.
        let bus = context::reach(&reach.root, &reach.broker, "baton-up").await?;
        let found = Found { told, reach, embedded: server.is_some().then(|| home.clone()) };
        let outcome = provision::change(&found, &bus, false).await?;
        if !outcome.new {
            for change in outcome.lines() {
                tracing::info!(change, "the pipeline was changed");
            }
        }
        if let Some(warning) = provision::small_messages(&bus) {
            tracing::warn!(warning, "large requests and results are refused");
        }
        let plan = outcome.plan;
        // Once here rather than by every worker at the same time.
        for model in plan.models.values().cloned().collect::<Vec<_>>() {
            spawn_blocking(move || context::source(&model)).await??;
        }
        let resolved = home.plan_file();
        context::write_private(&resolved, plan.machine_toml().as_bytes())?;
        let announcement = Announcement { home: home.clone(), nats_url: plan.broker.url.as_str().to_owned() };
        if server.is_some() {
            announcement.make(None)?;
        }

        let stopping = CancellationToken::new();
        let mut others: Vec<_> = workers(&plan).into_iter().map(|worker| worker.command(&resolved)).collect();
        if plan.planner.enabled {
            others.push(own_command(&["planner"], &resolved, "planner-1"));
        }
        let processes = others.len() + plan.gateway.replicas;
        let (told, ready) = mpsc::channel(64.max(4 * processes));
        let sink = Arc::new(Sink::open(logs)?);
        let (found, gateway) = watch::channel(None);
        let (mut keepers, mut starting) = (JoinSet::new(), BTreeSet::new());
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
            starting.insert(keeper.name.clone());
            keepers.spawn(keeper.run());
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
            starting.insert(keeper.name.clone());
            keepers.spawn(keeper.run());
        }
        let (places, watched) = ([Some(home.directory.clone()), room::of_store(&plan)], stopping.clone());
        keepers.spawn(async move {
            watched.run_until_cancelled(room::watch(places.into_iter().flatten().collect())).await;
        });
        Ok(Self { plan, home, server, keepers, stopping, ready, starting, gateway, _lock: lock })
    }

    /// The plan with every URL known.
    pub fn plan(&self) -> &Plan {
        &self.plan
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

    /// Waits until every process has said that it is ready; fails as soon as one says that it can't work. One that is killed
    /// meanwhile is started again, as later.
    pub async fn ready(&mut self) -> anyhow::Result<()> {
        while !self.starting.is_empty() {
            let Ok(start) = timeout(SAY_EVERY, self.ready.recv()).await else {
                let waiting: Vec<_> = self.starting.iter().map(String::as_str).collect();
                tracing::info!(processes = waiting.join(" "), "waiting for processes that are not ready yet");
                continue;
            };
            match start.context("no worker is left")? {
                Start::Ready(name) => drop(self.starting.remove(&name)),
                Start::Failed(name, said) if self.starting.contains(&name) => bail!("{name} ended: {said}"),
                Start::Failed(..) => {}
            }
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

/// What becomes of a process's start.
enum Start {
    Ready(String),
    /// It ended by itself, with an error: trying again would not help.
    Failed(String, String),
}

/// Keeps one worker, or the gateway, running.
struct Keeper {
    command: Vec<OsString>,
    name: String,
    sink: Arc<Sink>,
    told: mpsc::Sender<Start>,
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
                tracing::warn!(worker = self.name, error = %causes(error.as_ref()), "a worker ended and is started again");
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
        let name = self.name.clone();
        tokio::spawn(async move {
            let Some(stdout) = stdout else { return };
            let mut words = BufReader::new(stdout).lines();
            while let Ok(Some(word)) = words.next_line().await {
                let Some(url) = word.strip_prefix("ready") else { continue };
                if let Some((found, announcement)) = &found {
                    let url = url.trim();
                    if let Err(error) = announcement.make(Some(url)) {
                        tracing::warn!(error = %causes(error.as_ref()), "other commands don't find the gateway");
                    }
                    found.send_replace(Some(url.to_owned()));
                }
                // Nobody may be waiting any more.
                let _ = told.try_send(Start::Ready(name.clone()));
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
            let _ = self.told.try_send(Start::Failed(self.name.clone(), said));
        }
        bail!("the worker ended ({status})")
    }

    async fn stop(&self, mut child: Child, lines: JoinHandle<Option<String>>) -> anyhow::Result<()> {
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
