//! `baton provision`: makes a pipeline in its broker, or changes it. Besides `baton up`, nothing else changes what stands.

use std::{io::Write, path::PathBuf, process::ExitCode};

use baton_assembly::{
    bus,
    change::{change, small_messages},
};
use serde_json::json;

use crate::{
    context::PipelineArguments,
    exit::Exit,
    output::{note, stdout},
};

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

pub async fn run(mut arguments: Arguments) -> anyhow::Result<ExitCode> {
    if arguments.file.is_some() {
        arguments.pipeline.pipeline = arguments.file.take();
    }
    let mut found = arguments.pipeline.find()?;
    // What holds on this machine for the processes of `baton up` is no wish to change anything.
    found.told.machine = None;
    let bus = bus::reach(&found.reach.root, &found.reach.broker, "baton-provision").await?;
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
