//! What load to make.

use baton_contract::Name;
use serde::Serialize;

use crate::{Error, Lengths};

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
    /// Requests per second on average; the gaps between them are exponential (Poisson arrivals)
    #[arg(long, value_name = "R")]
    pub rate: f64,
    /// Requests that are measured
    #[arg(long, value_name = "N")]
    pub jobs: usize,
    /// Requests that are sent before those, at the same rate, and left out of every figure
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub warmup: usize,
    /// Length of the prompts in tokens: 256, uniform:64:512, lognormal:MEAN:SIGMA or exp:MEAN
    #[arg(long, value_name = "DIST", default_value_t = LENGTH)]
    pub prompt_tokens: Lengths,
    /// Most tokens of the answers, as a distribution too; a model may end an answer sooner
    #[arg(long, value_name = "DIST", default_value_t = LENGTH)]
    pub output_tokens: Lengths,
    /// Prompts are random token ids from 32 to below this; the default fits every model, the sim included
    #[arg(long, value_name = "N", default_value_t = VOCABULARY)]
    pub vocabulary: u32,
    /// Equal seeds give equal arrivals, lengths and prompts; take another to meet no KV of an earlier run
    #[arg(long, value_name = "S", default_value_t = 0)]
    pub seed: u64,
    /// A model of the pipeline; without it the pipeline's default
    #[arg(long, short, value_name = "M")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<Name>,
    /// Tenant to submit as
    #[arg(long, default_value = TENANT)]
    pub tenant: Name,
    /// Lane to submit on; the default is the first lane of a pipeline that names none
    #[arg(long, default_value = LANE)]
    pub lane: Name,
    /// Good requests have their first token within this many milliseconds
    #[arg(long = "slo-ttft", value_name = "MS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slo_ttft_ms: Option<f64>,
    /// Good requests have their result within this many milliseconds
    #[arg(long = "slo-e2el", value_name = "MS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slo_e2el_ms: Option<f64>,
    /// Seconds after its intended send time at which a request without a result is lost
    #[arg(long = "timeout", value_name = "S", default_value_t = TIMEOUT_S)]
    pub timeout_s: f64,
}

impl Options {
    /// `jobs` requests at `rate` per second, the rest as on the command line without flags.
    pub fn new(rate: f64, jobs: usize) -> Result<Self, baton_contract::name::Error> {
        Ok(Self {
            rate,
            jobs,
            warmup: 0,
            prompt_tokens: LENGTH,
            output_tokens: LENGTH,
            vocabulary: VOCABULARY,
            seed: 0,
            model: None,
            tenant: Name::new(TENANT)?,
            lane: Name::new(LANE)?,
            slo_ttft_ms: None,
            slo_e2el_ms: None,
            timeout_s: TIMEOUT_S,
        })
    }

    /// Refuses what no load can be made from.
    pub(crate) fn check(&self) -> Result<(), Error> {
        let refused =
            |name, expected, found: &dyn ToString| Err(Error::Option { name, expected, found: found.to_string() });
        if !(0.001..=100_000.0).contains(&self.rate) {
            return refused("rate", "0.001 to 100000 requests per second", &self.rate);
        }
        if !(1..=1_000_000).contains(&self.jobs) {
            return refused("jobs", "1 to 1000000", &self.jobs);
        }
        if self.warmup > 1_000_000 {
            return refused("warmup", "0 to 1000000", &self.warmup);
        }
        if self.vocabulary <= FIRST_TOKEN {
            return refused("vocabulary", "above 32", &self.vocabulary);
        }
        if !(0.001..=1e6).contains(&self.timeout_s) {
            return refused("timeout", "0.001 to 1000000 seconds", &self.timeout_s);
        }
        for (name, slo) in [("slo-ttft", self.slo_ttft_ms), ("slo-e2el", self.slo_e2el_ms)] {
            if let Some(slo) = slo
                && !(0.0..=1e9).contains(&slo)
            {
                return refused(name, "0 to 1000000000 milliseconds", &slo);
            }
        }
        Ok(())
    }
}
