//! What load to make.

use std::{num::NonZeroU32, path::PathBuf, time::Duration};

use baton_contract::{Name, causes};
use baton_workload::{
    Lengths, Named, Shape,
    arrivals::{Burstiness, Rate},
    draw::Scales,
    trace,
};
use serde::Serialize;

use crate::{Error, slo::Bound};

/// Ids below it stand for control tokens in most vocabularies (a chat model may end its answer when it meets one).
pub const FIRST_TOKEN: u32 = 32;

const TENANT: &str = "loadtest";
const LANE: &str = "interactive";
const LENGTH: Lengths = Lengths::Fixed(128);
const VOCABULARY: u32 = 256;
const TIMEOUT_S: f64 = 60.0;

/// The load of one run: how much, how fast, of what size, and what counts as good.
#[derive(clap::Args, Clone, Debug, Serialize)]
pub struct Options {
    /// Open loop: requests per second on average, or inf for all at once
    #[arg(long = "request-rate", visible_alias = "rate", value_name = "R",
        required_unless_present_any = ["concurrency", "trace"], conflicts_with = "concurrency")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate: Option<Rate>,
    /// How even the gaps between requests are: 1 is Poisson, less comes in bursts, inf is all gaps alike
    #[arg(long, value_name = "B", default_value_t = Burstiness::POISSON)]
    pub burstiness: Burstiness,
    /// Closed loop: so many requests are under way, and each that ends makes room for the next
    #[arg(long, value_name = "N", value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=100_000))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<usize>,
    /// Requests that are measured; without it as many as --duration, the trace or the dataset has
    #[arg(long = "num-prompts", visible_alias = "jobs", value_name = "N",
        required_unless_present_any = ["duration_s", "trace", "dataset"])]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jobs: Option<usize>,
    /// Seconds in which requests are sent, the warm-up included
    #[arg(long = "duration", value_name = "S")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duration_s: Option<f64>,
    /// Requests that are sent before those, in the same way, and left out of every figure
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub warmup: usize,
    /// Lengths with a name: long (short prompt, long generation), mixed, or prompts (long prompt, short answer)
    #[arg(long, value_name = "NAME", conflicts_with_all = ["prompt_tokens", "output_tokens"])]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workload: Option<Named>,
    /// Length of the prompts in tokens: 256, uniform:64:512, lognormal:MEAN:SIGMA or exp:MEAN
    #[arg(long, value_name = "DIST", default_value_t = LENGTH)]
    pub prompt_tokens: Lengths,
    /// Most tokens of the answers, as a distribution too; a model may end an answer sooner
    #[arg(long, value_name = "DIST", default_value_t = LENGTH)]
    pub output_tokens: Lengths,
    /// Makes every prompt and answer so many times as long, a trace's too
    #[arg(long, value_name = "F", default_value_t = 1.0)]
    pub length_scale: f64,
    /// Replay a recorded load, a JSON object a line: timestamp in ms, input_length, output_length, hash_ids; prompts share
    /// prefixes as the hashes say, and come when they came unless a rate or concurrency is given
    #[arg(long, value_name = "FILE", conflicts_with_all = ["workload", "prompt_tokens", "output_tokens", "dataset"])]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trace: Option<PathBuf>,
    /// Tokens of a block that a hash of the trace stands for
    #[arg(long, value_name = "TOKENS", default_value_t = BLOCK_TOKENS)]
    pub block_tokens: NonZeroU32,
    /// Makes the gaps between a trace's requests so many times as long: 0.1 is ten times as fast
    #[arg(long, value_name = "F", default_value_t = 1.0)]
    pub time_scale: f64,
    /// Requests from a file, one JSON object a line as `baton submit --jsonl` takes them, from the first again where they
    /// don't suffice
    #[arg(long, value_name = "FILE", conflicts_with_all = ["workload", "prompt_tokens", "output_tokens"])]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dataset: Option<PathBuf>,
    /// Prompts are random token ids from 32 to below this; the default fits every model, the sim included
    #[arg(long, value_name = "N", default_value_t = VOCABULARY)]
    pub vocabulary: u32,
    /// Equal seeds give equal arrivals, lengths and prompts; take another to meet no KV of an earlier run
    #[arg(long, value_name = "S", default_value_t = 0)]
    pub seed: u64,
    /// A model of the pipeline or server; without it the default
    #[arg(long, short, value_name = "M")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Tenant to submit as on the bus
    #[arg(long, default_value = TENANT)]
    pub tenant: Name,
    /// Lane to submit on; the default is the first lane of a pipeline that names none
    #[arg(long, default_value = LANE)]
    pub lane: Name,
    /// What a good request keeps to, in milliseconds, as in `--goodput ttft:2000 tpot:100`; also itl (its mean) and e2el
    #[arg(long, value_name = "METRIC:MS", num_args = 1..)]
    pub goodput: Vec<Bound>,
    /// Seconds after its intended send time at which a request without a result is lost
    #[arg(long = "timeout", value_name = "S", default_value_t = TIMEOUT_S)]
    pub timeout_s: f64,
}

const BLOCK_TOKENS: NonZeroU32 = match NonZeroU32::new(trace::BLOCK_TOKENS) {
    Some(tokens) => tokens,
    None => NonZeroU32::MIN,
};

impl Options {
    /// `jobs` requests at `rate` per second, the rest as on the command line without flags.
    pub fn open_loop(rate: f64, jobs: usize) -> Result<Self, Error> {
        let rate = Rate::new(rate).map_err(|error| Error::Rate(causes(&error)))?;
        Ok(Self { rate: Some(rate), jobs: Some(jobs), ..Self::plain()? })
    }

    /// Requests for `lasts`, of which `concurrency` are under way at a time.
    pub fn closed_loop(concurrency: usize, lasts: Duration) -> Result<Self, Error> {
        Ok(Self { concurrency: Some(concurrency), duration_s: Some(lasts.as_secs_f64()), ..Self::plain()? })
    }

    fn plain() -> Result<Self, Error> {
        Ok(Self {
            rate: None,
            burstiness: Burstiness::POISSON,
            concurrency: None,
            jobs: None,
            duration_s: None,
            warmup: 0,
            workload: None,
            prompt_tokens: LENGTH,
            output_tokens: LENGTH,
            length_scale: 1.0,
            trace: None,
            block_tokens: BLOCK_TOKENS,
            time_scale: 1.0,
            dataset: None,
            vocabulary: VOCABULARY,
            seed: 0,
            model: None,
            tenant: Name::new(TENANT)?,
            lane: Name::new(LANE)?,
            goodput: Vec::new(),
            timeout_s: TIMEOUT_S,
        })
    }

    /// The lengths of drawn requests.
    pub fn shape(&self) -> Shape {
        let own = Shape { prompt_tokens: self.prompt_tokens, output_tokens: self.output_tokens };
        let shape = self.workload.map_or(own, Named::shape);
        if self.length_scale == 1.0 { shape } else { shape.scaled(self.length_scale) }
    }

    /// What becomes of a trace.
    pub fn scales(&self) -> Scales {
        Scales { time: self.time_scale, length: self.length_scale }
    }

    /// The load in a few words.
    pub fn describe(&self) -> String {
        let how = match (self.rate, self.concurrency) {
            (Some(rate), _) if rate.get().is_infinite() => "all at once".to_owned(),
            (Some(rate), _) if self.burstiness == Burstiness::POISSON => format!("{rate} req/s"),
            (Some(rate), _) => format!("{rate} req/s, burstiness {}", self.burstiness),
            (None, Some(concurrency)) => format!("{concurrency} at a time"),
            (None, None) => format!("as recorded, time x {}", self.time_scale),
        };
        let Shape { prompt_tokens, output_tokens } = self.shape();
        let what = match (&self.trace, &self.dataset, self.workload) {
            (Some(trace), ..) => format!("{}, lengths x {}", trace.display(), self.length_scale),
            (_, Some(dataset), _) => dataset.display().to_string(),
            (.., Some(named)) => format!("{named} ({prompt_tokens} to {output_tokens})"),
            _ => format!("{prompt_tokens} to {output_tokens}"),
        };
        format!("{what}, {how}")
    }

    /// Refuses what no load can be made from.
    pub(crate) fn check(&self) -> Result<(), Error> {
        let refused =
            |name, expected, found: &dyn ToString| Err(Error::Option { name, expected, found: found.to_string() });
        match (self.rate, self.concurrency, &self.trace) {
            (Some(_), Some(_), _) | (None, None, None) => {
                return refused("request-rate", "a rate, a concurrency or a trace", &"none or several");
            }
            _ => {}
        }
        if self.jobs.is_none() && self.duration_s.is_none() && self.trace.is_none() && self.dataset.is_none() {
            return refused("num-prompts", "a number, a duration, a trace or a dataset", &"none");
        }
        if let Some(jobs) = self.jobs.filter(|jobs| !(1..=1_000_000).contains(jobs)) {
            return refused("num-prompts", "1 to 1000000", &jobs);
        }
        if self.rate.is_some_and(|rate| rate.get().is_infinite()) && self.jobs.is_none() && self.duration_s.is_some() {
            return refused("num-prompts", "a number where all requests come at once", &"none");
        }
        if self.warmup > 1_000_000 {
            return refused("warmup", "0 to 1000000", &self.warmup);
        }
        if self.vocabulary <= FIRST_TOKEN {
            return refused("vocabulary", "above 32", &self.vocabulary);
        }
        for (name, seconds) in [("timeout", Some(self.timeout_s)), ("duration", self.duration_s)] {
            if let Some(seconds) = seconds.filter(|seconds| !(0.001..=1e6).contains(seconds)) {
                return refused(name, "0.001 to 1000000 seconds", &seconds);
            }
        }
        for (name, factor) in [("time-scale", self.time_scale), ("length-scale", self.length_scale)] {
            if !(1e-6..=1e6).contains(&factor) {
                return refused(name, "0.000001 to 1000000", &factor);
            }
        }
        Ok(())
    }
}
