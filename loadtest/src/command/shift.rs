//! `loadtest shift`.

use baton_loadtest::shift::{self, Options, Report};

use crate::progress_bar;

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  loadtest shift --json > shift.json
  loadtest shift --fixed 0 --phase 360 --first-concurrency 120 --first 200:100 --second 200:100    does it come to rest?
  loadtest shift pipelines/adaptive.toml --concurrency 32 --second 64:64

It measures what each split of workers with fixed roles makes of the second load; then it starts the pipeline with a planner \
and half of the workers for prefill, puts it under the first load, and at once after that under the second. reached_90_s tells how long it took from there until five \
seconds' throughput was 90 % of the best fixed split's, changes what the planner did, lost what has no result.

Exit status: 0 if nothing was lost or failed and, with fixed splits, that was reached within 30 s; 1 otherwise.")]
pub struct Arguments {
    #[command(flatten)]
    options: Options,
    /// Print the report as one JSON object
    #[arg(long)]
    json: bool,
}

/// Whether it held.
pub async fn run(arguments: Arguments) -> anyhow::Result<bool> {
    let bar = progress_bar("{spinner} {msg}  {elapsed}");
    let running = shift::run(&arguments.options, |doing| bar.set_message(doing));
    let report = tokio::select! {
        report = running => report?,
        // Whoever gives up leaves no pipeline behind.
        _ = tokio::signal::ctrl_c() => anyhow::bail!("interrupted"),
    };
    bar.finish_and_clear();
    let text = if arguments.json { serde_json::to_string(&report)? + "\n" } else { plain(&report) };
    super::print(&text)?;
    Ok(report.holds())
}

fn plain(report: &Report) -> String {
    let mut lines: Vec<String> = Vec::new();
    for split in &report.fixed {
        lines.push(format!("fixed {}:{}  {:.0} tokens/s", split.prefill, split.decode, split.output_throughput));
    }
    for (name, phase) in ["first", "second"].iter().zip(&report.phases) {
        lines.push(format!(
            "{name} load ({} to {} tokens)  {:.1} requests/s, {:.0} tokens/s; {} completed, {} failed, {} lost",
            phase.size.prompt_tokens,
            phase.size.output_tokens,
            phase.request_throughput,
            phase.output_throughput,
            phase.completed,
            phase.failed,
            phase.lost
        ));
        for change in &phase.changes {
            lines.push(format!("  {:5.1} s  {} becomes {}: {}", change.at_s, change.worker, change.to, change.reason));
        }
        lines.push(format!("  {} changes after a minute", phase.changes_after_a_minute));
    }
    if !report.fixed.is_empty() {
        lines.push(match (report.reached_90_s, report.then_share) {
            (Some(seconds), Some(share)) => {
                format!("90 % of the best fixed split from {seconds:.1} s on; then {:.0} % of it", share * 100.0)
            }
            _ => "90 % of the best fixed split was not reached".to_owned(),
        });
    }
    lines.join("\n") + "\n"
}
