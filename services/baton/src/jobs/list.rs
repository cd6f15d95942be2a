//! `baton jobs`: jobs by the time of their last change, read from their records backwards.

use std::{
    collections::VecDeque,
    io::{self, IsTerminal, Write},
    pin::pin,
    time::Duration,
};

use super::word;
use baton_terminal::table;

use crate::{
    context::{PipelineArguments, TenantArguments},
    output::{note, stdout},
};
use baton_bus::{Bus, inspect::summary::Summary};
use baton_contract::{Name, outcome::Usage, record::State};
use clap::ValueEnum;
use futures::{StreamExt, TryStreamExt};

/// Jobs whose results are looked up at a time.
const LOOK_UPS: usize = 32;
/// Followed jobs whose columns the next line's are like.
const WIDTHS: usize = 20;
/// Rows that make a table; the next ones make another.
const PAGE: usize = 1_000;

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  baton jobs
  baton jobs --status failed --since 1h --tenant acme
  baton jobs --status open --lane batch --json | jq -r .id | xargs baton cancel
  baton jobs --follow                                prints each job as it ends, until Ctrl-C

Lists the jobs of all tenants, unless --tenant, BATON_TENANT or the context names one, by the time of their last change, the \
latest first. It reads the records backwards in blocks, so it takes no more memory for a million jobs than for a thousand; \
--lane and --model look up each job that the other filters leave. A job that changes while the list is made may be left out. \
A job has a record from ingest on: what waits for ingest is in `baton top`.

With --json each line is an object: id, tenant, state, lane, model, accepted, changed, cancelled (whether that was asked \
for), tries, worker; of jobs that have ended also usage, total_ms, first_token_ms and error.")]
pub struct ListArguments {
    #[command(flatten)]
    pipeline: PipelineArguments,
    #[command(flatten)]
    tenant: TenantArguments,
    /// Only jobs in one of these states, separated by commas
    #[arg(long, value_name = "STATE", value_enum, value_delimiter = ',')]
    status: Vec<Wanted>,
    /// Only jobs of this lane
    #[arg(long, value_name = "NAME")]
    lane: Option<Name>,
    /// Only jobs of this model
    #[arg(long, short, value_name = "NAME")]
    model: Option<Name>,
    /// Only jobs that changed in this time, such as 1h or 30m
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    since: Option<Duration>,
    /// List the latest N; 0 lists all
    #[arg(long, short = 'n', value_name = "N", default_value_t = 50)]
    limit: usize,
    /// Print jobs as they end, from now on
    #[arg(long, short, conflicts_with_all = ["since", "limit"])]
    follow: bool,
    /// Print one JSON object per job
    #[arg(long)]
    json: bool,
}

/// A state to list jobs by.
#[derive(Clone, Copy, ValueEnum)]
enum Wanted {
    /// Not ended yet: accepted, prefill or decode
    Open,
    /// Completed, failed, cancelled or expired
    Ended,
    Accepted,
    Prefill,
    Decode,
    Completed,
    Failed,
    Cancelled,
    Expired,
}

impl Wanted {
    fn holds(self, state: State) -> bool {
        match self {
            Self::Open => !state.is_final(),
            Self::Ended => state.is_final(),
            Self::Accepted => state == State::Accepted,
            Self::Prefill => state == State::Prefill,
            Self::Decode => state == State::Decode,
            Self::Completed => state == State::Completed,
            Self::Failed => state == State::Failed,
            Self::Cancelled => state == State::Cancelled,
            Self::Expired => state == State::Expired,
        }
    }
}

fn cells(job: &Summary) -> Vec<String> {
    let name = |name: &Option<Name>| name.as_ref().map_or("-", Name::as_str).to_owned();
    let tokens = |count: fn(&Usage) -> u32| job.usage.as_ref().map_or("-".into(), |usage| count(usage).to_string());
    vec![
        job.id.to_string(),
        job.tenant.to_string(),
        word(job.state).to_owned(),
        name(&job.lane),
        name(&job.model),
        tokens(|usage| usage.prompt_tokens),
        tokens(|usage| usage.cached_tokens),
        tokens(|usage| usage.completion_tokens),
        job.total_ms.map_or("-".into(), table::ms),
        job.changed.clone(),
    ]
}

const HEADINGS: [&str; 10] =
    ["job", "tenant", "state", "lane", "model", "prompt", "cached", "output", "took", "last change"];

/// Lists jobs, or prints them as they end.
pub async fn list(arguments: ListArguments) -> anyhow::Result<()> {
    let tenant = arguments.tenant.named(&arguments.pipeline)?;
    let (_, bus) = arguments.pipeline.join("baton-jobs").await?;
    if arguments.follow {
        follow(&bus, tenant.as_ref(), &arguments).await
    } else {
        recent(&bus, tenant, &arguments).await
    }
}

impl ListArguments {
    /// Whether the job is wanted by what its record says.
    fn wants(&self, state: State) -> bool {
        self.status.is_empty() || self.status.iter().any(|wanted| wanted.holds(state))
    }

    /// Whether it is by what else is known.
    fn keeps(&self, row: &Summary) -> bool {
        let same = |wanted: &Option<Name>, found: &Option<Name>| wanted.is_none() || wanted == found;
        same(&self.lane, &row.lane) && same(&self.model, &row.model)
    }
}

async fn recent(bus: &Bus, tenant: Option<Name>, arguments: &ListArguments) -> anyhow::Result<()> {
    let jobs = bus.jobs().await?;
    // By the clock that stamps the changes.
    let oldest = match arguments.since {
        Some(since) => bus.clock().now_ms().await?.saturating_sub(since.as_millis() as u64),
        None => 0,
    };
    let limit = if arguments.limit == 0 { usize::MAX } else { arguments.limit };
    let (jobs, bus) = (&jobs, bus);
    let rows = bus
        .changes(tenant.as_ref())
        .await?
        .try_take_while(|entry| futures::future::ready(Ok(entry.changed_ms >= oldest)))
        .try_filter(|entry| futures::future::ready(arguments.wants(entry.record.state)))
        .map_ok(|entry| Summary::found(bus, jobs, entry))
        .try_buffered(LOOK_UPS)
        .try_filter(|row| futures::future::ready(arguments.keeps(row)))
        .take(limit);
    let mut rows = pin!(rows);
    let mut page = Vec::new();
    let mut some = false;
    while let Some(row) = rows.try_next().await? {
        some = true;
        if arguments.json {
            writeln!(stdout(), "{}", serde_json::to_string(&row)?)?;
            continue;
        }
        page.push(cells(&row));
        if page.len() == PAGE {
            write!(stdout(), "{}", table::render(&HEADINGS, &page))?;
            page.clear();
        }
    }
    if !page.is_empty() {
        write!(stdout(), "{}", table::render(&HEADINGS, &page))?;
    } else if !some && !arguments.json {
        note!("no such jobs; see `baton jobs --help` for what is listed");
    }
    Ok(())
}

async fn follow(bus: &Bus, tenant: Option<&Name>, arguments: &ListArguments) -> anyhow::Result<()> {
    let mut results = match tenant {
        Some(tenant) => bus.results(tenant).await?,
        None => bus.all_results().await?,
    };
    if io::stderr().is_terminal() {
        note!("jobs as they end; Ctrl-C stops");
    }
    let clock = bus.clock();
    // Lines come one by one, so their columns are as wide as the widest of the last ones.
    let mut last: VecDeque<Vec<String>> = VecDeque::new();
    loop {
        let outcome = results.next().await?;
        let row = Summary::ended(outcome, clock.now_ms().await?);
        if !arguments.wants(row.state) || !arguments.keeps(&row) {
            continue;
        }
        let mut out = stdout();
        if arguments.json {
            writeln!(out, "{}", serde_json::to_string(&row)?)?;
        } else {
            let first = last.is_empty();
            last.push_back(cells(&row));
            let drawn = table::render(&HEADINGS, last.make_contiguous());
            let lines: Vec<&str> = drawn.lines().collect();
            let shown = if first { &lines[..] } else { &lines[lines.len() - 1..] };
            writeln!(out, "{}", shown.join("\n"))?;
            if last.len() > WIDTHS {
                last.pop_front();
            }
        }
        out.flush()?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_is_open_or_ended_and_has_a_word_of_its_own() {
        for wanted in Wanted::value_variants() {
            let state =
                serde_json::from_value::<State>(serde_json::json!(wanted.to_possible_value().unwrap().get_name()));
            let Ok(state) = state else { continue };
            assert!(wanted.holds(state) && Wanted::Open.holds(state) != Wanted::Ended.holds(state));
            assert_eq!(serde_json::json!(state), word(state));
        }
    }
}
