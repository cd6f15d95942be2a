//! What two targets came to, figure by figure.

use baton_load::{Measured, Options, Report, markup, page, record::Record, statistics, table};
use serde::Serialize;

use super::CompareOptions;

/// A figure of a run; nothing if the run has none.
type Figure = fn(&Report) -> Option<f64>;

/// Figures that are compared: name, unit, whether more is better.
const FIGURES: [(&str, &str, bool, Figure); 13] = [
    ("request_throughput", "req/s", true, |report| Some(report.request_throughput)),
    ("output_throughput", "tok/s", true, |report| Some(report.output_throughput)),
    ("total_token_throughput", "tok/s", true, |report| Some(report.total_token_throughput)),
    ("goodput", "req/s", true, |report| Some(report.goodput?.rate)),
    ("completed", "requests", true, |report| Some(report.completed as f64)),
    ("ttft p50", "ms", false, |report| Some(report.ttft_ms?.p50)),
    ("ttft p99", "ms", false, |report| Some(report.ttft_ms?.p99)),
    ("tpot p50", "ms", false, |report| Some(report.tpot_ms?.p50)),
    ("itl p50", "ms", false, |report| Some(report.itl_ms?.p50)),
    ("itl p99", "ms", false, |report| Some(report.itl_ms?.p99)),
    ("e2el p50", "ms", false, |report| Some(report.e2el_ms?.p50)),
    ("e2el p90", "ms", false, |report| Some(report.e2el_ms?.p90)),
    ("e2el p99", "ms", false, |report| Some(report.e2el_ms?.p99)),
];

/// Both targets' rounds and the differences between them.
#[derive(Clone, Debug, Serialize)]
pub struct Comparison {
    pub a: String,
    pub b: String,
    pub options: Options,
    pub differences: Vec<Difference>,
    /// All rounds, in their order.
    pub rounds_a: Vec<Report>,
    pub rounds_b: Vec<Report>,
    #[serde(skip)]
    pictures: String,
}

/// One figure of both, over the rounds in which both have it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Difference {
    pub figure: &'static str,
    pub unit: &'static str,
    /// Means of the rounds.
    pub a: f64,
    pub b: f64,
    /// The mean of b - a, round by round.
    pub difference: f64,
    /// Half the width of its 95 % confidence interval; none after one round.
    pub plus_minus: Option<f64>,
    /// The difference by a.
    pub relative: Option<f64>,
    /// Which is better, if the interval does not contain 0.
    pub better: Option<&'static str>,
}

impl Comparison {
    pub(super) fn new(options: &CompareOptions, first: &[Measured], second: &[Measured]) -> Self {
        let (a, b) = (options.first.describe(), options.second.describe());
        let pictures = [
            ("Time to first token", Record::ttft as fn(&Record) -> _),
            ("Time per output token", Record::tpot),
            ("End-to-end latency", Record::e2el),
        ];
        let samples = |runs: &[Measured], part: fn(&Record) -> Option<std::time::Duration>| -> Vec<f64> {
            let records = runs.iter().flat_map(|run| &run.records).filter(|record| record.e2el().is_some());
            records.filter_map(part).map(|sample| sample.as_secs_f64() * 1e3).collect()
        };
        let cdf = |(title, part)| page::cdf(title, &[("A", samples(first, part)), ("B", samples(second, part))]);
        let reports = |runs: &[Measured]| runs.iter().map(|run| run.report.clone()).collect::<Vec<_>>();
        let (rounds_a, rounds_b) = (reports(first), reports(second));
        let differences = differences(&rounds_a, &rounds_b);
        let pictures = pictures.into_iter().map(cdf).collect();
        Self { a, b, options: options.load.clone(), differences, rounds_a, rounds_b, pictures }
    }

    /// Whether both completed anything at all.
    pub fn holds(&self) -> bool {
        let any = |rounds: &[Report]| rounds.iter().any(|report| report.completed > 0);
        any(&self.rounds_a) && any(&self.rounds_b)
    }

    /// A Markdown table that is aligned for the terminal too.
    pub fn markdown(&self) -> String {
        let Self { a, b, options, rounds_a, .. } = self;
        let failed = |rounds: &[Report]| rounds.iter().map(|report| report.failed + report.lost).sum::<usize>();
        format!(
            "{}\nA: {a}\nB: {b}\nload: {}; {} rounds; failed or lost: {} and {}\n",
            table::aligned(&self.rows()),
            options.describe(),
            rounds_a.len(),
            failed(rounds_a),
            failed(&self.rounds_b)
        )
    }

    /// One page with the table and the distributions of both.
    pub fn html(&self) -> String {
        let body = format!(
            "<h1>A beside B</h1>\n<p>A: {}<br>B: {}<br>Load: {}, {} rounds in turn</p>\n{}{}",
            markup::escaped(&self.a),
            markup::escaped(&self.b),
            markup::escaped(&self.options.describe()),
            self.rounds_a.len(),
            markup::rows(&self.rows()),
            self.pictures
        );
        markup::document("A beside B", &body)
    }

    fn rows(&self) -> Vec<Vec<String>> {
        let head = ["figure", "A", "B", "B - A", "95 %", "relative", "better"].map(str::to_owned).to_vec();
        let row = |it: &Difference| {
            vec![
                format!("{}, {}", it.figure, it.unit),
                format!("{:.2}", it.a),
                format!("{:.2}", it.b),
                format!("{:+.2}", it.difference),
                it.plus_minus.map_or("-".into(), |half| format!("± {half:.2}")),
                it.relative.map_or("-".into(), |relative| format!("{:+.1} %", relative * 100.0)),
                it.better.unwrap_or("-").to_owned(),
            ]
        };
        [head].into_iter().chain(self.differences.iter().map(row)).collect()
    }
}

/// Round by round, so that what changes over the rounds hits both.
fn differences(first: &[Report], second: &[Report]) -> Vec<Difference> {
    let figures = FIGURES.iter().filter_map(|(figure, unit, more, of)| {
        let pairs: Vec<(f64, f64)> =
            first.iter().zip(second).filter_map(|(one, two)| Some((of(one)?, of(two)?))).collect();
        let mean = |part: fn(&(f64, f64)) -> f64| pairs.iter().map(part).sum::<f64>() / pairs.len() as f64;
        let gaps: Vec<f64> = pairs.iter().map(|(one, two)| two - one).collect();
        let (difference, plus_minus) = statistics::confidence(&gaps)?;
        let (a, b) = (mean(|pair| pair.0), mean(|pair| pair.1));
        let told = plus_minus.is_some_and(|half| difference.abs() > half);
        let better = told.then_some(if (difference > 0.0) == *more { "B" } else { "A" });
        let relative = (a != 0.0).then(|| difference / a);
        Some(Difference { figure, unit, a, b, difference, plus_minus, relative, better })
    });
    figures.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rounds(throughputs: &[f64]) -> Vec<Report> {
        let report = |throughput: &f64| {
            let mut report = Report::new("bus", &Options::open_loop(1.0, 1).unwrap(), &[], None);
            report.request_throughput = *throughput;
            report
        };
        throughputs.iter().map(report).collect()
    }

    #[test]
    fn differences_are_paired_and_judged_only_where_they_are_clear() {
        // Both drift by far more than they differ.
        let found = differences(&rounds(&[10.0, 20.0, 30.0]), &rounds(&[11.0, 21.2, 31.1]));
        let throughput = &found[0];
        assert_eq!((throughput.figure, throughput.better, throughput.a), ("request_throughput", Some("B"), 20.0));
        assert!((throughput.difference - 1.1).abs() < 1e-9 && throughput.plus_minus.unwrap() < 0.3, "{throughput:?}");
        assert!(found.iter().all(|difference| !difference.figure.starts_with("ttft")), "no run has a ttft: {found:?}");

        let unclear = &differences(&rounds(&[10.0, 20.0]), &rounds(&[12.0, 19.0]))[0];
        assert_eq!(unclear.better, None);
        let single = &differences(&rounds(&[10.0]), &rounds(&[12.0]))[0];
        assert_eq!((single.plus_minus, single.better, single.relative), (None, None, Some(0.2)));
    }
}
