//! A report for people: plain for the terminal, Markdown for a results file.

use std::fmt::Write;

use crate::{Report, Summary, record::Stages, report::Steady};

/// Counts and throughputs, then the latencies.
pub fn plain(report: &Report) -> String {
    let Report { submitted, completed, failed, lost, .. } = report;
    let mut lines = vec![
        ("requests", format!("{submitted} submitted: {completed} completed, {failed} failed, {lost} lost")),
        ("duration", format!("{:.2} s", report.duration_s)),
        ("tokens", format!("{} input, {} output", report.total_input_tokens, report.total_output_tokens)),
        ("load", report.options.describe()),
        ("request_throughput", format!("{:.2} req/s", report.request_throughput)),
        ("input_throughput", format!("{:.1} tok/s", report.input_throughput)),
        ("output_throughput", format!("{:.1} tok/s", report.output_throughput)),
        ("total_token_throughput", format!("{:.1} tok/s", report.total_token_throughput)),
    ];
    if let Some(steady) = &report.steady {
        let Steady { from_s, to_s, request_throughput, output_throughput, concurrency } = steady;
        let figures =
            format!("{request_throughput:.2} req/s, {output_throughput:.1} tok/s, {concurrency:.1} under way");
        lines.push(("steady", format!("{figures} (from {from_s:.1} to {to_s:.1} s)")));
    }
    if let Some(stages) = &report.stages_ms {
        let shares = shares(stages).map(|(name, share)| format!("{name} {:.0} %", share * 100.0));
        lines.push(("time of a job", shares.join(", ")));
    }
    if let Some(goodput) = &report.goodput {
        lines.push(("goodput", format!("{:.1} % of requests, {:.2} req/s", goodput.share * 100.0, goodput.rate)));
    }
    let mut text = String::new();
    for (name, value) in lines {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{name:<24}{value}");
    }
    for (kind, failures) in &report.failures {
        let _ = writeln!(text, "failed: {} x {kind}: {}", failures.count, failures.example);
    }
    let columns = ["mean", "std", "p50", "p90", "p95", "p99", "max"];
    let _ = writeln!(text, "\n{:<14}{}", "ms", columns.map(|column| format!("{column:>10}")).concat());
    for (name, summary) in report.times() {
        let _ = write!(text, "{name:<14}");
        match summary {
            Some(Summary { mean, std, p50, p90, p95, p99, max, .. }) => {
                let figures = [mean, std, p50, p90, p95, p99, max].map(|figure| format!("{figure:>10.1}"));
                let _ = writeln!(text, "{}", figures.concat());
            }
            None => text.push_str("         -\n"),
        }
    }
    text
}

/// The parts of a job's time by the whole, 0 to 1, with their names.
pub fn shares(stages: &Stages) -> [(&'static str, f64); 5] {
    let Stages { queue_ms, prefill_ms, hand_over_ms, decode_ms, total_ms } = *stages;
    let rest = (total_ms - queue_ms - prefill_ms - hand_over_ms - decode_ms).max(0.0);
    let share = |ms: f64| if total_ms > 0.0 { ms / total_ms } else { 0.0 };
    [
        ("queue", share(queue_ms)),
        ("prefill", share(prefill_ms)),
        ("hand-over", share(hand_over_ms)),
        ("decode", share(decode_ms)),
        ("rest", share(rest)),
    ]
}

/// The heading of the Markdown table that [`markdown_row`] gives the rows of.
pub const MARKDOWN_HEAD: &str = "\
| Load | Completed | Failed, lost | req/s | Output tok/s | Total tok/s | TTFT ms p50, p90, p99 \
| TPOT ms p50, p90, p99 | ITL ms p50, p90, p99 | E2EL ms p50, p90, p99 | Goodput |
|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|
";

/// One run as one row, so that runs can be put beneath each other.
pub fn markdown_row(report: &Report) -> String {
    let options = &report.options;
    let percentiles = |summary: Option<Summary>| match summary {
        Some(Summary { p50, p90, p99, .. }) => format!("{p50:.1}, {p90:.1}, {p99:.1}"),
        None => "-".into(),
    };
    let goodput = report.goodput.map_or("-".into(), |goodput| {
        let bounds = options.goodput.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
        format!("{:.1} % ({bounds})", goodput.share * 100.0)
    });
    let cells = [
        options.describe(),
        format!("{} of {}", report.completed, report.submitted),
        format!("{}, {}", report.failed, report.lost),
        format!("{:.2}", report.request_throughput),
        format!("{:.1}", report.output_throughput),
        format!("{:.1}", report.total_token_throughput),
        percentiles(report.ttft_ms),
        percentiles(report.tpot_ms),
        percentiles(report.itl_ms),
        percentiles(report.e2el_ms),
        goodput,
    ];
    format!("| {} |\n", cells.join(" | "))
}

/// A Markdown table that is aligned for the terminal too: rows of equal length, the heading first; the first column is
/// left-aligned, the others right.
pub fn aligned(rows: &[Vec<String>]) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for (index, row) in rows.iter().enumerate() {
        let cells = row.iter().zip(&widths).enumerate().map(|(column, (cell, &width))| {
            if column == 0 { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
        });
        let _ = writeln!(text, "| {} |", cells.collect::<Vec<_>>().join(" | "));
        if index == 0 {
            let rules = widths
                .iter()
                .enumerate()
                .map(|(column, &width)| if column == 0 { "-".repeat(width + 2) } else { "-".repeat(width + 1) + ":" });
            let _ = writeln!(text, "|{}|", rules.collect::<Vec<_>>().join("|"));
        }
    }
    text
}
