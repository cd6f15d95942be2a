//! A whole pipeline on this machine, each worker a process of its own, restarted when it fails.

mod commands;

use std::{collections::BTreeSet, fs::File, sync::Arc, time::Duration};

use baton_provision::{
    guard,
    home::PipelineHome,
    private,
    processes::{Announcement, Keeper, Logs, Sink, Start},
    server::{self, Server},
    setup::Setup,
};
use baton_topology::{BrokerUrl, Plan, Told};
use tokio::{
    sync::{mpsc, watch},
    task::{JoinSet, spawn_blocking},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use self::commands::Process;
use crate::{Error, Found, bus, change, contexts::CONTEXT_VARIABLE, join::anywhere, models, room, signals::DRAIN};

/// How often a start that takes long says what it waits for.
const SAY_EVERY: Duration = Duration::from_secs(10);
/// What a worker gets beyond its time for draining, until it is killed.
const KILL_AFTER: Duration = Duration::from_secs(15);

/// A running pipeline: its broker if it is embedded, and its workers.
pub struct Pipeline {
    plan: Plan,
    home: PipelineHome,
    server: Option<Server>,
    crew: Crew,
    _lock: File,
}

impl Pipeline {
    /// Starts a pipeline of this plan. An embedded broker flushes its messages every ten seconds.
    pub async fn start(plan: Plan, home: PipelineHome, logs: Logs) -> Result<Self, Error> {
        Self::start_with(plan, home, logs, false).await
    }

    /// Starts a pipeline of this plan; with `sync_always` an embedded broker flushes each message to the disk before it
    /// acknowledges it.
    pub async fn start_with(plan: Plan, home: PipelineHome, logs: Logs, sync_always: bool) -> Result<Self, Error> {
        Self::start_told(Told { file: Some(plan.to_toml()), ..Told::default() }, home, logs, sync_always).await
    }

    /// Starts a pipeline of what a command was given, which changes the pipeline that stands under its root, if one does.
    pub async fn start_told(mut told: Told, home: PipelineHome, logs: Logs, sync_always: bool) -> Result<Self, Error> {
        if told.file.is_some() {
            // What is wrong with it is reported before anything starts.
            told.plan()?;
        }
        let lock = home.lock()?;
        let server = start_broker(&mut told, &home, sync_always).await?;
        let reach = told.reach()?;
        let embedded = server.is_some();
        let plan = settle(Found { told, reach, embedded: embedded.then(|| home.clone()) }).await?;
        // Once here rather than by every worker at the same time.
        for model in plan.models.values().filter(|model| model.is_own()).cloned().collect::<Vec<_>>() {
            spawn_blocking(move || models::source(&model)).await??;
        }
        private::write(&home.plan_file(), anywhere(&plan)?.machine_toml().as_bytes())?;
        let announcement = Announcement { home: home.clone(), nats_url: plan.broker.url.as_str().to_owned() };
        if embedded {
            announcement.make(None)?;
        }
        let mut crew = Crew::start(&plan, announcement, logs)?;
        let (places, watched) = ([Some(home.directory.clone()), room::of_store(&plan)], crew.stopping.clone());
        crew.keepers.spawn(async move {
            watched.run_until_cancelled(room::watch(places.into_iter().flatten().collect())).await;
        });
        Ok(Self { plan, home, server, crew, _lock: lock })
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
        let mut gateway = self.crew.gateway.clone();
        let url = gateway.wait_for(Option::is_some).await.ok()?;
        url.clone()
    }

    /// Waits until every process has said that it is ready; fails as soon as one says that it can't work. One that is killed
    /// meanwhile is started again, as later.
    pub async fn ready(&mut self) -> Result<(), Error> {
        let Crew { ready, starting, .. } = &mut self.crew;
        while !starting.is_empty() {
            let Ok(start) = timeout(SAY_EVERY, ready.recv()).await else {
                let waiting: Vec<_> = starting.iter().map(String::as_str).collect();
                tracing::info!(processes = waiting.join(" "), "waiting for processes that are not ready yet");
                continue;
            };
            match start.ok_or(Error::NoWorker)? {
                Start::Ready(name) => drop(starting.remove(&name)),
                Start::Failed(process, said) if starting.contains(&process) => {
                    return Err(Error::Ended { process, said });
                }
                Start::Failed(..) => {}
            }
        }
        Ok(())
    }

    /// Drains the workers, then stops the broker.
    pub async fn stop(mut self) -> Result<(), Error> {
        self.crew.stopping.cancel();
        while self.crew.keepers.join_next().await.is_some() {}
        self.home.withdraw();
        if let Some(server) = self.server.take() {
            server.stop().await.map_err(baton_provision::Error::from)?;
        }
        Ok(())
    }
}

/// Starts the embedded broker if the pipeline has one, and makes its URL the pipeline's.
async fn start_broker(told: &mut Told, home: &PipelineHome, sync_always: bool) -> Result<Option<Server>, Error> {
    if told.reach()?.broker.url != BrokerUrl::Embedded {
        return Ok(None);
    }
    let binary = spawn_blocking(|| Setup::from_environment(false)?.ensure_nats_server()).await??;
    let directory = home.directory.join("nats");
    let options = server::Options { binary, directory, launcher: guard::launcher()?, sync_always };
    let started = Server::start(options).await.map_err(baton_provision::Error::from)?;
    told.overrides.push(format!("broker.url={}", started.url()));
    Ok(Some(started))
}

/// Makes the pipeline in its broker or changes it, before anybody hears of it, so that clients need not wait for the first
/// worker.
async fn settle(found: Found) -> Result<Plan, Error> {
    let bus = bus::reach(&found.reach.root, &found.reach.broker, "baton-up").await?;
    let outcome = change::change(&found, &bus, false).await?;
    if !outcome.new {
        for change in outcome.lines() {
            tracing::info!(change, "the pipeline was changed");
        }
    }
    if let Some(warning) = change::small_messages(&bus) {
        tracing::warn!(warning, "large requests and results are refused");
    }
    Ok(outcome.plan)
}

/// The processes of a pipeline.
struct Crew {
    keepers: JoinSet<()>,
    stopping: CancellationToken,
    ready: mpsc::Receiver<Start>,
    /// Those that have not been ready yet.
    starting: BTreeSet<String>,
    /// The gateway's URL.
    gateway: watch::Receiver<Option<String>>,
}

impl Crew {
    fn start(plan: &Plan, announcement: Announcement, logs: Logs) -> Result<Self, Error> {
        let processes = commands::processes(plan, &announcement.home.plan_file())?;
        let (starts, ready) = mpsc::channel(64.max(4 * processes.len()));
        let (found, gateway) = watch::channel(None);
        let sink = Arc::new(Sink::open(logs)?);
        let stopping = CancellationToken::new();
        let (mut keepers, mut starting) = (JoinSet::new(), BTreeSet::new());
        for Process { name, command, is_gateway } in processes {
            starting.insert(name.clone());
            let keeper = Keeper {
                command,
                name,
                said_by_file,
                stop_within: DRAIN + KILL_AFTER,
                sink: sink.clone(),
                starts: starts.clone(),
                found: is_gateway.then(|| (found.clone(), announcement.clone())),
                stopping: stopping.clone(),
            };
            keepers.spawn(keeper.run());
        }
        Ok(Self { keepers, stopping, ready, starting, gateway })
    }
}

/// Whether a variable of the environment says what the plan file of a pipeline's processes says already.
fn said_by_file(variable: &str) -> bool {
    variable.starts_with(baton_topology::ENVIRONMENT_PREFIX) || variable == CONTEXT_VARIABLE
}
