//! `baton provision`: makes a pipeline in its broker, or changes it. Besides `baton up`, nothing else changes what stands.

use std::{io::Write, path::PathBuf, process::ExitCode};

use anyhow::{bail, ensure};
use baton_bus::{Bus, provision::Change};
use baton_contract::{envelope, subject::Stage};
use baton_topology::{BrokerUrl, Difference, Plan, Settings, StoreUrl};
use serde_json::json;

use crate::{
    context::{self, NO_STORE, PipelineArguments},
    exit::Exit,
    join::{self, Found, anywhere},
    output::{note, stdout},
};

/// How often settings that others keep changing are read again.
const RACES: usize = 8;

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  baton provision pipeline.toml --nats nats://10.0.0.1:4222 --store s3://kv/baton
  baton provision pipeline.toml --check          says what it would change; exit code 1 if that is something
  baton provision --set results.keep=30d --json

Streams, buckets and the settings that all processes share are made, or changed to what is wanted, in the broker. A file says \
everything: what it leaves out gets its default. Without a file only what flags and environment name is changed. Workers and \
gateways that run go on with what they had: restart them. Those that start later need --nats only.")]
pub struct Arguments {
    /// Pipeline file (the same as --pipeline)
    #[arg(value_name = "PIPELINE")]
    file: Option<PathBuf>,
    #[command(flatten)]
    pipeline: PipelineArguments,
    /// Change nothing, and say what would be changed
    #[arg(long)]
    check: bool,
    /// Print what was or would be changed as JSON
    #[arg(long)]
    json: bool,
}

/// What a change did, or would do.
pub struct Outcome {
    /// The plan with every URL known.
    pub plan: Plan,
    /// Whether the pipeline had no settings before.
    pub new: bool,
    pub settings: Vec<Difference>,
    pub broker: Vec<Change>,
}

impl Outcome {
    fn is_nothing(&self) -> bool {
        !self.new && self.settings.is_empty() && self.broker.is_empty()
    }

    /// One line for each change.
    pub fn lines(&self) -> Vec<String> {
        let new = self.new.then(|| "settings: created".to_owned());
        let or_none = |value: &Option<String>| value.clone().unwrap_or_else(|| "nothing".into());
        let setting = |it: &Difference| format!("{}: from {} to {}", it.key, or_none(&it.kept), or_none(&it.wanted));
        let settings = self.settings.iter().map(setting);
        new.into_iter().chain(settings).chain(self.broker.iter().map(ToString::to_string)).collect()
    }
}

pub async fn run(mut arguments: Arguments) -> anyhow::Result<ExitCode> {
    if arguments.file.is_some() {
        arguments.pipeline.pipeline = arguments.file.take();
    }
    let mut found = arguments.pipeline.find()?;
    // What holds on this machine for the processes of `baton up` is no wish to change anything.
    found.told.machine = None;
    let bus = context::reach(&found.reach.root, &found.reach.broker, "baton-provision").await?;
    let outcome = change(&found, &bus, arguments.check).await?;
    let warning = small_messages(&bus);
    let mut out = stdout();
    if arguments.json {
        let settings = outcome.settings.iter();
        let settings: Vec<_> = settings.map(|it| json!({ "key": it.key, "from": it.kept, "to": it.wanted })).collect();
        let broker: Vec<_> = outcome.broker.iter().map(ToString::to_string).collect();
        let report = json!({
            "root": outcome.plan.root, "check": arguments.check, "created": outcome.new, "settings": settings, "broker": broker,
            "warning": warning,
        });
        writeln!(out, "{report}")?;
    } else {
        for line in outcome.lines() {
            writeln!(out, "{line}")?;
        }
        if outcome.is_nothing() {
            writeln!(out, "the pipeline under root {} is as wanted", outcome.plan.root)?;
        }
        if let Some(warning) = warning {
            note!("warning: {warning}");
        }
        if !arguments.check && !outcome.new && !outcome.settings.is_empty() {
            note!("workers and gateways that run have the former settings until they are started again");
        }
    }
    let wrong = arguments.check && !outcome.is_nothing();
    Ok(if wrong { Exit::Failure } else { Exit::Success }.into())
}

/// Brings broker and settings to what file and flags say, or only says what that would change.
pub async fn change(found: &Found, bus: &Bus, check: bool) -> anyhow::Result<Outcome> {
    for _ in 0..RACES {
        let kept = bus.settings().await?;
        let settings = match &kept {
            None => None,
            Some(kept) => match join::read(kept) {
                Ok(settings) => Some(settings),
                // They can't be read, and a file says everything.
                Err(_) if found.told.file.is_some() => None,
                Err(error) => return Err(error),
            },
        };
        let plan = wanted(found, bus, settings.as_ref()).await?;
        let stored = anywhere(&plan)?;
        let mut next = match &settings {
            Some(settings) => settings.changed(&stored),
            None => Settings::of(&stored, uuid::Uuid::now_v7().to_string()),
        };
        let differences = settings.as_ref().map(|settings| settings.differences(&stored)).unwrap_or_default();
        let new = settings.is_none();
        if check {
            let broker = compared(&plan, bus).await?;
            return Ok(Outcome { plan, new, settings: differences, broker });
        }
        join::mark(&plan, &next).await?;
        next.marked = true;
        let value = serde_json::to_value(&next)?;
        let Some(kept) = kept else {
            if !bus.settle(&value, plan.broker.replicas).await? {
                // Somebody else was faster: what that one wrote is changed.
                continue;
            }
            let broker = applied(&plan, bus).await?;
            return Ok(Outcome { plan, new, settings: differences, broker });
        };
        let broker = applied(&plan, bus).await?;
        if settings.as_ref() == Some(&next) || bus.resettle(&kept, &value).await? {
            return Ok(Outcome { plan, new, settings: differences, broker });
        }
    }
    bail!("the pipeline's settings kept changing; try again")
}

/// The plan of file and flags, with a place for the store.
async fn wanted(found: &Found, bus: &Bus, settings: Option<&Settings>) -> anyhow::Result<Plan> {
    let mut plan = match settings {
        Some(settings) => found.told.change(settings)?,
        None => match bus.standing_retention().await? {
            Some(standing) => found.told.change(&Settings::standing(&join::of_streams(&standing)))?,
            None => found.told.plan()?,
        },
    };
    // Baton's own folder may have been moved, and the store with it.
    let says = found.told.says("store.url")?;
    if let (StoreUrl::Url(url), Some(home), false) = (&plan.store.url, &found.embedded, says)
        && url.strip_prefix("file://").is_some_and(|path| !std::path::Path::new(path).is_dir())
    {
        plan.store.url = StoreUrl::Url(home.store_url());
    }
    found.place_store(&mut plan);
    if let (StoreUrl::Embedded, Some(url)) = (&plan.store.url, settings.and_then(Settings::store_url)) {
        plan.store.url = StoreUrl::Url(url);
    }
    ensure!(plan.store.url != StoreUrl::Embedded, NO_STORE);
    debug_assert!(plan.broker.url != BrokerUrl::Embedded);
    Ok(plan)
}

async fn applied(plan: &Plan, bus: &Bus) -> anyhow::Result<Vec<Change>> {
    let mut changes = bus.apply(&context::retention(plan)).await?;
    for (stage, settings) in stages(plan) {
        let models: Vec<_> = plan.models.keys().cloned().collect();
        changes.extend(bus.apply_ack_wait(stage, &models, &plan.lanes, settings.ack_wait).await?);
    }
    Ok(changes)
}

async fn compared(plan: &Plan, bus: &Bus) -> anyhow::Result<Vec<Change>> {
    let mut changes = bus.compare(&context::retention(plan)).await?;
    // Consumers of streams that are missing are missing, too.
    if changes.iter().any(|change| matches!(change, Change::Created { .. })) {
        return Ok(changes);
    }
    for (stage, settings) in stages(plan) {
        let models: Vec<_> = plan.models.keys().cloned().collect();
        changes.extend(bus.compare_ack_wait(stage, &models, &plan.lanes, settings.ack_wait).await?);
    }
    Ok(changes)
}

fn stages(plan: &Plan) -> [(Stage, &baton_topology::Stage); 3] {
    let stages = &plan.stages;
    [
        (Stage::Ingest, &stages.ingest),
        (Stage::Prefill, &stages.prefill.compute.stage),
        (Stage::Decode, &stages.decode.compute.stage),
    ]
}

/// What is wrong with the broker's largest message, if it is too small.
pub fn small_messages(bus: &Bus) -> Option<String> {
    let (has, wants) = (bus.max_payload(), envelope::MAX_BYTES);
    (has < wants).then(|| {
        format!(
            "the broker takes messages of {has} bytes, and requests and results may have {wants}: set max_payload: 8MB in \
             nats-server's configuration"
        )
    })
}
