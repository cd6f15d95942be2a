//! What a simulation comes to: counts, sums and histograms of fixed size.

use baton_contract::Role;
use hdrhistogram::Histogram;
use serde::Serialize;

use super::{
    Options,
    jobs::Job,
    queue::Shared,
    time::{Nanos, seconds},
};

/// Three digits, from a microsecond to ten hours: some 200 KiB a histogram.
const LONGEST_US: u64 = 36_000_000_000;
const DIGITS: u8 = 3;

/// What a good request is. Without a bound every request that completes is good.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Slo {
    /// Seconds to its first token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttft_s: Option<f64>,
    /// Seconds from token to token: for one request the mean, for all requests the 99th percentile.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub itl_s: Option<f64>,
}

/// How many samples are below which time, in milliseconds, within 0.1 %.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Quantiles {
    /// The mean.
    pub mean: f64,
    /// The median.
    pub p50: f64,
    /// 90 of 100.
    pub p90: f64,
    /// 95 of 100.
    pub p95: f64,
    /// 99 of 100.
    pub p99: f64,
    /// All.
    pub max: f64,
}

/// How a pool of workers was used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Use {
    /// Workers, on average.
    pub workers: f64,
    /// The share of their time in which the engines computed.
    pub busy: f64,
    /// The share of their slots that held a job.
    pub slots: f64,
}

/// A worker that changed its role.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Change {
    /// Seconds since the beginning.
    pub at_s: f64,
    /// What it became.
    pub to: Role,
    /// Why.
    pub reason: String,
}

/// What a workload comes to. Rates are per second from the first arrival to the last result. In a closed loop that is at least twice as
/// long as what fills the pipeline, they are those of its steady state, from the time at which as many have ended as fill it to the
/// last arrival, and the latencies of those that fill it don't count, but for the times from token to token.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Report {
    /// Requests that got their whole answer.
    pub completed: u64,
    /// Requests that fit no worker's memory.
    pub failed: u64,
    /// From the first arrival to the last result.
    pub duration_s: f64,
    /// Completed requests a second.
    pub request_throughput: f64,
    /// Prompt tokens of completed requests a second, reused ones included.
    pub input_throughput: f64,
    /// Generated tokens a second.
    pub output_throughput: f64,
    /// Good requests a second.
    pub goodput: f64,
    /// Time to first token, ms.
    pub ttft: Quantiles,
    /// From token to token, over all tokens, ms.
    pub itl: Quantiles,
    /// The mean of a request's gaps, ms.
    pub tpot: Quantiles,
    /// Arrival to result, ms.
    pub e2el: Quantiles,
    /// Arrival to the end of prefill, ms.
    pub prefill_latency: Quantiles,
    /// The prefill pool.
    pub prefill: Use,
    /// The decode pool.
    pub decode: Use,
    /// Answers in a decode step, on average.
    pub mean_batch: f64,
    /// The share of all prompt tokens that came from the store.
    pub reused: f64,
    /// Tokens that decode computed: what was left to it, and what answers had generated before they moved.
    pub decode_prefilled_tokens: u64,
    /// How often an answer had to leave a batch for want of memory.
    pub preemptions: u64,
    /// Events of the simulation.
    pub events: u64,
    /// What the planner in the loop did.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub changes: Vec<Change>,
}

pub(super) struct Measure {
    slo: Slo,
    /// Requests that fill the pipeline.
    filling: u64,
    first: Option<Nanos>,
    last: Nanos,
    sums: Sums,
    /// When the pipeline was full, and when the last request came.
    full: Option<(Nanos, Sums)>,
    latest: (Nanos, Sums),
    failed: u64,
    pub(super) arrived: u64,
    reused_tokens: u64,
    pub(super) computed_tokens: u64,
    recomputed_tokens: u64,
    preemptions: u64,
    steps: u64,
    /// Tokens that steps generated.
    step_tokens: u64,
    itl: Times,
    /// Of the requests that fill the pipeline, and of the others.
    filling_times: Latencies,
    times: Latencies,
}

/// One sample a request.
#[derive(Clone)]
struct Latencies {
    ttft: Times,
    tpot: Times,
    e2el: Times,
    prefill: Times,
}

impl Latencies {
    fn new() -> Self {
        Self { ttft: Times::new(), tpot: Times::new(), e2el: Times::new(), prefill: Times::new() }
    }

    fn add(&mut self, other: &Self) {
        self.ttft.add(&other.ttft);
        self.tpot.add(&other.tpot);
        self.e2el.add(&other.e2el);
        self.prefill.add(&other.prefill);
    }
}

/// Until some time.
#[derive(Clone, Copy, Default)]
struct Sums {
    completed: u64,
    good: u64,
    /// Of the requests that completed.
    prompt_tokens: u64,
    /// Of all requests, also of those that fail later; a burst's when it ends.
    output_tokens: u64,
}

/// Microseconds.
#[derive(Clone)]
struct Times(Option<Histogram<u64>>);

impl Times {
    fn new() -> Self {
        // Never fails: the bounds are constants that hold.
        Self(Histogram::new_with_bounds(1, LONGEST_US, DIGITS).ok())
    }

    fn note(&mut self, seconds: f64, count: u64) {
        if let Some(histogram) = &mut self.0 {
            histogram.saturating_record_n((seconds * 1e6) as u64, count);
        }
    }

    fn add(&mut self, other: &Self) {
        if let (Some(histogram), Some(other)) = (&mut self.0, &other.0) {
            // Never fails: both have the same bounds.
            let _ = histogram.add(other);
        }
    }

    fn quantiles(&self) -> Quantiles {
        let Some(histogram) = self.0.as_ref().filter(|histogram| !histogram.is_empty()) else {
            return Quantiles::default();
        };
        let ms = |quantile: f64| histogram.value_at_quantile(quantile) as f64 / 1e3;
        Quantiles {
            mean: histogram.mean() / 1e3,
            p50: ms(0.5),
            p90: ms(0.9),
            p95: ms(0.95),
            p99: ms(0.99),
            max: histogram.max() as f64 / 1e3,
        }
    }
}

impl Measure {
    pub(super) fn new(slo: Slo, filling: u64) -> Self {
        Self {
            slo,
            filling,
            first: None,
            last: 0,
            sums: Sums::default(),
            full: None,
            latest: (0, Sums::default()),
            failed: 0,
            arrived: 0,
            reused_tokens: 0,
            computed_tokens: 0,
            recomputed_tokens: 0,
            preemptions: 0,
            steps: 0,
            step_tokens: 0,
            itl: Times::new(),
            filling_times: Latencies::new(),
            times: Latencies::new(),
        }
    }

    fn times_of(&mut self, job: &Job) -> &mut Latencies {
        if job.measured { &mut self.times } else { &mut self.filling_times }
    }

    /// A request has come; whether its latencies count.
    pub(super) fn accepted(&mut self, at: Nanos) -> bool {
        self.arrived += 1;
        self.first.get_or_insert(at);
        self.latest = (at, self.sums);
        self.arrived > self.filling
    }

    pub(super) fn prefilled(&mut self, job: &Job, at: Nanos) {
        self.times_of(job).prefill.note(seconds(at - job.arrived), 1);
        self.reused_tokens += job.reused as u64;
    }

    pub(super) fn computed(&mut self, tokens: usize) {
        self.computed_tokens += tokens as u64;
    }

    pub(super) fn recomputed(&mut self, tokens: usize) {
        self.recomputed_tokens += tokens as u64;
    }

    pub(super) fn first_token(&mut self, job: &Job, at: Nanos) {
        self.times_of(job).ttft.note(seconds(at - job.arrived), 1);
    }

    /// Prefill has sampled a token.
    pub(super) fn sampled(&mut self) {
        self.sums.output_tokens += 1;
    }

    pub(super) fn gap(&mut self, seconds: f64, count: u64) {
        self.itl.note(seconds, count);
    }

    pub(super) fn stepped(&mut self, steps: usize, sequences: usize) {
        self.steps += steps as u64;
        self.step_tokens += (steps * sequences) as u64;
        self.sums.output_tokens += (steps * sequences) as u64;
    }

    pub(super) fn preempted(&mut self) {
        self.preemptions += 1;
    }

    pub(super) fn failed(&mut self) {
        self.failed += 1;
    }

    pub(super) fn generated_tokens(&self) -> u64 {
        self.sums.output_tokens
    }

    /// Requests that ended.
    pub(super) fn ended(&self) -> u64 {
        self.sums.completed + self.failed
    }

    pub(super) fn completed(&mut self, job: &Job, result: Nanos) {
        self.last = self.last.max(result);
        let ttft = seconds(job.first - job.arrived);
        let gaps = job.output - 1;
        let tpot = if gaps == 0 { 0.0 } else { seconds(job.last - job.first) / gaps as f64 };
        let times = self.times_of(job);
        if gaps > 0 {
            times.tpot.note(tpot, 1);
        }
        times.e2el.note(seconds(result - job.arrived), 1);
        let within = |bound: Option<f64>, value: f64| bound.is_none_or(|bound| value <= bound);
        self.sums.completed += 1;
        self.sums.good += u64::from(within(self.slo.ttft_s, ttft) && within(self.slo.itl_s, tpot));
        self.sums.prompt_tokens += job.prompt as u64;
        if self.filling > 0 && self.sums.completed == self.filling {
            self.full = Some((result, self.sums));
        }
    }

    pub(super) fn report(
        &self,
        prefill: &Shared,
        decode: &Shared,
        options: &Options,
        events: u64,
        changes: Vec<Change>,
    ) -> Report {
        let duration_s = seconds(self.last.saturating_sub(self.first.unwrap_or(0)));
        let mut times = self.times.clone();
        let ((from, before), (to, after)) = match self.full {
            Some(full) if self.latest.1.completed >= 2 * self.filling => (full, self.latest),
            // Too few to have a steady state: all of it.
            _ => {
                times.add(&self.filling_times);
                ((self.first.unwrap_or(0), Sums::default()), (self.last, self.sums))
            }
        };
        let steady_s = seconds(to.saturating_sub(from));
        let rate = |sum: fn(&Sums) -> u64| {
            if steady_s > 0.0 { (sum(&after) - sum(&before)) as f64 / steady_s } else { 0.0 }
        };
        let usage = |pool: &Shared, slots: usize| {
            let present = (pool.present_nanos as f64).max(1.0);
            Use {
                workers: pool.present_nanos as f64 / 1e9 / duration_s.max(1e-9),
                busy: pool.busy_nanos as f64 / present,
                slots: pool.held_nanos as f64 / present / slots.max(1) as f64,
            }
        };
        Report {
            completed: self.sums.completed,
            failed: self.failed,
            duration_s,
            request_throughput: rate(|sums| sums.completed),
            input_throughput: rate(|sums| sums.prompt_tokens),
            output_throughput: rate(|sums| sums.output_tokens),
            goodput: rate(|sums| sums.good),
            ttft: times.ttft.quantiles(),
            itl: self.itl.quantiles(),
            tpot: times.tpot.quantiles(),
            e2el: times.e2el.quantiles(),
            prefill_latency: times.prefill.quantiles(),
            prefill: usage(prefill, options.prefill.slots),
            decode: usage(decode, options.decode.slots),
            mean_batch: self.step_tokens as f64 / (self.steps as f64).max(1.0),
            reused: self.reused_tokens as f64 / (self.sums.prompt_tokens as f64).max(1.0),
            decode_prefilled_tokens: self.recomputed_tokens,
            preemptions: self.preemptions,
            events,
            changes,
        }
    }
}
