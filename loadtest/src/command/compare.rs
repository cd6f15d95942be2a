//! `loadtest compare`.

use std::path::PathBuf;

use baton_loadtest::compare::{self, CompareOptions};

use super::run::save;
use crate::progress_bar;

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  loadtest compare pipelines/generation-heavy.toml pipelines/prompt-heavy.toml --workload long --request-rate 2 --num-prompts 60
  loadtest compare bus: openai:http://127.0.0.1:8000?model=m --concurrency 16 --duration 30 --rounds 5 --html compare.html

Each round puts both targets under the same load, one after the other; who begins changes from round to round. Shown are \
the means of the rounds, the mean of the differences within a round with its 95 % confidence interval (Student's t), and who \
is better where that interval does not contain 0. A pipeline file is started for each of its turns and stopped afterwards.

Exit status: 0 if both completed any request, 1 otherwise.")]
pub struct Arguments {
    #[command(flatten)]
    options: CompareOptions,
    /// Print the comparison as one JSON object, with every round's report
    #[arg(long)]
    json: bool,
    /// Write one page with the table and the distributions to this file
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

/// Whether both completed any request.
pub async fn run(arguments: Arguments) -> anyhow::Result<bool> {
    let rounds = arguments.options.rounds;
    let bar = progress_bar("{bar:30} {pos}/{len} ended, {msg}  {elapsed}");
    let running = compare::run(&arguments.options, |round, side, progress| {
        bar.set_length(progress.total.unwrap_or(progress.sent) as u64);
        bar.set_position(progress.ended as u64);
        bar.set_message(format!("round {round} of {rounds}: {side}"));
    });
    let comparison = tokio::select! {
        comparison = running => comparison?,
        // Whoever gives up leaves no pipeline behind.
        _ = tokio::signal::ctrl_c() => anyhow::bail!("interrupted"),
    };
    bar.finish_and_clear();
    if let Some(path) = &arguments.html {
        save(path, &comparison.html())?;
    }
    let text = if arguments.json { serde_json::to_string(&comparison)? + "\n" } else { comparison.markdown() };
    super::print(&text)?;
    Ok(comparison.holds())
}
