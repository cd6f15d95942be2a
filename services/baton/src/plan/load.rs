//! The workload of a plan. Its options are those of the load generator, so that a prediction and a run are of the same load.

use std::{
    fs::File,
    io::{BufRead, BufReader, Lines},
    path::{Path, PathBuf},
};

use anyhow::{Context, ensure};
use baton_planner::simulate::Flow;
use baton_workload::{
    Arrivals, Draw, Drawn, Lengths, Named, Shape,
    arrivals::{Burstiness, Rate},
    draw::Scales,
    trace,
};

/// Requests of a drawn workload where nobody says how many.
const REQUESTS: u64 = 10_000;

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

/// A workload that can be drawn again and again.
pub struct Load {
    source: Source,
    rate: Option<Rate>,
    burstiness: Burstiness,
    concurrency: Option<usize>,
    jobs: u64,
    seed: u64,
}

enum Source {
    Drawn { shape: Shape, name: String },
    Trace { path: PathBuf, block_tokens: u32, scales: Scales },
}

impl Load {
    pub fn new(arguments: &LoadArguments) -> anyhow::Result<Self> {
        let LoadArguments { rate, burstiness, concurrency, jobs, seed, .. } = *arguments;
        let scales = Scales { time: arguments.time_scale, length: arguments.length_scale };
        for (name, scale) in [("--time-scale", scales.time), ("--length-scale", scales.length)] {
            ensure!((1e-6..=1e6).contains(&scale), "{name}: expected 0.000001 to 1000000, found {scale}");
        }
        let source = match &arguments.trace {
            Some(path) => Source::Trace { path: path.clone(), block_tokens: arguments.block_tokens, scales },
            None => {
                let own = arguments.prompt_tokens.zip(arguments.output_tokens);
                let own = own.map(|(prompt_tokens, output_tokens)| Shape { prompt_tokens, output_tokens });
                let named = arguments.workload.unwrap_or(Named::Mixed);
                let shape = own.unwrap_or_else(|| named.shape());
                let shape = if scales.length == 1.0 { shape } else { shape.scaled(scales.length) };
                let name = if own.is_some() { "own lengths".to_owned() } else { named.to_string() };
                Source::Drawn { shape, name }
            }
        };
        let all = if matches!(source, Source::Trace { .. }) { u64::MAX } else { REQUESTS };
        Ok(Self { source, rate, burstiness, concurrency, jobs: jobs.unwrap_or(all), seed })
    }

    /// Whether it says when requests come.
    pub fn has_times(&self) -> bool {
        self.rate.is_some() || (self.concurrency.is_none() && matches!(self.source, Source::Trace { .. }))
    }

    pub fn flow(&self) -> Flow {
        self.concurrency.map_or(Flow::Planned, Flow::Concurrency)
    }

    /// Tokens of a block that prompts share, scaled.
    pub fn block_tokens(&self) -> usize {
        match &self.source {
            Source::Drawn { .. } => trace::BLOCK_TOKENS as usize,
            Source::Trace { block_tokens, scales, .. } => {
                (f64::from(*block_tokens) * scales.length).round().clamp(1.0, f64::from(u32::MAX)) as usize
            }
        }
    }

    /// The load in a few words.
    pub fn describe(&self) -> String {
        let what = match &self.source {
            Source::Drawn { shape, name } => {
                format!("{name}: prompts {}, answers {}", shape.prompt_tokens, shape.output_tokens)
            }
            Source::Trace { path, scales, .. } => {
                format!("{}, time x {}, length x {}", path.display(), scales.time, scales.length)
            }
        };
        match (self.rate, self.concurrency) {
            (Some(rate), _) => format!("{what}; {rate} requests/s"),
            (None, Some(concurrency)) => format!("{what}; {concurrency} at a time"),
            (None, None) => what,
        }
    }

    /// The requests; at another rate if one is given.
    pub fn requests(&self, rate: Option<f64>) -> anyhow::Result<impl Iterator<Item = anyhow::Result<Drawn>>> {
        let rate = match rate {
            Some(rate) => Some(Rate::new(rate.clamp(0.001, 100_000.0))?),
            None => self.rate,
        };
        let arrivals = Arrivals { rate: rate.unwrap_or(Rate::ALL_AT_ONCE), burstiness: self.burstiness };
        let drawn: Box<dyn Iterator<Item = anyhow::Result<Drawn>>> = match &self.source {
            Source::Drawn { shape, .. } => Box::new(Draw::new(arrivals, *shape, self.seed).map(Ok)),
            Source::Trace { path, block_tokens, scales } => {
                let retimed = rate.map(|_| Draw::new(arrivals, Named::Mixed.shape(), self.seed));
                Box::new(Recorded::open(path, *block_tokens, *scales, retimed)?)
            }
        };
        Ok(drawn.take(usize::try_from(self.jobs).unwrap_or(usize::MAX)))
    }
}

/// A trace, read as it is needed.
struct Recorded {
    lines: Lines<BufReader<File>>,
    reader: trace::Reader,
    scales: Scales,
    /// Whose times take the place of its own.
    retimed: Option<Draw>,
}

impl Recorded {
    fn open(path: &Path, block_tokens: u32, scales: Scales, retimed: Option<Draw>) -> anyhow::Result<Self> {
        let file = File::open(path).with_context(|| format!("cannot read the trace {}", path.display()))?;
        Ok(Self { lines: BufReader::new(file).lines(), reader: trace::Reader::new(block_tokens), scales, retimed })
    }

    fn read(&mut self, line: std::io::Result<String>) -> anyhow::Result<Option<Drawn>> {
        let Some(line) = self.reader.read(&line.context("cannot read the trace")?)? else { return Ok(None) };
        let mut drawn = self.scales.apply(line);
        if let Some(other) = self.retimed.as_mut().and_then(Draw::next) {
            drawn.at = other.at;
        }
        Ok(Some(drawn))
    }
}

impl Iterator for Recorded {
    type Item = anyhow::Result<Drawn>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let line = self.lines.next()?;
            if let Some(read) = self.read(line).transpose() {
                return Some(read);
            }
        }
    }
}
