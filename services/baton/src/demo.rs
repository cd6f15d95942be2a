//! `baton demo`: everything once, on a handful of prompts, with a table of where the time went.

mod ratios;

use std::{
    collections::HashMap,
    io::{self, Write},
    path::PathBuf,
};

use anyhow::{Context, bail, ensure};
use baton_assembly::{bus, pipeline::Pipeline, signals, telemetry};
use baton_bus::clients::following::{Following, News};
use baton_contract::{
    JobId, Name,
    outcome::{Outcome, Status, request_digest},
    request::{ChatMessage, Request},
};
use baton_provision::{
    home::{self, PipelineHome},
    processes::Logs,
};
use baton_terminal::table;
use baton_topology::Plan;
use tokio::time::Instant;

use crate::{
    exit,
    output::{note, stdout},
};

/// A long text of our own to summarize.
const DOCUMENT: &str = include_str!("../../../ARCHITECTURE.md");
const DOCUMENT_BYTES: usize = 6_000;

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  baton demo
  baton demo --json | jq .timings
  baton demo --ratios --plot ratios.svg

Brings what is missing (see `baton setup`), starts a broker, a local object store, one prefill and one decode process, \
submits five prompts, streams the answers and shows where each job's time went. Nothing is left running.

With --ratios six workers of the sim engine, which computes nothing and keeps the time of a large model, serve three loads \
(long generations, a mix, long prompts) with 2, 3 and 4 of them as prefill workers, through a real broker and store. That takes \
about 75 seconds.")]
pub struct Arguments {
    /// Print the results as JSON instead of the table, one a line
    #[arg(long)]
    json: bool,
    /// Show what the split of six workers into prefill and decode does to three kinds of load
    #[arg(long)]
    ratios: bool,
    /// Where the plot of --ratios goes, an SVG file
    #[arg(long, value_name = "FILE", default_value = "ratios.svg", requires = "ratios")]
    plot: PathBuf,
}

pub async fn run(arguments: Arguments) -> anyhow::Result<()> {
    if arguments.ratios {
        return ratios::run(arguments.json, &arguments.plot).await;
    }
    let started = Instant::now();
    let plan = Plan::load(None, [], &["gateway.replicas=0".to_owned()])?;
    let telemetry = telemetry::start_quiet(&plan.telemetry, "baton-demo", "demo")?;
    let directory = home::home()?.join("demo").join(std::process::id().to_string());
    let home = PipelineHome { directory: directory.clone() };
    // What a killed demo of the same process id may have left.
    let _ = std::fs::remove_dir_all(&directory);
    std::fs::create_dir_all(&directory).with_context(|| format!("cannot create {}", directory.display()))?;
    let log = directory.join("workers.log");

    let mut pipeline = Pipeline::start(plan, home, Logs::File(log.clone())).await?;
    let outcome = tokio::select! {
        outcome = show(&mut pipeline, arguments.json, started) => outcome,
        stopped = signals::asked_to_stop() => stopped.map_err(anyhow::Error::from).and(Err(exit::Interrupted.into())),
    };
    pipeline.stop().await?;
    telemetry.shutdown_within(telemetry::LAST_SPANS).await;
    match outcome {
        Ok(()) => std::fs::remove_dir_all(&directory).with_context(|| format!("cannot remove {}", directory.display())),
        Err(error) => Err(error.context(format!("the demo failed; the workers' log is {}", log.display()))),
    }
}

async fn show(pipeline: &mut Pipeline, json: bool, started: Instant) -> anyhow::Result<()> {
    note!("broker {}, store {}", pipeline.plan().broker.url, pipeline.plan().store.url);
    pipeline.ready().await?;
    note!("one ingest, one prefill and one decode process are ready after {:.1} s", started.elapsed().as_secs_f64());

    let tenant = Name::new("demo")?;
    let plan = pipeline.plan();
    let bus = bus::connect(plan, "baton-demo").await?;
    let mut following = Following::new(&bus, &tenant).await?;
    let mut order = Vec::new();
    for request in requests() {
        let id = JobId::new(request.id.as_deref().unwrap_or_default())?;
        let body = serde_json::to_vec(&request)?;
        following.add(id.clone(), request_digest(&body));
        bus.submit(&tenant, &plan.lanes[0], body).await?;
        order.push(id);
    }

    let mut lines: HashMap<JobId, Line> = HashMap::new();
    let mut outcomes: HashMap<JobId, Outcome> = HashMap::new();
    let mut first = true;
    while let Some(news) = following.next().await? {
        match news {
            News::Token { job, delta } => {
                if std::mem::take(&mut first) {
                    note!("the first token came after {:.1} s", started.elapsed().as_secs_f64());
                }
                let line = lines.entry(job.clone()).or_default();
                line.text.push_str(&delta.text);
                line.print(&job, json, false)?;
            }
            News::Ended(outcome) => {
                lines.remove(&outcome.id).unwrap_or_default().print(&outcome.id, json, true)?;
                outcomes.insert(outcome.id.clone(), *outcome);
            }
            News::Refused(refusal) => bail!(refusal.error),
            // Baton's own models say the same again.
            News::Waits(_) | News::Restarted { .. } => {}
        }
    }
    let outcomes: Vec<Outcome> = order.iter().filter_map(|id| outcomes.remove(id)).collect();
    for outcome in &outcomes {
        let error = outcome.error.as_ref().map_or("", |error| error.message.as_str());
        ensure!(outcome.status == Status::Completed, "job {} {:?}: {error}", outcome.id, outcome.status);
        if json {
            writeln!(stdout(), "{}", serde_json::to_string(outcome)?)?;
        }
    }
    if !json {
        write!(stdout(), "\n{}", table::render(&HEADINGS, &outcomes.iter().map(row).collect::<Vec<_>>()))?;
        writeln!(
            stdout(),
            "\nqueue: waiting for a worker, all stages; KV wait: the part of KV get that was not hidden; TTFT: time to first token, \
             from the broker's acceptance on"
        )?;
    }
    Ok(())
}

/// What of an answer is not yet on the screen.
#[derive(Default)]
struct Line {
    text: String,
}

impl Line {
    /// Prints whole lines of some length as they fill, and the rest at the end; answers run beside each other.
    fn print(&mut self, job: &JobId, json: bool, end: bool) -> io::Result<()> {
        const WIDTH: usize = 80;
        while self.text.len() > WIDTH || (end && !self.text.trim().is_empty()) {
            let limit = self.text.floor_char_boundary(WIDTH);
            let cut =
                self.text[..limit].rfind(char::is_whitespace).filter(|_| self.text.len() > WIDTH).unwrap_or(limit);
            let rest = self.text.split_off(cut.max(1));
            if !json {
                let words: Vec<&str> = self.text.split_whitespace().collect();
                writeln!(stdout(), "{job:>9} │ {}", words.join(" "))?;
            }
            self.text = rest;
        }
        Ok(())
    }
}

const HEADINGS: [&str; 12] = [
    "job",
    "prompt",
    "queue",
    "prefill",
    "KV put",
    "KV get",
    "KV wait",
    "TTFT",
    "tokens",
    "tokens/s",
    "KV raw",
    "KV stored",
];

fn row(outcome: &Outcome) -> Vec<String> {
    let timings = &outcome.timings;
    let queue = timings.ingest_queue_ms + timings.prefill_queue_ms + timings.decode_queue_ms;
    let generated = outcome.usage.completion_tokens;
    let speed = if timings.decode_ms > 0.0 {
        format!("{:.1}", f64::from(generated.saturating_sub(1)) / timings.decode_ms * 1e3)
    } else {
        "-".into()
    };
    vec![
        outcome.id.to_string(),
        outcome.usage.prompt_tokens.to_string(),
        table::ms(queue),
        table::ms(timings.prefill_ms),
        table::ms(timings.kv_put_ms),
        table::ms(timings.kv_get_ms),
        table::ms(timings.kv_wait_ms),
        table::ms(timings.first_token_ms),
        generated.to_string(),
        speed,
        table::bytes(timings.kv_raw_bytes),
        table::bytes(timings.kv_stored_bytes),
    ]
}

fn requests() -> Vec<Request> {
    let document = &DOCUMENT[..DOCUMENT.floor_char_boundary(DOCUMENT_BYTES)];
    let summary = format!("Summarize this text in two sentences:\n\n{document}");
    [
        ("capital", "What is the capital of France?".to_owned(), 48),
        ("sea", "Write a short poem about the sea at night.".to_owned(), 64),
        ("summary", summary, 64),
        ("primes", "Write a Python function that tells whether a number is prime.".to_owned(), 96),
        ("relay", "Explain in one sentence how a relay race works.".to_owned(), 64),
    ]
    .into_iter()
    .map(|(id, content, max_tokens)| Request {
        id: Some(id.into()),
        messages: Some(vec![ChatMessage::text("user", content)]),
        max_tokens: Some(max_tokens),
        ..Request::default()
    })
    .collect()
}
