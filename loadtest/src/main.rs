//! `loadtest`: the command line of the load client, of its comparisons, of the side-by-side runners, of the prefix
//! replay and of the chaos run.
#![forbid(unsafe_code)]
// These panic where nobody reads any more.
#![warn(clippy::print_stderr, clippy::print_stdout)]

mod command;

use std::{
    io::{self, IsTerminal, Write},
    path::PathBuf,
    process::ExitCode,
};

use anyhow::Context;
use baton_contract::causes;
use baton_loadtest::{chaos, peers, prefixes};
use clap::{Parser, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};

/// Load for Baton pipelines and OpenAI-compatible servers, Baton's engine beside llama.cpp's, and prefix caches on a trace.
#[derive(Parser)]
#[command(name = "loadtest", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Send requests at a rate, as recorded, or so many at a time; print throughput, latencies and goodput
    Run(command::run::Arguments),
    /// Change the load's shape under a planner; print how long it takes until the workers fit it
    Shift(command::shift::Arguments),
    /// Measure every split of some workers under each of the named loads, beside what `baton plan` predicts
    Splits(command::splits::Arguments),
    /// Put two targets under the same load in turn and print how they differ
    Compare(command::compare::Arguments),
    /// Run our engine and llama.cpp's in turn and print the speeds of both and their ratio
    Peers(PeersArguments),
    /// Bring vLLM or llama.cpp's server, run it behind Baton and straight, kill it; print speeds, losses and ratios
    Engines(command::engines::Arguments),
    /// Replay a trace's prompts through the index of a worker's KV cache and print the hit rate by cache size
    Prefixes(PrefixesArguments),
    /// Run a pipeline of real processes, disturb it in every way, and audit that nothing is lost, duplicated or changed
    Chaos(ChaosArguments),
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

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  loadtest prefixes --trace conversation.jsonl
  loadtest prefixes --trace conversation.jsonl --cache 10GB,100GB,1TB,5000blocks --bytes-per-token 6000 --plot hits.svg

A line of the trace is a request as JSON: input_length in tokens, and hash_ids, the chained hashes of the prompt's blocks, \
so that equal ids mean equal prefixes (the format of the Mooncake traces). Requests are taken in the file's order, one after \
another. Each hits the blocks from its first up to the first that is not cached; then all its blocks become the most recently \
used, and the least recently used ones go. No model runs.")]
struct PrefixesArguments {
    #[command(flatten)]
    options: prefixes::Options,
    /// Write a plot of the hit rates to this SVG file
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
    /// Print the report as one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  loadtest chaos --seed 7
  loadtest chaos --jobs 20000 --minutes 30 --json > chaos.json
  loadtest chaos --engine real --jobs 200 --minutes 10
  loadtest chaos --only copies,consumers,purge --fault-every 5
  loadtest chaos --cluster --only freeze-leader,freeze-follower,copies --fault-every 10

It starts a broker, workers and gateways of its own, answers each distinct request once undisturbed, then submits jobs while \
they are killed, stopped and restarted, connections fail, clocks are wrong, and broker and store lose and damage what they hold. \
A seed decides requests, send times and faults. Nothing of it touches pipelines that run on the machine.

After a lost queue of admitted jobs the run does what an operator would: `baton reconcile`. After lost requests, records or a \
broker that lost everything it sends again what has no result. Each must still end once with the same tokens. After any other \
fault nobody does anything.

Exit status: 0 if the audit holds, 1 otherwise.")]
struct ChaosArguments {
    #[command(flatten)]
    options: chaos::Options,
    /// Print the report as one JSON object, with every violation
    #[arg(long)]
    json: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Command::Run(arguments) => command::run::run(arguments).await,
        Command::Shift(arguments) => command::shift::run(arguments).await,
        Command::Splits(arguments) => command::splits::run(arguments).await,
        Command::Compare(arguments) => command::compare::run(arguments).await,
        Command::Engines(arguments) => command::engines::run(arguments).await,
        Command::Peers(arguments) => peers(arguments).await.map(|()| true),
        Command::Prefixes(arguments) => replay(&arguments).map(|()| true),
        Command::Chaos(arguments) => disturb(&arguments).await,
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            // Where it is closed, nobody is left to tell.
            let _ = writeln!(io::stderr(), "error: {}", causes(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

async fn peers(arguments: PeersArguments) -> anyhow::Result<()> {
    let bar = progress_bar("{bar:30} {msg}  {elapsed}");
    let report = baton_loadtest::peers::run(&arguments.options, |turn| {
        bar.set_length(turn.total.into());
        bar.set_position(turn.ended.into());
        bar.set_message(format!("round {}: {}", turn.round, turn.engine));
    })
    .await?;
    bar.finish_and_clear();
    let text = if arguments.json { serde_json::to_string(&report)? + "\n" } else { report.markdown() };
    command::print(&text)
}

fn replay(arguments: &PrefixesArguments) -> anyhow::Result<()> {
    let report = prefixes::run(&arguments.options)?;
    if let Some(path) = &arguments.plot {
        std::fs::write(path, prefixes::svg(&report))
            .with_context(|| format!("cannot write the plot {}", path.display()))?;
    }
    let text = if arguments.json { serde_json::to_string(&report)? + "\n" } else { report.markdown() };
    command::print(&text)
}

/// Whether the audit holds.
async fn disturb(arguments: &ChaosArguments) -> anyhow::Result<bool> {
    let bar = progress_bar("{bar:30} {pos}/{len} ended, {msg}  {elapsed}");
    let running = chaos::run(&arguments.options, |progress| {
        bar.set_length(progress.total as u64);
        bar.set_position(progress.ended as u64);
        bar.set_message(format!("{}, {}/{} faults", progress.phase, progress.faults, progress.faults_planned));
    });
    let report = tokio::select! {
        report = running => report?,
        // Whoever gives up leaves no process behind.
        _ = tokio::signal::ctrl_c() => anyhow::bail!("interrupted"),
    };
    bar.finish_and_clear();
    let text = if arguments.json { serde_json::to_string(&report)? + "\n" } else { report.plain() };
    command::print(&text)?;
    Ok(report.audit.holds())
}

fn progress_bar(template: &str) -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template(template);
    ProgressBar::new(0).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}
