//! One page about a run: figures, pictures, and nothing that has to be fetched.

use std::fmt::Write;

use crate::{
    Measured, Report, Summary,
    chart::{self, Bars, Labels, Line},
    markup::{document, escaped, inline, rows},
    record::{Record, Stages},
    report::steady,
    table,
};

/// Points of a line over time, at most.
const POINTS: usize = 200;
/// Groups of the picture of the stages: requests by their end-to-end latency.
const GROUPS: usize = 10;

/// The page of one run.
pub fn of(measured: &Measured) -> String {
    let Measured { report, records, .. } = measured;
    let mut body = format!("<h1>Load test: {}</h1>\n", escaped(&report.options.describe()));
    body += &figures(report);
    body += &latencies(report);
    body += "<h2>Latencies</h2>\n";
    for (title, part) in
        [("Time to first token", Record::ttft as fn(&Record) -> _), ("End-to-end latency", Record::e2el)]
    {
        let samples = records.iter().filter(|record| record.e2el().is_some()).filter_map(part);
        body += &cdf(title, &[(title, samples.map(|sample| sample.as_secs_f64() * 1e3).collect())]);
    }
    let gaps = records.iter().flat_map(|record| &record.gaps).map(|gap| gap.as_secs_f64() * 1e3).collect();
    body += &cdf("Inter-token latency", &[("inter-token latency", gaps)]);
    body += "<h2>Over time</h2>\n";
    body += &over_time(measured);
    if let Some(picture) = stages(records) {
        body += "<h2>Where the time went</h2>\n";
        body += &picture;
    }
    if let Ok(options) = serde_json::to_string_pretty(&report.options) {
        let _ = writeln!(body, "<h2>Options</h2>\n<pre>{}</pre>", escaped(&options));
    }
    document("Load test", &body)
}

fn figures(report: &Report) -> String {
    let mut all = vec![
        vec!["figure".to_owned(), "value".to_owned()],
        vec!["target".into(), report.target.into()],
        vec!["submitted".into(), report.submitted.to_string()],
        vec!["completed".into(), report.completed.to_string()],
        vec!["failed, lost".into(), format!("{}, {}", report.failed, report.lost)],
        vec!["duration".into(), format!("{:.2} s", report.duration_s)],
        vec!["request_throughput".into(), format!("{:.2} req/s", report.request_throughput)],
        vec!["input_throughput".into(), format!("{:.1} tok/s", report.input_throughput)],
        vec!["output_throughput".into(), format!("{:.1} tok/s", report.output_throughput)],
        vec!["total_token_throughput".into(), format!("{:.1} tok/s", report.total_token_throughput)],
        vec!["max_concurrency".into(), report.max_concurrency.to_string()],
    ];
    if let Some(steady) = &report.steady {
        let figures = format!("{:.2} req/s, {:.1} tok/s", steady.request_throughput, steady.output_throughput);
        all.push(vec![format!("steady, {:.1} to {:.1} s", steady.from_s, steady.to_s), figures]);
    }
    if let Some(goodput) = &report.goodput {
        let bounds: Vec<String> = report.options.goodput.iter().map(ToString::to_string).collect();
        let found = format!("{:.1} %, {:.2} req/s", goodput.share * 100.0, goodput.rate);
        all.push(vec![format!("goodput ({})", bounds.join(" ")), found]);
    }
    for (kind, failures) in &report.failures {
        all.push(vec![format!("failed: {kind}"), format!("{}: {}", failures.count, failures.example)]);
    }
    rows(&all)
}

fn latencies(report: &Report) -> String {
    let head = ["ms", "mean", "median", "std", "p50", "p90", "p95", "p99", "max"].map(str::to_owned);
    let mut all = vec![head.to_vec()];
    for (name, summary) in report.times() {
        if let Some(Summary { mean, median, std, p50, p90, p95, p99, max, .. }) = summary {
            let figures = [mean, median, std, p50, p90, p95, p99, max].map(|figure| format!("{figure:.1}"));
            all.push([name.to_owned()].into_iter().chain(figures).collect());
        }
    }
    rows(&all)
}

/// The share of samples up to each value, for one or several sets of milliseconds.
pub fn cdf(title: &str, sets: &[(&str, Vec<f64>)]) -> String {
    let line = |(name, samples): &(&str, Vec<f64>)| {
        let mut samples = samples.clone();
        samples.sort_by(f64::total_cmp);
        let count = samples.len();
        let step = count.div_ceil(POINTS).max(1);
        let places = (0..count).step_by(step).chain(count.checked_sub(1));
        Line {
            name: (*name).to_owned(),
            points: places.map(|place| (samples[place], (place + 1) as f64 / count as f64)).collect(),
        }
    };
    let lines: Vec<Line> = sets.iter().map(line).collect();
    inline(&chart::lines(Labels { title, x: "milliseconds", y: "share of samples" }, &lines))
}

fn over_time(measured: &Measured) -> String {
    let tokens = Line { name: "tokens a second".into(), points: measured.timeline.rates(POINTS) };
    let changes = steady::concurrency(&measured.records);
    let step = changes.len().div_ceil(POINTS * 2).max(1);
    let points = changes.iter().step_by(step).map(|(at, count)| (at.as_secs_f64(), *count as f64));
    let under_way = Line { name: "requests under way".into(), points: points.collect() };
    let labels = |title, y| Labels { title, x: "seconds", y };
    inline(&chart::lines(labels("Output throughput", "tokens a second"), &[tokens]))
        + &inline(&chart::lines(labels("Concurrency", "requests under way"), &[under_way]))
}

/// The stages' shares of the time of requests, from the fastest tenth to the slowest.
fn stages(records: &[Record]) -> Option<String> {
    let mut told: Vec<&Stages> = records.iter().filter_map(Record::stages).collect();
    told.sort_by(|one, two| one.total_ms.total_cmp(&two.total_ms));
    let size = told.len().div_ceil(GROUPS).max(1);
    let mut names = Vec::new();
    let group = |(place, stages): (usize, &[&Stages])| {
        let mean =
            |part: usize| stages.iter().map(|stages| table::shares(stages)[part].1 * stages.total_ms).sum::<f64>();
        let values = (0..5).map(|part| mean(part) / stages.len() as f64).collect();
        let last = (place + 1) * 100 * size / told.len().max(1);
        (format!("to {} %", last.min(100)), values)
    };
    let groups: Vec<(String, Vec<f64>)> = told.chunks(size).enumerate().map(group).collect();
    names.extend(told.first().map(|stages| table::shares(stages).map(|(name, _)| name)).into_iter().flatten());
    let labels = Labels {
        title: "Mean time in each stage, requests by their latency",
        x: "requests, the fastest first",
        y: "milliseconds",
    };
    (!groups.is_empty()).then(|| inline(&chart::bars(labels, &names, &groups, Bars::Stacked)))
}
