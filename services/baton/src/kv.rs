//! `baton kv`: what the object store holds, and what of it can go.

use std::{
    io::Write,
    time::{Duration, SystemTime},
};

use anyhow::Context;
use baton_bus::Bus;
use baton_provision::home::PipelineHome;
use baton_storage::{
    Store,
    collect::{Census, Object, Options},
};
use baton_terminal::table;
use baton_topology::{BrokerUrl, Bytes, Plan, StoreUrl};
use baton_worker::{
    collector::{self, Survey},
    stock::{self, Collected, Stat, Stock},
};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use crate::{context::PipelineArguments, output::stdout};

#[derive(clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// List the chunks and tails, those used last first
    Ls(ListArguments),
    /// Show what the store holds, what waiting jobs need of it, and what a collection would remove
    Stat(StatArguments),
    /// Remove chunks that were not used for long, and what crashed workers left
    Gc(CollectArguments),
}

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  baton kv ls --limit 20
  baton kv ls --store s3://kv/baton --json

With --json each line is an object: id, bytes, age_s (seconds since its last use), last_used.")]
struct ListArguments {
    #[command(flatten)]
    pipeline: PipelineArguments,
    /// List only the N that were used last
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Print one JSON object per chunk
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  baton kv stat
  baton kv stat --set store.max_age=1d      what a collection would remove then")]
struct StatArguments {
    #[command(flatten)]
    pipeline: PipelineArguments,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  baton kv gc --dry-run
  baton kv gc --max-age 12h --max-bytes 200GiB
  baton kv gc --pipeline pipeline.toml --nats nats://10.0.0.1:4222 --store s3://kv/baton    from cron

Workers do the same every store.gc_interval; running it beside them does no harm. Chunks that a waiting job names always \
stay, and so does what is used meanwhile. Exit code: 0 if all that had to go is gone, 1 otherwise.")]
struct CollectArguments {
    #[command(flatten)]
    pipeline: PipelineArguments,
    /// Remove nothing, tell what would go
    #[arg(long)]
    dry_run: bool,
    /// Remove what was not used for this long, such as 7d; without it store.max_age
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    max_age: Option<Duration>,
    /// Beyond this, such as 200GiB, remove what was not used for longest; without it store.max_bytes
    #[arg(long, value_name = "SIZE", value_parser = size)]
    max_bytes: Option<Bytes>,
    /// Keep what is younger than this; less than the default, at least 1h, costs work if prefill is at it just now
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    grace: Option<Duration>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

fn size(text: &str) -> Result<Bytes, String> {
    Bytes::parse(text).ok_or_else(|| format!("expected a size from 1MiB to 1024TiB such as 2GiB, found {text:?}"))
}

pub async fn run(arguments: Arguments) -> anyhow::Result<()> {
    match arguments.command {
        Command::Ls(arguments) => list(arguments).await,
        Command::Stat(arguments) => stat(arguments).await,
        Command::Gc(arguments) => collect(arguments).await,
    }
}

#[derive(Serialize)]
struct Row {
    id: String,
    bytes: u64,
    age_s: u64,
    last_used: String,
}

async fn list(arguments: ListArguments) -> anyhow::Result<()> {
    let store = baton_assembly::store::open(&plan_of_store(&arguments.pipeline).await?)?;
    let bar = progress();
    bar.set_message("listing the store");
    let census = Census::take(&store, || bar.inc(1)).await?;
    let mut objects = [census.objects, census.tails].concat();
    bar.finish_and_clear();
    objects.sort_unstable_by_key(|object| (std::cmp::Reverse(object.used), object.id));
    // Only shown here, so that this works where nothing may be written.
    let now = store.now().await.unwrap_or_else(|_| SystemTime::now());
    let shown = arguments.limit.unwrap_or(usize::MAX);
    let row = |object: &Object| Row {
        id: object.id.to_string(),
        bytes: object.bytes,
        age_s: object.age(now).as_secs(),
        last_used: humantime::format_rfc3339_seconds(object.used).to_string(),
    };
    let rows = objects.iter().take(shown).map(row);
    let mut out = stdout();
    if arguments.json {
        for row in rows {
            writeln!(out, "{}", serde_json::to_string(&row)?)?;
        }
        return Ok(());
    }
    let age = |seconds| humantime::format_duration(Duration::from_secs(seconds)).to_string();
    let rows: Vec<_> = rows.map(|row| vec![row.id, table::bytes(row.bytes), age(row.age_s), row.last_used]).collect();
    write!(out, "{}", table::render(&["chunk", "size", "unused for", "last used"], &rows))?;
    if objects.len() > rows.len() {
        writeln!(out, "and {} more", objects.len() - rows.len())?;
    }
    Ok(())
}

async fn stat(arguments: StatArguments) -> anyhow::Result<()> {
    let (plan, bus) = arguments.pipeline.join("baton-kv").await?;
    let (_, survey) = survey(&plan, &bus, &collector::options(&plan), &progress()).await?;
    let stat = Stat::of(plan.store.url.to_string(), &survey);
    let mut out = stdout();
    if arguments.json {
        writeln!(out, "{}", serde_json::to_string(&stat)?)?;
        return Ok(());
    }
    let Stock { stored, tails, max_bytes, oldest_s, waiting_jobs, unread, live, missing } = &stat.stock;
    writeln!(out, "store            {}", stat.store)?;
    writeln!(out, "stored           {stored}; of these {tails} that serve one job each")?;
    writeln!(out, "budget           {}", max_bytes.map_or("none".into(), table::bytes))?;
    writeln!(out, "longest unused   {}", humantime::format_duration(Duration::from_secs(*oldest_s)))?;
    writeln!(out, "waiting jobs     {waiting_jobs}, which name {live}")?;
    if *missing > 0 {
        writeln!(out, "missing          {missing} chunk{} that they name: computed again", plural(*missing))?;
    }
    if *unread > 0 {
        writeln!(out, "not read         {}", not_read(*unread))?;
    }
    writeln!(out, "gc would remove  {}", stat.would_remove)?;
    writeln!(out, "                 {} left by crashes or by jobs that ended", stat.would_remove_leftovers)?;
    Ok(())
}

async fn collect(arguments: CollectArguments) -> anyhow::Result<()> {
    let (plan, bus) = arguments.pipeline.join("baton-kv").await?;
    let kept = collector::options(&plan);
    let options = Options {
        max_age: arguments.max_age.unwrap_or(kept.max_age),
        max_bytes: arguments.max_bytes.map(|bytes| bytes.0).or(kept.max_bytes),
        grace: arguments.grace.unwrap_or(kept.grace),
    };
    let bar = progress();
    let (store, survey) = survey(&plan, &bus, &options, &bar).await?;
    let (collected, error) = stock::collect(&store, survey, arguments.dry_run, &bar).await;
    bar.finish_and_clear();
    let mut out = stdout();
    if arguments.json {
        writeln!(out, "{}", serde_json::to_string(&collected)?)?;
    } else {
        let Collected { dry_run, stock, removed, removed_leftovers, spared, .. } = &collected;
        writeln!(out, "stored        {}", stock.stored)?;
        writeln!(out, "waiting jobs  {}, which name {}", stock.waiting_jobs, stock.live)?;
        if stock.unread > 0 {
            writeln!(out, "not read      {}", not_read(stock.unread))?;
        }
        writeln!(out, "{}{removed}", if *dry_run { "would remove  " } else { "removed       " })?;
        writeln!(out, "              {removed_leftovers} left by crashes or by jobs that ended")?;
        if *spared > 0 {
            writeln!(out, "stay          {spared} chunk{} used meanwhile", plural(*spared))?;
        }
    }
    match error {
        None => Ok(()),
        Some(error) => Err(error).context(format!("{} objects could not be removed", collected.failed)),
    }
}

async fn survey(plan: &Plan, bus: &Bus, options: &Options, bar: &ProgressBar) -> anyhow::Result<(Store, Survey)> {
    let store = baton_assembly::store::open(plan)?;
    let survey = Survey::take(&store, bus, options, bar).await?;
    Ok((store, survey))
}

/// The plan, for what needs no broker: its pipeline need not run.
async fn plan_of_store(pipeline: &PipelineArguments) -> anyhow::Result<Plan> {
    if !pipeline.told()?.says("store.url")?
        && let Ok((plan, _)) = pipeline.join("baton-kv").await
    {
        return Ok(plan);
    }
    let mut plan = pipeline.plan()?;
    if (&plan.store.url, &plan.broker.url) == (&StoreUrl::Embedded, &BrokerUrl::Embedded) {
        plan.store.url = StoreUrl::Url(PipelineHome::new(&plan.root)?.store_url());
    }
    Ok(plan)
}

fn plural(count: u64) -> &'static str {
    if count == 1 { "" } else { "s" }
}

/// What is said of waiting messages that can't be read.
fn not_read(unread: u64) -> String {
    format!("{unread} message{} of another release; what was used since stays", plural(unread))
}

/// A line on a terminal; nothing elsewhere.
fn progress() -> ProgressBar {
    let style = ProgressStyle::with_template("{spinner} {msg}  {human_pos}  {per_sec}");
    let bar = ProgressBar::new_spinner().with_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}
