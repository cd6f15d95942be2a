//! `baton dlq`: what no worker could finish, and what becomes of it.

use std::io::Write;

use anyhow::{Context, bail};
use baton_bus::{
    Bus,
    repair::{
        dead::{Letter, Opened},
        described::{Content, Described},
        letter_id::LetterId,
        retry::Retried,
    },
};
use baton_contract::{JobId, Name, causes, subject::Stage};
use baton_terminal::table;
use serde::Serialize;
use serde_json::json;

use crate::{
    context::{PipelineArguments, TenantArguments},
    output::{note, stdout},
};

#[derive(clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// List the dead letters, the latest first
    Ls(ListArguments),
    /// Show a dead letter: cause, attempts, trace, and the request it came from
    Show(ShowArguments),
    /// Try a dead letter again, as a job of its own with the same seed
    Retry(ChoiceArguments),
    /// Remove a dead letter for good; its job's failed result stays
    Drop(ChoiceArguments),
}

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  baton dlq ls --limit 20
  baton dlq ls --json | jq -r 'select(.code == \"internal\") | .id'

A letter is named STAGE.TENANT.JOB after the job that failed, or STAGE.NUMBER if no worker could tell whose message it is. \
With --json each line is an object: id, stage, tenant, job, code, message, attempts, worker, trace_id, subject, queued, \
died, bytes.")]
struct ListArguments {
    #[command(flatten)]
    pipeline: PipelineArguments,
    /// List only the latest N
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Print one JSON object per letter
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  baton dlq show prefill.acme.report-7
  baton dlq show report-7 --tenant acme --json

The request is shown as it was sent if ingest gave up; later stages have token ids instead of text. It can be submitted as \
it is, under another id.")]
struct ShowArguments {
    /// A letter as `baton dlq ls` names it, or the id of a job
    id: Named,
    #[command(flatten)]
    pipeline: PipelineArguments,
    #[command(flatten)]
    tenant: TenantArguments,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  baton dlq retry report-7                   prints the new job's id, report-7-retry-1
  baton dlq retry --all --json
  baton dlq drop prefill.acme.report-7

A job that failed has its one result and keeps it, so a letter that is retried becomes a new job; follow it with `baton \
result NEW --tenant TENANT --wait`. A letter without a job is put back into its queue. Exit code: 0 if all went well, 1 \
otherwise; letters that could not be retried stay.")]
struct ChoiceArguments {
    /// A letter as `baton dlq ls` names it, or the id of a job
    #[arg(required_unless_present = "all")]
    id: Option<Named>,
    /// All letters there are
    #[arg(long, conflicts_with = "id")]
    all: bool,
    #[command(flatten)]
    pipeline: PipelineArguments,
    #[command(flatten)]
    tenant: TenantArguments,
    /// Print one JSON object per letter
    #[arg(long)]
    json: bool,
}

/// What a user calls a letter.
#[derive(Clone, Debug)]
enum Named {
    Letter(LetterId),
    Job(JobId),
}

impl std::str::FromStr for Named {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // Ids of jobs have no dots.
        if text.contains('.') {
            text.parse().map(Self::Letter).map_err(|error: baton_bus::repair::letter_id::IdError| causes(&error))
        } else {
            JobId::new(text).map(Self::Job).map_err(|error| causes(&error))
        }
    }
}

pub async fn run(arguments: Arguments) -> anyhow::Result<()> {
    match arguments.command {
        Command::Ls(arguments) => list(arguments).await,
        Command::Show(arguments) => show(arguments).await,
        Command::Retry(arguments) => each(arguments, Deed::Retry).await,
        Command::Drop(arguments) => each(arguments, Deed::Drop).await,
    }
}

async fn connect(pipeline: &PipelineArguments) -> anyhow::Result<Bus> {
    Ok(pipeline.join("baton-dlq").await?.1)
}

fn code(row: &Described) -> String {
    json!(row.code).as_str().unwrap_or_default().to_owned()
}

async fn list(arguments: ListArguments) -> anyhow::Result<()> {
    let letters = connect(&arguments.pipeline).await?.letters().all().await?;
    let rows: Vec<Described> =
        letters.iter().rev().take(arguments.limit.unwrap_or(usize::MAX)).map(Described::of).collect();
    let mut out = stdout();
    if arguments.json {
        for row in rows {
            writeln!(out, "{}", serde_json::to_string(&row)?)?;
        }
        return Ok(());
    }
    let cells = |row: &Described| {
        let worker = row.worker.clone().unwrap_or_else(|| "-".into());
        vec![row.id.clone(), code(row), row.attempts.to_string(), worker, table::bytes(row.bytes), row.died.clone()]
    };
    let cells: Vec<_> = rows.iter().map(cells).collect();
    write!(out, "{}", table::render(&["letter", "cause", "attempts", "worker", "size", "died"], &cells))?;
    if letters.len() > rows.len() {
        writeln!(out, "and {} more", letters.len() - rows.len())?;
    }
    Ok(())
}

/// A letter, by whatever name.
async fn find(bus: &Bus, named: &Named, tenant: &Name) -> anyhow::Result<Opened> {
    let ids: Vec<LetterId> = match named {
        Named::Letter(id) => vec![id.clone()],
        Named::Job(job) => {
            let of = |stage| LetterId::Job { stage, tenant: tenant.clone(), job: job.clone() };
            Stage::ALL.map(of).to_vec()
        }
    };
    for id in &ids {
        if let Some(opened) = bus.letters().open(id).await? {
            return Ok(opened);
        }
    }
    match named {
        Named::Letter(id) => bail!("there is no dead letter {id}; `baton dlq ls` lists those there are"),
        Named::Job(job) => bail!(
            "job {job} of tenant {tenant} left no dead letter; `baton dlq ls` lists those there are, --tenant names another tenant"
        ),
    }
}

#[derive(Serialize)]
struct Shown {
    #[serde(flatten)]
    row: Described,
    request: Content,
}

async fn show(arguments: ShowArguments) -> anyhow::Result<()> {
    let bus = connect(&arguments.pipeline).await?;
    let opened = find(&bus, &arguments.id, &arguments.tenant.of(&arguments.pipeline)?).await?;
    let shown = Shown { row: Described::of(&opened.letter), request: Content::of(&opened) };
    let mut out = stdout();
    if arguments.json {
        writeln!(out, "{}", serde_json::to_string(&shown)?)?;
        return Ok(());
    }
    let Shown { row, request } = shown;
    writeln!(out, "letter    {}", row.id)?;
    if let (Some(job), Some(tenant)) = (&row.job, &row.tenant) {
        writeln!(out, "job       {job} of tenant {tenant}")?;
    }
    writeln!(out, "cause     {}: {}", code(&row), row.message)?;
    writeln!(out, "attempts  {}", row.attempts)?;
    writeln!(out, "worker    {}", row.worker.as_deref().unwrap_or("-"))?;
    writeln!(out, "trace     {}", row.trace_id.as_deref().unwrap_or("-"))?;
    writeln!(out, "queued    {}", row.queued)?;
    writeln!(out, "died      {}", row.died)?;
    writeln!(out, "subject   {}", row.subject)?;
    writeln!(out, "size      {}", table::bytes(row.bytes))?;
    match request {
        Content::Text(text) => writeln!(out, "request   {text}")?,
        request => writeln!(out, "request   {}", serde_json::to_string(&request)?)?,
    }
    Ok(())
}

#[derive(Clone, Copy)]
enum Deed {
    Retry,
    Drop,
}

async fn each(arguments: ChoiceArguments, deed: Deed) -> anyhow::Result<()> {
    let bus = connect(&arguments.pipeline).await?;
    let letters = match &arguments.id {
        Some(named) => vec![find(&bus, named, &arguments.tenant.of(&arguments.pipeline)?).await?.letter],
        None => bus.letters().all().await?,
    };
    let mut failed = 0;
    for letter in &letters {
        match act(&bus, letter, deed, arguments.json).await {
            Ok(line) => writeln!(stdout(), "{line}")?,
            Err(error) if arguments.all => {
                failed += 1;
                note!("error: {}", causes(error.as_ref()));
            }
            Err(error) => return Err(error),
        }
    }
    if failed > 0 {
        bail!("{failed} of {} dead letters stay", letters.len());
    }
    Ok(())
}

/// Does it, and says what came of it.
async fn act(bus: &Bus, letter: &Letter, deed: Deed, json: bool) -> anyhow::Result<String> {
    let id = &letter.id;
    Ok(match deed {
        Deed::Drop => {
            let dropped = bus.letters().remove(letter).await?;
            if json { json!({ "letter": id.to_string(), "dropped": dropped }).to_string() } else { id.to_string() }
        }
        Deed::Retry => {
            let opened = bus.letters().open(id).await?;
            let opened = opened.with_context(|| format!("the dead letter {id} is gone: somebody else was faster"))?;
            match bus.letters().retry(opened).await? {
                Retried::Job(job) if json => json!({ "letter": id.to_string(), "job": job }).to_string(),
                Retried::Job(job) => job.to_string(),
                Retried::Message if json => json!({ "letter": id.to_string(), "job": null }).to_string(),
                Retried::Message => format!("{id} is in its queue again"),
            }
        }
    })
}
