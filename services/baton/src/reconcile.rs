//! `baton reconcile`: jobs that were accepted and that no queue has.

use std::io::Write;

use anyhow::bail;
use baton_bus::repair::reconcile::Report;
use baton_contract::JobKey;
use serde_json::json;

use crate::{context::PipelineArguments, output::stdout};

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  baton reconcile --dry-run
  baton reconcile --pipeline pipeline.toml --nats nats://10.0.0.1:4222 --json

For after a disaster: a stream was purged, or the broker came back from an old copy. A job that was accepted, has not ended \
and is in no queue begins again from the message that ingest admitted it with, under its own id, and still ends once. \
Workers may run meanwhile. With --json one object: dry_run, open, waiting, begun, noted, lost, unread.

Exit code: 0; 1 if there are jobs whose request is lost, too. These may be submitted again under their ids.")]
pub struct Arguments {
    #[command(flatten)]
    pipeline: PipelineArguments,
    /// Change nothing, tell what would be done
    #[arg(long)]
    dry_run: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let (_, bus) = arguments.pipeline.join("baton-reconcile").await?;
    let dry_run = arguments.dry_run;
    let Report { open, waiting, noted, begun, reopened, unread } = bus.reconcile(dry_run).await?;
    let mut out = stdout();
    if arguments.json {
        let names = |keys: &[JobKey]| keys.iter().map(JobKey::to_string).collect::<Vec<_>>();
        let (begun, noted, lost) = (names(&begun), names(&noted), names(&reopened));
        let report = json!({
            "dry_run": dry_run, "open": open, "waiting": waiting, "begun": begun, "noted": noted, "lost": lost,
            "unread": unread,
        });
        writeln!(out, "{report}")?;
    } else {
        let (again, ended) =
            if dry_run { ("would begin again", "would be noted as ended") } else { ("began again", "noted as ended") };
        writeln!(out, "{open} jobs have not ended, {waiting} of them wait or are worked on")?;
        if unread > 0 {
            writeln!(out, "{unread} messages are of another release, or garbage: they were not read")?;
        }
        for (keys, what) in [(&begun, again), (&noted, ended), (&reopened, "lost: submit it again")] {
            for key in keys {
                writeln!(out, "{key}  {what}")?;
            }
        }
    }
    if !reopened.is_empty() {
        bail!("of {} jobs the request is lost with the message; submit them again under their ids", reopened.len());
    }
    Ok(())
}
