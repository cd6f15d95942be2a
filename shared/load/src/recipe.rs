//! Loads as a plan predicts them: drawn, or read of a trace as they are needed, again and again.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Lines},
    path::{Path, PathBuf},
};

use baton_workload::{
    Arrivals, Draw, Drawn, Named, Shape,
    arrivals::{self, Burstiness, Rate},
    draw::Scales,
    trace,
};

/// Requests of a drawn workload where nobody says how many.
const REQUESTS: u64 = 10_000;

/// What a workload is made of.
#[derive(Clone, Debug)]
pub struct Options {
    /// Lengths without a name.
    pub own: Option<Shape>,
    /// Lengths with one, where there are no others.
    pub named: Named,
    /// A recorded load instead of both.
    pub trace: Option<PathBuf>,
    /// Tokens of a block that a hash of the trace stands for.
    pub block_tokens: u32,
    /// How the trace's times, and all lengths, are changed.
    pub scales: Scales,
    /// Requests a second; without it those of a trace come when they came.
    pub rate: Option<Rate>,
    /// How even the gaps between requests are.
    pub burstiness: Burstiness,
    /// Requests under way at a time, in a closed loop.
    pub concurrency: Option<usize>,
    /// Requests; without it 10,000, or all of the trace.
    pub jobs: Option<u64>,
    /// Equal seeds give equal arrivals and lengths.
    pub seed: u64,
}

/// Why there are no requests.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A scale out of bounds.
    #[error("{name}: expected 0.000001 to 1000000, found {scale}")]
    Scale {
        /// The option.
        name: &'static str,
        /// Its value.
        scale: f64,
    },
    /// A trace that can't be opened.
    #[error("cannot read the trace {}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A trace that can't be read to its end.
    #[error("cannot read the trace")]
    Read(#[source] io::Error),
    /// A line that is no request.
    #[error(transparent)]
    Line(#[from] trace::Error),
    /// A rate that is none.
    #[error(transparent)]
    Rate(#[from] arrivals::Error),
}

/// A workload that can be drawn again and again.
#[derive(Clone, Debug)]
pub struct Recipe {
    source: Source,
    rate: Option<Rate>,
    burstiness: Burstiness,
    concurrency: Option<usize>,
    jobs: u64,
    seed: u64,
}

#[derive(Clone, Debug)]
enum Source {
    Drawn { shape: Shape, name: String },
    Trace { path: PathBuf, block_tokens: u32, scales: Scales },
}

impl Recipe {
    /// What the options say.
    ///
    /// # Errors
    ///
    /// If a scale is out of bounds.
    pub fn new(options: Options) -> Result<Self, Error> {
        let Options { own, named, trace, block_tokens, scales, rate, burstiness, concurrency, jobs, seed } = options;
        for (name, scale) in [("--time-scale", scales.time), ("--length-scale", scales.length)] {
            if !(1e-6..=1e6).contains(&scale) {
                return Err(Error::Scale { name, scale });
            }
        }
        let source = match trace {
            Some(path) => Source::Trace { path, block_tokens, scales },
            None => {
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

    /// Requests under way at a time, in a closed loop.
    pub fn concurrency(&self) -> Option<usize> {
        self.concurrency
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
    ///
    /// # Errors
    ///
    /// If the trace can't be opened; each request tells whether it could be read.
    pub fn requests(&self, rate: Option<f64>) -> Result<impl Iterator<Item = Result<Drawn, Error>>, Error> {
        let rate = match rate {
            Some(rate) => Some(Rate::new(rate.clamp(0.001, 100_000.0))?),
            None => self.rate,
        };
        let arrivals = Arrivals { rate: rate.unwrap_or(Rate::ALL_AT_ONCE), burstiness: self.burstiness };
        let drawn: Box<dyn Iterator<Item = Result<Drawn, Error>>> = match &self.source {
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
    fn open(path: &Path, block_tokens: u32, scales: Scales, retimed: Option<Draw>) -> Result<Self, Error> {
        let file = File::open(path).map_err(|source| Error::Open { path: path.to_owned(), source })?;
        Ok(Self { lines: BufReader::new(file).lines(), reader: trace::Reader::new(block_tokens), scales, retimed })
    }

    fn read(&mut self, line: io::Result<String>) -> Result<Option<Drawn>, Error> {
        let Some(line) = self.reader.read(&line.map_err(Error::Read)?)? else { return Ok(None) };
        let mut drawn = self.scales.apply(line);
        if let Some(other) = self.retimed.as_mut().and_then(Draw::next) {
            drawn.at = other.at;
        }
        Ok(Some(drawn))
    }
}

impl Iterator for Recorded {
    type Item = Result<Drawn, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let line = self.lines.next()?;
            if let Some(read) = self.read(line).transpose() {
                return Some(read);
            }
        }
    }
}
