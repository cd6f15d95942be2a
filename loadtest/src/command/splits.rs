//! `loadtest splits`.

use std::path::PathBuf;

use anyhow::Context;
use baton_load::chart::{self, Bars, Labels};
use baton_loadtest::splits::{self, Judged, Options, Report};

use crate::progress_bar;

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  loadtest splits --plot splits.svg
  loadtest splits mine.toml --workers 2 --profile mine-profile.toml --concurrency 8 --length-scale 1 --json

It lets `baton plan` recommend a split of the workers for each load, then starts the pipeline with each split and measures it. \
Shown are measured figures, and in brackets how far from them a prediction of the same requests is.

Exit status: 0 if nothing was lost and the split that the plan recommends does at least 95 % of what the best one does, for each \
load; 1 otherwise.")]
pub struct Arguments {
    #[command(flatten)]
    options: Options,
    /// Draw measured and predicted throughput into an SVG file
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
    /// Print the report as one JSON object
    #[arg(long)]
    json: bool,
}

/// Whether it held.
pub async fn run(arguments: Arguments) -> anyhow::Result<bool> {
    let bar = progress_bar("{spinner} {msg}  {elapsed}");
    let running = splits::run(&arguments.options, |doing| bar.set_message(doing));
    let report = tokio::select! {
        report = running => report?,
        // Whoever gives up leaves no pipeline behind.
        _ = tokio::signal::ctrl_c() => anyhow::bail!("interrupted"),
    };
    bar.finish_and_clear();
    if let Some(file) = &arguments.plot {
        std::fs::write(file, picture(&report)).with_context(|| format!("cannot write {}", file.display()))?;
    }
    let text = if arguments.json { serde_json::to_string(&report)? + "\n" } else { plain(&report) };
    super::print(&text)?;
    Ok(report.holds())
}

fn plain(report: &Report) -> String {
    let mut text = String::new();
    for Judged { workload, splits, best, recommended, share } in &report.loads {
        let all = report.options.workers.count;
        let ratio = |prefill: u32| format!("{prefill}:{}", all - prefill);
        text += &format!(
            "{workload}: {} does most; {} is recommended and does {:.0} % of it\n",
            ratio(*best),
            ratio(*recommended),
            100.0 * share
        );
        for split in splits {
            let (measured, off) = (split.measured, split.predicted.off(&split.measured));
            let figure = |value: f64, off: f64| format!("{value:8.1} ({:+5.1} %)", 100.0 * off);
            text += &format!(
                "  {}:{}  output_throughput {}  ttft p50 {}  p99 {}  itl p99 {}\n",
                split.prefill,
                split.decode,
                figure(measured.output_throughput, off.output_throughput),
                figure(measured.ttft_p50, off.ttft_p50),
                figure(measured.ttft_p99, off.ttft_p99),
                figure(measured.itl_p99, off.itl_p99)
            );
        }
    }
    text
}

fn picture(report: &Report) -> String {
    let splits = report.loads.iter().flat_map(|load| load.splits.iter().map(|split| (load.workload, split)));
    let group = |(workload, split): (_, &splits::Compared)| {
        let values = vec![split.measured.output_throughput, split.predicted.output_throughput];
        (format!("{}:{} {workload}", split.prefill, split.decode), values)
    };
    let labels = Labels { title: "Prefill and decode workers", x: "split and load", y: "output tokens/s" };
    chart::bars(labels, &["measured", "predicted"], &splits.map(group).collect::<Vec<_>>(), Bars::Beside)
}
