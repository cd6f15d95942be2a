//! A report for people: plain for the terminal, Markdown for a results file.

use std::fmt::Write;

use crate::{Report, Summary};

/// Counts and throughputs, then the latencies.
pub fn plain(report: &Report) -> String {
    let Report { submitted, completed, failed, lost, .. } = report;
    let mut lines = vec![
        ("requests", format!("{submitted} submitted: {completed} completed, {failed} failed, {lost} lost")),
        ("duration", format!("{:.2} s", report.duration_s)),
        ("tokens", format!("{} input, {} output", report.total_input_tokens, report.total_output_tokens)),
        ("request_throughput", format!("{:.2} req/s of {} offered", report.request_throughput, report.options.rate)),
        ("output_throughput", format!("{:.1} tok/s", report.output_throughput)),
        ("total_token_throughput", format!("{:.1} tok/s", report.total_token_throughput)),
    ];
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
    let _ = writeln!(text, "\n{:<14}{:>10}{:>10}{:>10}{:>10}{:>10}", "ms", "mean", "p50", "p90", "p99", "max");
    for (name, summary) in [
        ("ttft", report.ttft_ms),
        ("tpot", report.tpot_ms),
        ("itl", report.itl_ms),
        ("e2el", report.e2el_ms),
        ("(send delay)", report.send_delay_ms),
    ] {
        let _ = write!(text, "{name:<14}");
        match summary {
            Some(Summary { mean, p50, p90, p99, max, .. }) => {
                let _ = writeln!(text, "{mean:>10.1}{p50:>10.1}{p90:>10.1}{p99:>10.1}{max:>10.1}");
            }
            None => text.push_str("         -\n"),
        }
    }
    text
}

/// The heading of the Markdown table that [`markdown_row`] gives the rows of.
pub const MARKDOWN_HEAD: &str = "\
| Offered req/s | Prompt, output tokens | Completed | Failed, lost | req/s | Output tok/s | Total tok/s | TTFT ms p50, p90, p99 \
| TPOT ms p50, p90, p99 | ITL ms p50, p90, p99 | E2EL ms p50, p90, p99 | Goodput |
|--:|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|
";

/// One run as one row, so that runs can be put beneath each other.
pub fn markdown_row(report: &Report) -> String {
    let options = &report.options;
    let percentiles = |summary: Option<Summary>| match summary {
        Some(Summary { p50, p90, p99, .. }) => format!("{p50:.1}, {p90:.1}, {p99:.1}"),
        None => "-".into(),
    };
    let goodput = report.goodput.map_or("-".into(), |goodput| {
        let bound = |name, slo: Option<f64>| slo.map(|slo| format!("{name} {slo} ms"));
        let bounds = [bound("TTFT", options.slo_ttft_ms), bound("E2EL", options.slo_e2el_ms)];
        let bounds = bounds.into_iter().flatten().collect::<Vec<_>>().join(", ");
        format!("{:.1} % ({bounds})", goodput.share * 100.0)
    });
    let cells = [
        options.rate.to_string(),
        format!("{}, {}", options.prompt_tokens, options.output_tokens),
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
pub(crate) fn aligned(rows: &[Vec<String>]) -> String {
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
