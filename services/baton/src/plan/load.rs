//! The workload of a plan. Its options are those of the load generator, so that a prediction and a run are of one load.

use std::path::PathBuf;

use baton_load::{Recipe, recipe};
use baton_planner::simulate::Flow;
use baton_workload::{
    Lengths, Named, Shape,
    arrivals::{Burstiness, Rate},
    draw::Scales,
    trace,
};

#[derive(clap::Args)]
#[group(id = "load")]
pub struct LoadArguments {
    /// Lengths with a name: long (short prompt, long generation), mixed, or prompts (long prompt, short answer)
    #[arg(long, value_name = "NAME", conflicts_with_all = ["prompt_tokens", "output_tokens"])]
    workload: Option<Named>,
    /// Length of the prompts in tokens: 256, uniform:64:512, lognormal:MEAN:SIGMA or exp:MEAN
    #[arg(long, value_name = "DIST", requires = "output_tokens")]
    prompt_tokens: Option<Lengths>,
    /// Tokens of the answers, as a distribution too
    #[arg(long, value_name = "DIST", requires = "prompt_tokens")]
    output_tokens: Option<Lengths>,
    /// A recorded load, a JSON object a line: timestamp in ms, input_length, output_length, hash_ids
    #[arg(long, value_name = "FILE", conflicts_with_all = ["workload", "prompt_tokens", "output_tokens"])]
    trace: Option<PathBuf>,
    /// Tokens of a block that a hash of the trace stands for
    #[arg(long, value_name = "TOKENS", default_value_t = trace::BLOCK_TOKENS, value_parser = clap::value_parser!(u32).range(1..))]
    block_tokens: u32,
    /// Makes the gaps between a trace's requests so many times as long: 0.1 is ten times as fast
    #[arg(long, value_name = "F", default_value_t = 1.0)]
    time_scale: f64,
    /// Makes every prompt and answer so many times as long, a trace's too
    #[arg(long, value_name = "F", default_value_t = 1.0)]
    length_scale: f64,
    /// Open loop: requests per second on average, or inf for all at once
    #[arg(long = "request-rate", visible_alias = "rate", value_name = "R", conflicts_with = "concurrency")]
    rate: Option<Rate>,
    /// How even the gaps between requests are: 1 is Poisson, less comes in bursts, inf is all gaps alike
    #[arg(long, value_name = "B", default_value_t = Burstiness::POISSON)]
    burstiness: Burstiness,
    /// Closed loop: so many requests are under way, and each that ends makes room for the next
    #[arg(long, value_name = "N", value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=1_000_000))]
    concurrency: Option<usize>,
    /// Requests to simulate: 10000, or all of the trace
    #[arg(long = "num-prompts", visible_alias = "jobs", value_name = "N")]
    jobs: Option<u64>,
    /// Equal seeds give equal arrivals and lengths
    #[arg(long, value_name = "S", default_value_t = 0)]
    seed: u64,
}

impl LoadArguments {
    /// What the options say.
    pub fn recipe(&self) -> Result<Recipe, recipe::Error> {
        let own = self.prompt_tokens.zip(self.output_tokens);
        let own = own.map(|(prompt_tokens, output_tokens)| Shape { prompt_tokens, output_tokens });
        Recipe::new(recipe::Options {
            own,
            named: self.workload.unwrap_or(Named::Mixed),
            trace: self.trace.clone(),
            block_tokens: self.block_tokens,
            scales: Scales { time: self.time_scale, length: self.length_scale },
            rate: self.rate,
            burstiness: self.burstiness,
            concurrency: self.concurrency,
            jobs: self.jobs,
            seed: self.seed,
        })
    }
}

/// How the requests of a load come.
pub fn flow(load: &Recipe) -> Flow {
    load.concurrency().map_or(Flow::Planned, Flow::Concurrency)
}
