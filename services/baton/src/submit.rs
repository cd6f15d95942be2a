//! `baton submit`: publishes requests and, if asked, follows them to their results.

use std::{
    io::{self, IsTerminal, Write},
    process::ExitCode,
};

use anyhow::{bail, ensure};
use baton_assembly::{room, telemetry};
use baton_bus::{
    clients::{
        admission::{Admission, Fate},
        following::{Following, News},
    },
    connection::pressure,
};
use baton_contract::{
    JobId, Name, causes,
    outcome::{Outcome, Refusal, Status, request_digest},
};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Map, Value, json};
use tracing::{Instrument, info_span};

use crate::{
    context::{PipelineArguments, TenantArguments},
    exit::{Exit, Usage},
    output::{note, stdout},
    prompts::PromptArguments,
};

/// Requests that are submitted before it is looked what became of them.
const LOOKED_AT: usize = 64;

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  baton submit 'What is the capital of France?' --stream
  baton submit --jsonl requests.jsonl --wait --json > results.jsonl
  echo 'Summarize: ...' | baton submit --id report-7 --lane batch
  baton submit 'Name a city.' --json-schema city.json --wait
  baton submit 'Is water wet?' --regex 'yes|no' --logprobs 5 --wait --json
  baton submit 'Name a river.' -n 3 --temperature 0.8 --wait
  baton result report-7 --wait

A line of a JSONL file is a request as published on the bus:
  {\"id\": \"q1\", \"messages\": [{\"role\": \"user\", \"content\": \"Hello\"}], \"max_tokens\": 20}

Where a request names its id, submitting it again is submitting it once: it gets the first one's result. Another request \
under the same id is refused; with --json that is an object without `status`, whose `error` has the code `conflict`. When the \
pipeline's queue is full, submitting waits for room. Without --wait it prints the ids of the requests that became jobs, and \
says why others did not; where no ingest worker takes them it says so, and the requests wait in the queue.

Exit code: 0; 3 if a request was refused, or its job is known not to have completed.")]
pub struct Arguments {
    #[command(flatten)]
    prompt: PromptArguments,
    #[command(flatten)]
    pipeline: PipelineArguments,
    /// A model of the pipeline; without it the pipeline's default
    #[arg(long, short)]
    model: Option<String>,
    #[command(flatten)]
    tenant: TenantArguments,
    /// Lane to submit on; without it the pipeline's first
    #[arg(long)]
    lane: Option<Name>,
    /// Wait for the results and print them
    #[arg(long, short)]
    wait: bool,
    /// Print the tokens as they come (one request only)
    #[arg(long, short)]
    stream: bool,
    /// Print JSON: ids when submitting, whole results when waiting, tokens when streaming; one object a line
    #[arg(long)]
    json: bool,
}

pub async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let tenant = &arguments.tenant.of(&arguments.pipeline)?;
    let requests = arguments.prompt.requests(arguments.model.as_deref())?;
    if arguments.stream && requests.len() != 1 {
        bail!(Usage("--stream takes one request; use --wait for many".into()));
    }
    let (plan, bus) = arguments.pipeline.join("baton-submit").await?;
    let lane = arguments.lane.clone().unwrap_or_else(|| plan.lanes[0].clone());
    ensure!(plan.lanes.contains(&lane), "the pipeline has no lane {lane}; it has {}", join(&plan.lanes));
    let telemetry = telemetry::start_quiet(&plan.telemetry, "baton-submit", "submit")?;
    let follow = arguments.wait || arguments.stream;
    // Before submitting, so that no token is missed.
    let mut following = if follow { Some(Following::new(&bus, tenant).await?) } else { None };

    let (mut waited, mut submitted) = (false, Vec::new());
    let mut admission = Admission::new(&bus, tenant, &|text| note!("{text}")).await?;
    let mut complete = true;
    for (number, request) in requests.iter().enumerate() {
        let span = info_span!("submit", job = %request.id, %tenant);
        let submit = || bus.submit(tenant, &lane, request.body.clone());
        // Every request names its id, so submitting it twice is submitting it once.
        let told = |error: &baton_bus::Error| {
            if !std::mem::replace(&mut waited, true) {
                note!("waiting: {}", room::shortage(room::of_store(&plan)).unwrap_or_else(|| causes(error)));
            }
        };
        pressure::patiently(submit, told).instrument(span).await?;
        let digest = request_digest(&request.body);
        if let Some(following) = &mut following {
            following.add(request.id.clone(), digest);
            continue;
        }
        submitted.push((request.id.clone(), digest));
        if submitted.len() == LOOKED_AT || number + 1 == requests.len() {
            complete &= tell_fates(&mut admission, std::mem::take(&mut submitted), arguments.json).await?;
        }
    }
    if let Some(mut following) = following {
        // A request that was submitted before may have its result already.
        following.look_up().await?;
        complete = tokio::select! {
            done = print_until_done(following, &arguments) => done?,
            died = bus.died() => bail!(died),
        };
    }
    telemetry.shutdown_within(telemetry::LAST_SPANS).await;
    Ok(Exit::of_jobs(complete))
}

/// Prints the ids of the requests that became jobs or wait for that, and what became of the others; returns whether there
/// are none of these.
async fn tell_fates(
    admission: &mut Admission<'_>,
    submitted: Vec<(JobId, String)>,
    json: bool,
) -> anyhow::Result<bool> {
    let ids: Vec<JobId> = submitted.iter().map(|(id, _)| id.clone()).collect();
    let fates = admission.of(submitted).await;
    let mut all = true;
    for id in ids {
        match fates.get(&id) {
            None | Some(Fate::Admitted) => print_id(&id, json)?,
            Some(Fate::Refused(refusal)) => {
                all = false;
                print_refusal(refusal, json)?;
            }
            Some(Fate::Ended(outcome)) => {
                all = false;
                if json {
                    print_outcome(&mut stdout(), outcome, json, None, false)?;
                } else {
                    print_error(outcome);
                }
            }
        }
    }
    Ok(all)
}

/// Names in a sentence.
pub fn join<'a>(names: impl IntoIterator<Item = &'a Name>) -> String {
    names.into_iter().map(Name::as_str).collect::<Vec<_>>().join(", ")
}

fn print_id(id: &JobId, json: bool) -> io::Result<()> {
    let mut out = stdout();
    if json { writeln!(out, "{}", json!({ "id": id })) } else { writeln!(out, "{id}") }
}

/// Prints what comes until every job has its result; returns whether all completed.
async fn print_until_done(mut following: Following, arguments: &Arguments) -> anyhow::Result<bool> {
    let total = following.pending();
    let bar = progress(total);
    // Of the first answer, each with its token or piece.
    let mut texts = Vec::new();
    let mut complete = true;
    while let Some(news) = following.next().await? {
        match news {
            News::Waits(news) => bar.suspend(|| note!("{news}")),
            News::Token { delta, .. } if arguments.stream => {
                let mut out = stdout();
                if arguments.json {
                    writeln!(out, "{}", serde_json::to_string(&delta)?)?;
                } else if delta.choice == 0 {
                    // Of several answers the others are printed when all have ended.
                    write!(out, "{}", delta.text)?;
                    texts.push(delta.text);
                }
                out.flush()?;
            }
            News::Restarted { delta, .. } if arguments.stream => {
                let mut out = stdout();
                if arguments.json {
                    writeln!(out, "{}", serde_json::to_string(&delta)?)?;
                } else if delta.choice == 0 {
                    texts.truncate(delta.index as usize);
                    writeln!(out)?;
                    note!("another worker took the answer over, which reads from here on:");
                    write!(out, "{}", texts.concat())?;
                }
                out.flush()?;
            }
            News::Token { .. } | News::Restarted { .. } => {}
            News::Ended(outcome) => {
                bar.inc(1);
                complete &= outcome.status == Status::Completed;
                let shown = arguments.stream.then(|| texts.concat());
                let shown = shown.as_ref();
                bar.suspend(|| print_outcome(&mut stdout(), &outcome, arguments.json, shown, total > 1))?;
            }
            News::Refused(refusal) => {
                bar.inc(1);
                complete = false;
                bar.suspend(|| print_refusal(&refusal, arguments.json))?;
            }
        }
    }
    bar.finish_and_clear();
    Ok(complete)
}

fn progress(total: usize) -> ProgressBar {
    if total < 2 || !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len} jobs  {per_sec}  {eta} left");
    ProgressBar::new(total as u64).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

/// Tells that a request became no job.
fn print_refusal(refusal: &Refusal, json: bool) -> io::Result<()> {
    if json {
        writeln!(stdout(), "{}", serde_json::to_string(refusal).map_err(io::Error::other)?)?;
    }
    note!("error: {}", refusal.error);
    Ok(())
}

/// Prints a result; `streamed` is the part of its text that is on the screen already.
pub fn print_outcome(
    out: &mut impl Write,
    outcome: &Outcome,
    json: bool,
    streamed: Option<&String>,
    many: bool,
) -> io::Result<()> {
    if json {
        return writeln!(out, "{}", serde_json::to_string(outcome).map_err(io::Error::other)?);
    }
    let rest = streamed.and_then(|shown| outcome.text.strip_prefix(shown.as_str())).unwrap_or(&outcome.text);
    if many {
        write!(out, "{}: ", outcome.id)?;
    }
    let shown = streamed.is_some_and(|shown| !shown.is_empty());
    print_answer(out, rest, &outcome.message, shown)?;
    for choice in outcome.choices.iter().skip(1) {
        writeln!(out, "--- answer {} of {} ---", choice.index + 1, outcome.choices.len())?;
        print_answer(out, &choice.text, &choice.message, false)?;
    }
    print_error(outcome);
    Ok(())
}

/// Prints an answer, and a line for each tool that it calls; `begun` is whether some of its text is on the screen already.
fn print_answer(out: &mut impl Write, text: &str, message: &Map<String, Value>, begun: bool) -> io::Result<()> {
    let calls = message.get("tool_calls").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let refusal = message.get("refusal").and_then(Value::as_str);
    if begun || !text.is_empty() || (calls.is_empty() && refusal.is_none()) {
        writeln!(out, "{text}")?;
    }
    if let Some(refusal) = refusal {
        writeln!(out, "refused: {refusal}")?;
    }
    for function in calls.iter().map(|call| &call["function"]) {
        let text = |name: &str| function[name].as_str().map_or_else(|| function[name].to_string(), str::to_owned);
        writeln!(out, "calls {} {}", text("name"), text("arguments"))?;
    }
    Ok(())
}

/// Tells why a job did not complete.
fn print_error(outcome: &Outcome) {
    if let Some(error) = &outcome.error {
        let status = format!("{:?}", outcome.status).to_lowercase();
        note!("error: job {} {status}: {error}", outcome.id);
    }
}
