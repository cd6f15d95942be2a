//! A plan for people and for programs.

use std::io::{self, Write as _};

use baton_load::chart::{self, Labels, Line};
use baton_planner::{
    search::{Candidate, Goal, Recommendation},
    simulate::{Options, Slo},
};
use baton_terminal::table;
use serde::Serialize;

use crate::output::stdout;

/// What is shown of a plan.
pub struct Shown<'a> {
    pub goal: Goal,
    pub workload: String,
    pub options: &'a Options,
    pub candidates: Vec<Candidate>,
    pub recommendation: Recommendation,
}

impl Shown<'_> {
    pub fn json(&self) -> anyhow::Result<()> {
        #[derive(Serialize)]
        struct Report<'a> {
            goal: Goal,
            workload: &'a str,
            prefill_profile: &'a str,
            decode_profile: &'a str,
            slo: Slo,
            splits: &'a [Candidate],
            recommendation: &'a Recommendation,
        }
        let report = Report {
            goal: self.goal,
            workload: &self.workload,
            prefill_profile: &self.options.prefill.profile.name,
            decode_profile: &self.options.decode.profile.name,
            slo: self.options.slo,
            splits: &self.candidates,
            recommendation: &self.recommendation,
        };
        writeln!(stdout(), "{}", serde_json::to_string(&report)?)?;
        Ok(())
    }

    pub fn print(&self) -> io::Result<()> {
        let mut out = stdout();
        let (prefill, decode) = (&self.options.prefill.profile.name, &self.options.decode.profile.name);
        writeln!(out, "{}", self.workload)?;
        writeln!(
            out,
            "{}\n",
            if prefill == decode { prefill.clone() } else { format!("prefill: {prefill}; decode: {decode}") }
        )?;
        let headings = [
            "split",
            "req/s",
            "tok/s",
            "good/s",
            "TTFT p50",
            "p99",
            "ITL p50",
            "p99",
            "e2e p50",
            "p99",
            "prefill busy",
            "decode full",
            "reused",
            "per Mtok",
        ];
        let rows: Vec<Vec<String>> = self.candidates.iter().map(|candidate| self.row(candidate)).collect();
        write!(out, "{}", table::render(&headings, &rows))?;
        writeln!(out, "\n{}.", self.recommendation.why)?;
        if self.goal == Goal::Saturated {
            writeln!(
                out,
                "Every worker always had work to do; times to first token include the wait in a full queue."
            )?;
        }
        for candidate in &self.candidates {
            for change in &candidate.report.changes {
                writeln!(
                    out,
                    "{} at {:.0} s: a worker became {:?}: {}",
                    candidate.split, change.at_s, change.to, change.reason
                )?;
            }
            if candidate.report.failed > 0 {
                writeln!(
                    out,
                    "{}: {} requests did not fit the KV memory of a worker",
                    candidate.split, candidate.report.failed
                )?;
            }
        }
        Ok(())
    }

    fn row(&self, candidate: &Candidate) -> Vec<String> {
        let Candidate { split, report, .. } = candidate;
        let mark = if *split == self.recommendation.split { "*" } else { "" };
        let percent = |share: f64| format!("{:.0} %", share * 100.0);
        let ms = |ms: f64| if ms < 100.0 { format!("{ms:.1} ms") } else { table::ms(ms) };
        vec![
            format!("{split}{mark}"),
            format!("{:.2}", report.request_throughput),
            format!("{:.0}", report.output_throughput),
            format!("{:.2}", report.goodput),
            ms(report.ttft.p50),
            ms(report.ttft.p99),
            ms(report.itl.p50),
            ms(report.itl.p99),
            ms(report.e2el.p50),
            ms(report.e2el.p99),
            percent(report.prefill.busy),
            percent(report.decode.slots),
            percent(report.reused),
            format!("{:.3}", candidate.cost_per_million_output_tokens),
        ]
    }
}

/// The trade-off as an SVG document: throughput, latency and the use of both pools over the share of prefill workers, each as a
/// share of its largest value, for what is gained and lost from split to split is what matters.
pub fn plot(candidates: &[Candidate], workload: &str) -> String {
    let most = candidates.iter().map(|it| it.report.request_throughput).fold(f64::MIN_POSITIVE, f64::max);
    let slowest = candidates.iter().map(|it| it.report.ttft.p99).fold(f64::MIN_POSITIVE, f64::max);
    let line = |name: String, value: &dyn Fn(&Candidate) -> f64| {
        let x = |it: &Candidate| it.split.prefill as f64 / (it.split.prefill + it.split.decode) as f64 * 100.0;
        let mut points: Vec<(f64, f64)> = candidates.iter().map(|it| (x(it), value(it) * 100.0)).collect();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        Line { name, points }
    };
    let lines = [
        line(format!("requests/s, of {most:.2}"), &|it| it.report.request_throughput / most),
        line(format!("goodput, of {most:.2}"), &|it| it.report.goodput / most),
        line(format!("TTFT p99, of {:.2} s", slowest / 1e3), &|it| it.report.ttft.p99 / slowest),
        line("prefill computes".to_owned(), &|it| it.report.prefill.busy),
        line("decode slots full".to_owned(), &|it| it.report.decode.slots),
    ];
    let labels = Labels { title: workload, x: "share of prefill workers, %", y: "%" };
    chart::lines(labels, &lines)
}
