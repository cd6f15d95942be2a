//! `loadtest`: the command line of the load client and of the side-by-side runner.
#![forbid(unsafe_code)]

use std::{
    env,
    io::{self, IsTerminal, Write},
    path::PathBuf,
    process::ExitCode,
};

use anyhow::Context;
use baton_bus::Bus;
use baton_contract::{Name, subject::Layout};
use baton_loadtest::{Options, Report, peers, table};
use clap::{Parser, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Deserialize;

/// Open-loop load for a running Baton pipeline, and its engine beside llama.cpp's.
#[derive(Parser)]
#[command(name = "loadtest", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Send random prompts at a rate and print throughput, latency percentiles and goodput
    Run(RunArguments),
    /// Run our engine and llama.cpp's in turn and print the speeds of both and their ratio
    Peers(PeersArguments),
}

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  loadtest run --rate 2 --jobs 60 --slo-ttft 500
  loadtest run --rate 10 --jobs 500 --warmup 20 --prompt-tokens lognormal:300:0.8 --output-tokens uniform:16:256
  loadtest run --nats nats://broker:4222 --model sim --rate 100 --jobs 5000 --json > run.json

Send times are drawn beforehand, no request waits for another's answer, and latencies count from the intended send time.

Exit status: 0 if any request completed, 1 otherwise.")]
struct RunArguments {
    #[command(flatten)]
    options: Options,
    /// NATS URLs of the broker, separated by commas; without it the running embedded pipeline of this machine
    #[arg(long, value_name = "URL", env = "BATON__BROKER__URL")]
    nats: Option<String>,
    /// A NATS credentials file (JWT and seed)
    #[arg(long, value_name = "FILE", env = "BATON__BROKER__CREDENTIALS")]
    credentials: Option<PathBuf>,
    /// The word under which the pipeline's subjects stand
    #[arg(long, default_value = "baton", env = "BATON__ROOT")]
    root: Name,
    /// Print the whole report as one JSON object
    #[arg(long, conflicts_with = "markdown")]
    json: bool,
    /// Print a Markdown table with the run as its one row
    #[arg(long)]
    markdown: bool,
}

#[derive(clap::Args)]
#[command(after_help = "\
Example:
  cargo build --release -p baton -p baton-loadtest
  target/release/loadtest peers --llama-bench bin/llama-bench --llama-batched-bench bin/llama-batched-bench \
    --model SmolLM2-135M-Instruct.Q4_1.gguf --peer-model q4_0.gguf,q8_0.gguf --threads 2 --rounds 3

Each round lets `baton bench engine` run, then llama.cpp with each of its models; shown are tokens per second, the medians \
of the rounds. Nothing else should run meanwhile: llama.cpp's threads wait for each other at every step.")]
struct PeersArguments {
    #[command(flatten)]
    options: peers::Options,
    /// Print the report as one JSON object, with the figures of every round
    #[arg(long)]
    json: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Command::Run(arguments) => run(arguments).await.map(|report| report.completed > 0),
        Command::Peers(arguments) => compare(arguments).await.map(|()| true),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: RunArguments) -> anyhow::Result<Report> {
    // What the environment calls embedded is the same as nothing here.
    let url = match arguments.nats.filter(|url| url != "embedded") {
        Some(url) => url,
        None => running_url(&arguments.root)?,
    };
    let bus = Bus::connect(baton_bus::Options {
        url,
        credentials: arguments.credentials,
        name: "baton-loadtest".into(),
        layout: Layout::new(arguments.root),
    })
    .await?;
    let bar = progress_bar("{bar:30} {pos}/{len} ended, {msg}  {elapsed}");
    let report = baton_loadtest::run(&bus, &arguments.options, |progress| {
        bar.set_length(progress.total as u64);
        bar.set_position(progress.ended as u64);
        bar.set_message(format!("{} under way", progress.sent - progress.ended));
    })
    .await?;
    bar.finish_and_clear();
    let text = if arguments.json {
        serde_json::to_string(&report)? + "\n"
    } else if arguments.markdown {
        table::MARKDOWN_HEAD.to_owned() + &table::markdown_row(&report)
    } else {
        table::plain(&report)
    };
    io::stdout().write_all(text.as_bytes()).context("cannot print the report")?;
    Ok(report)
}

async fn compare(arguments: PeersArguments) -> anyhow::Result<()> {
    let bar = progress_bar("{bar:30} {msg}  {elapsed}");
    let report = peers::run(&arguments.options, |turn| {
        bar.set_length(turn.total.into());
        bar.set_position(turn.ended.into());
        bar.set_message(format!("round {}: {}", turn.round, turn.engine));
    })
    .await?;
    bar.finish_and_clear();
    let text = if arguments.json { serde_json::to_string(&report)? + "\n" } else { report.markdown() };
    io::stdout().write_all(text.as_bytes()).context("cannot print the report")
}

fn progress_bar(template: &str) -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template(template);
    ProgressBar::new(0).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

/// What `baton up` and `baton demo` tell other processes of this machine.
#[derive(Deserialize)]
struct Running {
    nats_url: String,
}

/// The broker of the embedded pipeline that runs under a root, from the file in Baton's own folder.
fn running_url(root: &Name) -> anyhow::Result<String> {
    let variable = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let home = variable("BATON_HOME")
        .or_else(|| variable("XDG_DATA_HOME").filter(|path| path.is_absolute()).map(|data| data.join("baton")))
        .or_else(|| variable("HOME").map(|home| home.join(".local/share/baton")))
        .unwrap_or_else(|| PathBuf::from(".baton"));
    let path = home.join("pipelines").join(root.as_str()).join("running.json");
    let missing = || {
        format!(
            "no embedded pipeline runs under root {root} (there is no {}); start one with `baton up`, or name a broker \
             with --nats URL",
            path.display()
        )
    };
    let text = std::fs::read(&path).with_context(missing)?;
    let running: Running = serde_json::from_slice(&text).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(running.nats_url)
}
