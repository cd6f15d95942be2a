//! `loadtest engines`.

use std::io::{self, Write};

use baton_loadtest::engines::{self, Heard, Options, Row};

use crate::progress_bar;

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  loadtest engines llama.cpp
  loadtest engines vllm throughput ttft limits --rounds 7 --seconds 60
  taskset -c 1 target/release/loadtest engines vllm kills batch --engine-cores 0
  loadtest engines vllm apart --jobs 300 --json > apart.json

It brings the engine with pip (Python 3, 4 GB for vLLM) and starts it on the CPU with the default model, and before it a pipeline of \
its own; nothing of it touches pipelines that run on the machine. vLLM's threads wait busily for each other: let nothing else run. \
Shown are rows for loadtest/RESULTS.md, and on standard error each finding as soon as it is there.

Exit status: 0 if all that is judged holds, 1 otherwise.")]
pub struct Arguments {
    #[command(flatten)]
    options: Options,
    /// Print the report as one JSON object
    #[arg(long)]
    json: bool,
}

/// Whether all holds.
pub async fn run(arguments: Arguments) -> anyhow::Result<bool> {
    let bar = progress_bar("{spinner} {msg}  {elapsed}");
    let running = engines::run(&arguments.options, |heard| match heard {
        Heard::Doing(what) => bar.set_message(what),
        // A run is long: what it has found is not to be lost with it.
        Heard::Found(Row { what, found, .. }) => bar.suspend(|| {
            let _ = writeln!(io::stderr(), "{what}: {found}");
        }),
    });
    let report = tokio::select! {
        report = running => report?,
        // Whoever gives up leaves no engine behind.
        _ = tokio::signal::ctrl_c() => anyhow::bail!("interrupted"),
    };
    bar.finish_and_clear();
    let text = if arguments.json { serde_json::to_string(&report)? + "\n" } else { report.markdown() };
    super::print(&text)?;
    Ok(report.holds())
}
