//! `baton batch`: files of requests, answered straight over the bus.

mod pace;
mod progress;

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
};

use anyhow::{Context, bail, ensure};
use baton_assembly::{room, signals, telemetry};
use baton_batch::{Answered, Batch, Options, Settings, Sink, Source, count, read};
use baton_contract::Name;
use tokio::{task::spawn_blocking, time::Instant};

use self::progress::Progress;
use crate::{
    context::{PipelineArguments, TenantArguments},
    exit::{Exit, Usage},
    output::{note, stdout},
    submit::join,
};

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  baton batch run requests.jsonl answers.jsonl")]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Run every line of a file that has no answer yet, and add the answers to another file
    Run(RunArguments),
}

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  baton batch run requests.jsonl answers.jsonl
  baton batch run requests.jsonl answers.jsonl --model smollm2-135m --lane batch --in-order
  baton batch run requests.jsonl answers.jsonl --retry-failed
  generate | baton batch run - - --quiet | jq -r .response.body.choices[0].message.content

A line of IN is one of OpenAI's batches:
  {\"custom_id\": \"q1\", \"method\": \"POST\", \"url\": \"/v1/chat/completions\", \"body\": {\"model\": \"smollm2-135m\", \
\"messages\": [{\"role\": \"user\", \"content\": \"Hello\"}], \"max_tokens\": 20}}
with the url /v1/chat/completions or /v1/completions; or a request as `baton submit --jsonl` takes it. No gateway is needed.

A line of OUT is what OpenAI's output file has: id, custom_id, response (status_code, request_id, body) and error, which is \
null where there is an answer and else has code, message and param; so OUT holds the lines that failed, too. The answer to a \
request of Baton's own kind is its result as `baton submit --json` prints it.

Every line becomes a job whose id follows from its custom_id and what it asks for. So the command may be stopped or killed at \
any time and run again with the same files: what OUT has is not run again, what has ended meanwhile is only collected (results \
are kept for results.keep, a week), jobs on their way are waited for, and the rest is sent. Of each line it keeps less than \
100 bytes in memory, and the open jobs. Where OUT has the answer to another line of the same custom_id, or IN has it twice, the \
later line is told as an error without a custom_id. --salt makes new jobs of the same lines; take another OUT for them.

Ctrl-C ends it at once; jobs that were sent go on, and the next run collects them. With --json it prints one object in the end \
(on standard error if OUT is -): lines, answered_before, failed_before, completed, failed, collected, sent, prompt_tokens, \
cached_tokens, completion_tokens, kv_saved_bytes, seconds, interrupted.

Exit code: 0 if every line of IN is answered, 3 if a line of OUT is an error, 130 after Ctrl-C, 1 after another error.")]
struct RunArguments {
    /// The requests, a line each; - is standard input
    #[arg(value_name = "IN")]
    input: PathBuf,
    /// The answers, a line each, added to what is there; - is standard output
    #[arg(value_name = "OUT")]
    output: PathBuf,
    #[command(flatten)]
    pipeline: PipelineArguments,
    #[command(flatten)]
    tenant: TenantArguments,
    /// Lane of the lines that name none; without it the pipeline's last, the least urgent
    #[arg(long, value_name = "NAME")]
    lane: Option<Name>,
    /// The model that answers, whatever the lines name
    #[arg(long, short, value_name = "NAME")]
    model: Option<Name>,
    /// Write the answers in the order of the requests
    #[arg(long)]
    in_order: bool,
    /// Take the errors out of OUT, and run their lines again; jobs that failed get new ids
    #[arg(long)]
    retry_failed: bool,
    /// Jobs that may be open at a time
    #[arg(long, value_name = "N", default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    concurrency: u32,
    /// Makes other jobs of the same lines, so that nothing is taken from an earlier run
    #[arg(long, value_name = "TEXT", default_value = "")]
    salt: String,
    /// No progress, only errors
    #[arg(long, short)]
    quiet: bool,
    /// Print a summary as JSON in the end
    #[arg(long)]
    json: bool,
}

pub async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    match arguments.command {
        Command::Run(arguments) => answer(arguments).await,
    }
}

/// Answers on standard output.
struct Stdout;

impl Sink for Stdout {
    fn add(&mut self, lines: &[u8]) -> io::Result<()> {
        let mut out = stdout();
        out.write_all(lines)?;
        out.flush()
    }
}

async fn sink(arguments: &RunArguments) -> anyhow::Result<(Box<dyn Sink>, Answered)> {
    if arguments.output == Path::new("-") {
        return Ok((Box::new(Stdout), Answered::default()));
    }
    let (path, again) = (arguments.output.clone(), arguments.retry_failed);
    let (file, answered) = spawn_blocking(move || baton_batch::open(&path, again)).await??;
    Ok((Box::new(file), answered))
}

async fn answer(arguments: RunArguments) -> anyhow::Result<ExitCode> {
    let started = Instant::now();
    let stdin = arguments.input == Path::new("-");
    if !stdin && same_file(&arguments.input, &arguments.output) {
        bail!(Usage("IN and OUT are the same file: choose another for the answers".into()));
    }
    let (plan, bus) = arguments.pipeline.join("baton-batch").await?;
    let tenant = arguments.tenant.of(&arguments.pipeline)?;
    let lane = arguments.lane.clone().or_else(|| plan.lanes.last().cloned()).context("the pipeline has no lanes")?;
    ensure!(plan.lanes.contains(&lane), "the pipeline has no lane {lane}; it has {}", join(&plan.lanes));
    if let Some(model) = &arguments.model {
        let models = plan.models.keys();
        ensure!(plan.models.contains_key(model), "the pipeline has no model {model}; it has {}", join(models));
    }
    let engines = match &arguments.model {
        Some(model) => plan.engines().fixed(model),
        None => plan.engines(),
    };
    let (salt, model) = (arguments.salt.clone(), arguments.model.clone());
    let settings = Settings { salt, model, lane, lanes: plan.lanes.clone(), engines };
    let total = if stdin { None } else { Some(count(&arguments.input).await?) };
    let lines = read(if stdin { Source::Stdin } else { Source::File(&arguments.input) }, settings)?;
    let (sink, answered) = sink(&arguments).await?;

    let telemetry = telemetry::start_quiet(&plan.telemetry, "baton-batch", "batch")?;
    let (connection, place) = (bus.clone(), room::of_store(&plan));
    let options = Options {
        bus,
        tenant,
        concurrency: arguments.concurrency as usize,
        retry_failed: arguments.retry_failed,
        in_order: arguments.in_order,
        // The store's disk may be the broker's, too.
        shortage: Arc::new(move || room::shortage(&place)),
    };
    let mut batch = Batch::new(options, sink, answered).await?;
    let mut progress = Progress::new(arguments.quiet, total);
    let interrupted = tokio::select! {
        ran = batch.run(lines, &mut progress) => ran.map(|()| false).map_err(anyhow::Error::from),
        asked = signals::asked_to_stop() => asked.map(|()| true).map_err(anyhow::Error::from),
        died = connection.died() => Err(died.into()),
    };
    progress.end();
    telemetry.shutdown_within(telemetry::LAST_SPANS).await;
    let hint = "run the same command again to go on; jobs that were sent keep running";
    let interrupted = interrupted.context(hint)?;
    let figures = batch.figures();
    let took = started.elapsed();
    if arguments.json {
        let mut object = serde_json::to_value(figures)?;
        object["seconds"] = took.as_secs_f64().into();
        object["interrupted"] = interrupted.into();
        if arguments.output == Path::new("-") {
            note!("{object}");
        } else {
            writeln!(stdout(), "{object}")?;
        }
    } else if !arguments.quiet {
        note!("{}", progress::summary(figures, took));
    }
    if interrupted {
        note!("stopped with {} jobs open: {hint}", batch.open());
        return Ok(Exit::Interrupted.into());
    }
    Ok(Exit::of_jobs(figures.failed + figures.failed_before == 0))
}

fn same_file(input: &Path, output: &Path) -> bool {
    matches!((input.canonicalize(), output.canonicalize()), (Ok(input), Ok(output)) if input == output)
}
