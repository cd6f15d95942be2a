//! Which pipeline a command is about, and how to reach it.

use std::{
    fs::{self, File, OpenOptions, Permissions},
    io::Write,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, bail};
use baton_bus::{Bus, Retention, pressure::Backlog};
use baton_contract::{Name, subject::Layout};
use baton_engine::source::{Source, Vocabulary};
use baton_storage::store::Store;
use baton_topology::{Broker, BrokerUrl, Device, LogFormat, Model, Plan, StoreUrl, Telemetry, Told};
use serde::{Deserialize, Serialize};

use crate::{
    contexts, hub, private,
    setup::{self, Setup},
};

const HEADING: &str = "Which pipeline";

/// Options of every command that talks to a pipeline.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct PipelineArguments {
    /// Pipeline file; without it one worker a stage on this machine
    #[arg(long, short, value_name = "FILE", env = "BATON_PIPELINE", help_heading = HEADING)]
    pub pipeline: Option<PathBuf>,
    /// A context of `baton context`; without it the selected one, and none if it is empty
    #[arg(long, value_name = "NAME", env = CONTEXT_VARIABLE, help_heading = HEADING)]
    pub context: Option<String>,
    /// NATS URLs of the broker, separated by commas (short for --set broker.url=...)
    #[arg(long, value_name = "URL", help_heading = HEADING)]
    pub nats: Option<String>,
    /// URL of the object store (short for --set store.url=...)
    #[arg(long, value_name = "URL", help_heading = HEADING)]
    pub store: Option<String>,
    /// Set any key of the pipeline, for example stages.decode.slots=8; may be repeated
    #[arg(long, value_name = "KEY=VALUE", help_heading = HEADING)]
    pub set: Vec<String>,
}

/// Names the context of commands that are given no other.
pub const CONTEXT_VARIABLE: &str = "BATON_CONTEXT";

/// Option of commands that are about one tenant's jobs.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct TenantArguments {
    /// Tenant of the jobs; without it the context's, or `default`
    #[arg(long, value_name = "NAME", env = "BATON_TENANT")]
    tenant: Option<Name>,
}

impl TenantArguments {
    /// The tenant that flag, environment or context name.
    pub fn named(&self, pipeline: &PipelineArguments) -> anyhow::Result<Option<Name>> {
        if self.tenant.is_some() {
            return Ok(self.tenant.clone());
        }
        Ok(pipeline.chosen()?.and_then(|context| context.tenant))
    }

    /// The same, or the tenant of those who name none.
    pub fn of(&self, pipeline: &PipelineArguments) -> anyhow::Result<Name> {
        Ok(self.named(pipeline)?.unwrap_or_else(Name::default_tenant))
    }
}

impl PipelineArguments {
    /// The context that the command is given, or the selected one. That one is not meant where a pipeline file is named.
    fn chosen(&self) -> anyhow::Result<Option<contexts::Context>> {
        match self.context.as_deref() {
            Some("") => Ok(None),
            Some(name) => contexts::Context::named(name).map(Some),
            None if self.pipeline.is_some() => Ok(None),
            None => contexts::Context::selected(),
        }
    }

    /// What file, context, environment and flags say.
    pub fn told(&self) -> anyhow::Result<Told> {
        let context = self.chosen()?.unwrap_or_default();
        let file = match self.pipeline.as_ref().or(context.pipeline.as_ref()) {
            None => None,
            Some(path) => {
                Some(fs::read_to_string(path).with_context(|| format!("cannot read the pipeline {}", path.display()))?)
            }
        };
        let mut overrides = self.set.clone();
        overrides.extend(self.nats.iter().map(|url| format!("broker.url={url}")));
        overrides.extend(self.store.iter().map(|url| format!("store.url={url}")));
        // Variables that are not UTF-8 can't be settings of ours.
        let environment = std::env::vars_os();
        let environment =
            environment.filter_map(|(key, value)| Some((key.into_string().ok()?, value.into_string().ok()?)));
        let environment = context.variables().into_iter().chain(environment).collect();
        Ok(Told { machine: None, file, environment, overrides })
    }

    /// The validated plan of file, context, environment and flags, whatever a running pipeline has.
    pub fn plan(&self) -> anyhow::Result<Plan> {
        Ok(self.told()?.plan()?)
    }
}

/// Where the embedded parts of the pipeline under one root live, inside Baton's own folder.
#[derive(Clone)]
pub struct PipelineHome {
    pub directory: PathBuf,
}

/// What a running embedded pipeline tells other processes on this machine.
#[derive(Serialize, Deserialize)]
pub struct Running {
    pub nats_url: String,
    /// Where its gateway is found, once that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway_url: Option<String>,
}

impl PipelineHome {
    pub fn new(root: &Name) -> anyhow::Result<Self> {
        Ok(Self { directory: setup::home()?.join("pipelines").join(root.as_str()) })
    }

    pub fn store_url(&self) -> String {
        format!("file://{}", self.directory.join("store").display())
    }

    /// Where it lies what holds for the running pipeline's processes on this machine; the broker has the rest.
    pub fn plan_file(&self) -> PathBuf {
        self.directory.join("plan.toml")
    }

    fn running_file(&self) -> PathBuf {
        self.directory.join("running.json")
    }

    /// Takes the directory for this process until the returned file is dropped.
    pub fn lock(&self) -> anyhow::Result<File> {
        private::create(&self.directory)?;
        let path = self.directory.join("lock");
        let file = File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
        if file.try_lock().is_err() {
            bail!(
                "a pipeline already runs in {}; stop it, or give this one another root (--set root=NAME)",
                self.directory.display()
            );
        }
        Ok(file)
    }

    pub fn announce(&self, running: &Running) -> anyhow::Result<()> {
        // At once: others may be reading it.
        let written = self.directory.join("running.json.new");
        write_private(&written, &serde_json::to_vec(running)?)?;
        fs::rename(&written, self.running_file()).context("cannot write running.json")
    }

    pub fn withdraw(&self) {
        // It may be gone already; a stale one only leads to a failed connection.
        let _ = fs::remove_file(self.running_file());
    }

    pub fn running(&self) -> anyhow::Result<Running> {
        let text = fs::read(self.running_file()).map_err(|_| {
            anyhow::anyhow!(
                "no embedded pipeline runs in {}; start one with `baton up`, or name a broker with --nats URL",
                self.directory.display()
            )
        })?;
        serde_json::from_slice(&text).context("cannot read running.json")
    }
}

/// Writes a file that only its owner may read: URLs may hold passwords.
pub fn write_private(path: &Path, text: &[u8]) -> anyhow::Result<()> {
    let cannot = || format!("cannot write {}", path.display());
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(path).with_context(cannot)?;
    // One that stood there already keeps its mode otherwise.
    file.set_permissions(Permissions::from_mode(0o600)).with_context(cannot)?;
    file.write_all(text).with_context(cannot)
}

/// Connects to the plan's broker, whose URL must be known.
pub async fn connect(plan: &Plan, name: &str) -> anyhow::Result<Bus> {
    reach(&plan.root, &plan.broker, name).await
}

/// Connects to a broker whose URL must be known.
pub async fn reach(root: &Name, broker: &Broker, name: &str) -> anyhow::Result<Bus> {
    let BrokerUrl::Servers(url) = &broker.url else { bail!("the embedded broker is not running") };
    let options = baton_bus::Options {
        url: url.clone(),
        credentials: broker.credentials.clone().map(PathBuf::from),
        name: name.to_owned(),
        layout: Layout::new(root.clone()),
    };
    Ok(Bus::connect(options).await?)
}

/// Does a process's work, and makes again meanwhile what it needs of the broker. It fails when the connection dies, without
/// which the work cannot be done.
pub async fn keeping<T>(plan: &Plan, bus: &Bus, work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let retention = retention(plan);
    tokio::select! {
        biased;
        done = work => done,
        died = bus.died() => Err(died.into()),
        never = bus.keep(&retention) => match never {},
    }
}

/// How the plan wants its streams kept.
pub fn retention(plan: &Plan) -> Retention {
    let backlog = Backlog {
        messages: plan.limits.backlog_messages as u64,
        bytes: plan.limits.backlog_bytes.map(|bytes| bytes.0),
        of_tenant: plan.limits.tenant_backlog.map(|messages| messages as u64),
    };
    Retention { replicas: plan.broker.replicas, results: plan.results.keep, backlog, lanes: plan.lanes.clone() }
}

/// Beside a broker that is not `baton up`'s own, a folder of this machine would be a place that nobody else reads.
pub const NO_STORE: &str = "the pipeline's broker is not `baton up`'s own, and no store is named: name the one that all workers \
                            share with --store URL, such as s3://bucket/prefix (file:///directory if all run on one machine)";

/// Opens the plan's object store, whose URL must be known.
pub fn open_store(plan: &Plan) -> anyhow::Result<Store> {
    let StoreUrl::Url(url) = &plan.store.url else { bail!(NO_STORE) };
    Ok(if plan.store.sync { Store::open(url)? } else { Store::open_unsynced(url)? })
}

/// Where the engine finds a model of the plan; the default model and those of the hub are brought if they are missing.
pub fn source(model: &Model) -> anyhow::Result<Source> {
    Ok(match model {
        Model::Default => Source::Checkpoint(Setup::from_environment(false)?.ensure_default_model()?),
        Model::File(path) => Source::Checkpoint(Path::new(path).to_owned()),
        Model::Hub(model) => Source::Checkpoint(hub::fetch(model, &hub::Options::from_environment()?)?),
        Model::Sim(sim) => Source::Sim(baton_engine::sim::Options {
            layers: sim.layers,
            kv_width: sim.kv_width,
            context: sim.context,
            prefill_s_per_token: sim.prefill_s_per_token,
            decode_s_per_step: sim.decode_s_per_step,
            answer_tokens: sim
                .answer_tokens
                .map(|tokens| baton_engine::sim::AnswerTokens { min: tokens.min, max: tokens.max }),
        }),
    })
}

/// The engine's name of a device.
pub fn device(device: Device) -> &'static str {
    match device {
        Device::Flex => "flex",
        Device::Cuda => "cuda",
        Device::Wgpu => "wgpu",
    }
}

/// A model's tokenizer and template, without its weights.
pub fn vocabulary(model: &Model) -> anyhow::Result<Arc<Vocabulary>> {
    Ok(Arc::new(baton_engine::source::vocabulary(&source(model)?)?))
}

/// Ends when the process is asked to: Ctrl-C or SIGTERM. Being asked a second time ends the process at once.
pub async fn asked_to_stop() -> anyhow::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        std::process::exit(130);
    });
    Ok(())
}

/// The same for a command whose output is its own: only warnings are logged.
pub fn quiet_telemetry(settings: &Telemetry, service: &str, instance: &str) -> anyhow::Result<baton_telemetry::Guard> {
    telemetry(&Telemetry { log: "warn".into(), ..settings.clone() }, service, instance)
}

/// How long the user of a command waits at most for its last spans to be sent.
pub const LAST_SPANS: Duration = Duration::from_millis(500);

/// Starts logs and traces of a process that serves a pipeline.
pub fn telemetry(settings: &Telemetry, service: &str, instance: &str) -> anyhow::Result<baton_telemetry::Guard> {
    let mut options = baton_telemetry::Options::new(service, instance);
    options.otlp_endpoint = settings.otlp_endpoint.clone();
    options.log = settings.log.clone();
    options.log_format = match settings.log_format {
        LogFormat::Text => baton_telemetry::LogFormat::Text,
        LogFormat::Json => baton_telemetry::LogFormat::Json,
    };
    Ok(baton_telemetry::start(options)?)
}
