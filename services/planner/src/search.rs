//! Which split of workers is best for a workload, by simulating each.

use baton_workload::Drawn;
use rayon::prelude::*;
use serde::Serialize;

use crate::simulate::{self, Flow, Report, Slo};

/// Runs until the highest rate is known within a share of 1 / 2^7.
const BISECTIONS: usize = 7;
/// Splits that differ by less are as good as each other; the simulation knows no better.
const TIE: f64 = 0.01;

/// A number of workers of each role.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Split {
    /// Prefill workers.
    pub prefill: usize,
    /// Decode workers.
    pub decode: usize,
}

impl Split {
    /// All splits of `workers` workers with at least one of each role.
    pub fn of(workers: usize) -> Vec<Self> {
        (1..workers).map(|prefill| Self { prefill, decode: workers - prefill }).collect()
    }
}

impl std::fmt::Display for Split {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.prefill, self.decode)
    }
}

/// What an hour of a worker costs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Prices {
    /// Of a prefill worker.
    pub prefill: f64,
    /// Of a decode worker.
    pub decode: f64,
}

/// What the splits are compared by.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Goal {
    /// As the workload says when requests come: the cheapest that meets the SLO.
    Given,
    /// This many requests under way at a time, so that a better split does more: of those that meet the SLO the highest throughput.
    ClosedLoop,
    /// As much as there is room for: the highest throughput.
    Saturated,
    /// The highest rate at which the SLO is met.
    HighestRate,
}

/// What is searched.
pub struct Search<'a, R> {
    /// The pipeline; the numbers of its workers are replaced.
    pub options: &'a simulate::Options,
    /// By what.
    pub goal: Goal,
    /// What an hour of a worker costs.
    pub prices: Prices,
    /// The requests; with a rate they come at that many a second.
    pub requests: R,
}

/// What a split comes to.
#[derive(Clone, Debug, Serialize)]
pub struct Candidate {
    /// The workers.
    pub split: Split,
    /// Whether the SLO is met; without one it is if every request completes.
    pub meets_slo: bool,
    /// The rate at which requests came, if one was searched for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate: Option<f64>,
    /// What an hour of all workers costs.
    pub cost_per_hour: f64,
    /// What a million generated tokens cost.
    pub cost_per_million_output_tokens: f64,
    /// What became of the requests.
    #[serde(flatten)]
    pub report: Report,
}

/// The split to take, and why.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Recommendation {
    /// The split.
    pub split: Split,
    /// A sentence.
    pub why: String,
}

impl<R> Search<'_, R> {
    /// Simulates every split, some of them at a time; `progress` is told of each simulation that has ended.
    pub fn run<I, E>(&self, splits: &[Split], progress: impl Fn() + Sync) -> Result<Vec<Candidate>, E>
    where
        R: Fn(Option<f64>) -> Result<I, E> + Sync,
        I: Iterator<Item = Result<Drawn, E>>,
        E: Send,
    {
        splits.par_iter().map(|split| self.candidate(*split, &progress)).collect()
    }

    /// Simulations that a split takes.
    pub fn simulations_per_split(&self) -> usize {
        if self.goal == Goal::HighestRate { 1 + BISECTIONS } else { 1 }
    }

    fn candidate<I, E>(&self, split: Split, progress: &(impl Fn() + Sync)) -> Result<Candidate, E>
    where
        R: Fn(Option<f64>) -> Result<I, E> + Sync,
        I: Iterator<Item = Result<Drawn, E>>,
        E: Send,
    {
        let run = |flow: Flow, rate: Option<f64>| {
            let mut options = simulate::Options { flow, ..self.options.clone() };
            (options.prefill.workers, options.decode.workers) = (split.prefill, split.decode);
            let report = simulate::run(&options, (self.requests)(rate)?, |_| {})?;
            progress();
            Ok(self.judge(split, rate, report))
        };
        if self.goal != Goal::HighestRate {
            let saturated = self.goal == Goal::Saturated;
            return run(if saturated { Flow::Saturated } else { self.options.flow }, None);
        }
        let most = run(Flow::Saturated, None)?;
        let (mut meets, mut fails) = (0.0, most.report.request_throughput);
        let mut best: Option<Candidate> = None;
        for _ in 0..BISECTIONS {
            let rate = (meets + fails) / 2.0;
            let candidate = run(Flow::Planned, Some(rate))?;
            if candidate.meets_slo {
                meets = rate;
                best = Some(candidate);
            } else {
                fails = rate;
            }
        }
        // Not even a small share of what it can do meets the SLO.
        Ok(best.unwrap_or(Candidate { meets_slo: false, rate: Some(0.0), ..most }))
    }

    fn judge(&self, split: Split, rate: Option<f64>, report: Report) -> Candidate {
        let Slo { ttft_s, itl_s } = self.options.slo;
        let within = |bound: Option<f64>, ms: f64| bound.is_none_or(|bound| ms <= bound * 1e3);
        let meets_slo = report.failed == 0 && within(ttft_s, report.ttft.p99) && within(itl_s, report.itl.p99);
        let cost_per_hour = split.prefill as f64 * self.prices.prefill + split.decode as f64 * self.prices.decode;
        let tokens_per_hour = report.output_throughput * 3600.0;
        let cost_per_million_output_tokens =
            if tokens_per_hour > 0.0 { cost_per_hour / tokens_per_hour * 1e6 } else { 0.0 };
        Candidate { split, meets_slo, rate, cost_per_hour, cost_per_million_output_tokens, report }
    }
}

impl Candidate {
    /// What the pool is that holds the others up.
    fn bottleneck(&self) -> String {
        let (prefill, decode) = (self.report.prefill.busy, self.report.decode.slots);
        let percent = |share: f64| format!("{:.0} %", share * 100.0);
        let (first, second) = (percent(prefill), percent(decode));
        format!("prefill computes {first} of the time and decode's slots are {second} full")
    }
}

/// The split to take; none without candidates.
pub fn recommend(candidates: &[Candidate], goal: Goal) -> Option<Recommendation> {
    let throughput =
        |it: &Candidate| if goal == Goal::HighestRate { it.report.goodput } else { it.report.request_throughput };
    // Of equals the cheaper, then the one whose first tokens come sooner.
    let cheaper = |a: &&Candidate, b: &&Candidate| {
        a.cost_per_hour.total_cmp(&b.cost_per_hour).then(a.report.ttft.p99.total_cmp(&b.report.ttft.p99))
    };
    let judged = matches!(goal, Goal::Given | Goal::ClosedLoop);
    let meeting: Vec<&Candidate> = candidates.iter().filter(|it| !judged || it.meets_slo).collect();
    if meeting.is_empty() {
        let best = candidates.iter().max_by(|a, b| {
            a.report.goodput.total_cmp(&b.report.goodput).then(b.report.ttft.p99.total_cmp(&a.report.ttft.p99))
        })?;
        let why = format!(
            "no split meets the SLO; {} has the highest goodput, {:.2} requests/s; {}; add workers or lower the rate",
            best.split,
            best.report.goodput,
            best.bottleneck()
        );
        return Some(Recommendation { split: best.split, why });
    }
    if goal == Goal::Given {
        let best = meeting.iter().copied().min_by(cheaper)?;
        let count = meeting.len();
        let same_price = meeting.iter().all(|it| it.cost_per_hour == best.cost_per_hour);
        let what = match (count, same_price) {
            (1, _) => "is the only split that meets the SLO".to_owned(),
            (_, true) => format!("has the soonest first tokens of {count} splits of one price that meet the SLO"),
            (_, false) => format!("is the cheapest of {count} splits that meet the SLO"),
        };
        let why = format!(
            "{} {what}: TTFT p99 {:.0} ms, ITL p99 {:.1} ms; {}",
            best.split,
            best.report.ttft.p99,
            best.report.itl.p99,
            best.bottleneck()
        );
        return Some(Recommendation { split: best.split, why });
    }
    let most = meeting.iter().copied().map(throughput).max_by(f64::total_cmp)?;
    // Per price, so that a range of sizes does not always end with the largest.
    let per_price = |it: &Candidate| throughput(it) / it.cost_per_hour.max(1e-9);
    let sizes = meeting.iter().map(|it| it.cost_per_hour);
    let same_price = sizes.clone().fold(f64::NEG_INFINITY, f64::max) - sizes.fold(f64::INFINITY, f64::min) < 1e-9;
    let value = |it: &Candidate| if same_price { throughput(it) / most.max(1e-9) } else { per_price(it) };
    let top = meeting.iter().copied().map(value).max_by(f64::total_cmp)?;
    let best = meeting.iter().copied().filter(|it| value(it) >= top * (1.0 - TIE)).min_by(cheaper)?;
    let what = match (goal, same_price) {
        (Goal::HighestRate, true) => "meets the SLO at the highest rate",
        (Goal::HighestRate, false) => "meets the SLO at the highest rate for its price",
        (_, true) => "has the highest throughput",
        (_, false) => "has the highest throughput for its price",
    };
    let why = format!("{} {what}: {:.2} requests/s; {}", best.split, throughput(best), best.bottleneck());
    Some(Recommendation { split: best.split, why })
}

#[cfg(test)]
mod tests;
