//! The requests of a run, one after another. What is drawn, and how, lies in `baton_workload`, which `baton plan` uses too.

use std::{
    fs::File,
    io::{BufRead, BufReader},
    path::Path,
    sync::Arc,
    time::Duration,
};

use baton_contract::request::{Prompt, Request};
use baton_workload::{
    Arrivals, Draw, Drawn,
    arrivals::Rate,
    draw::Scales,
    prompt, stream,
    trace::{self, Line},
};
use rand_chacha::ChaCha8Rng;

use crate::{Error, Options, options::FIRST_TOKEN};

/// Gaps of a trace or dataset that comes at a rate; drawn requests have those of their own.
const GAPS: u64 = 0;

/// A request that is yet to be made: prompts are made only when they are sent, for a long run would fill the memory.
#[derive(Clone, Debug)]
pub(crate) struct Planned {
    /// When it is to be sent, from the run's start; a closed loop decides itself.
    pub(crate) at: Duration,
    index: u64,
    content: Content,
}

#[derive(Clone, Debug)]
enum Content {
    Drawn(Drawn),
    Given(Arc<Vec<Request>>, usize),
}

/// All requests of a run, the warm-up first.
pub(crate) struct Workload {
    source: Source,
    /// Arrivals of requests that bring none.
    arrivals: Option<(Arrivals, ChaCha8Rng)>,
    at: f64,
    next: u64,
    /// Requests that there may be.
    most: u64,
}

enum Source {
    Drawn(Box<Draw>),
    Trace(std::vec::IntoIter<Line>, Scales),
    Given(Arc<Vec<Request>>),
}

/// Makes the requests that were planned. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Maker {
    seed: u64,
    vocabulary: u32,
    model: Option<Arc<str>>,
    /// Tokens of a trace's block in this run.
    block_tokens: u32,
}

impl Workload {
    /// The run that `options` describe; equal options give equal runs. They must have been checked.
    pub(crate) fn new(options: &Options) -> Result<Self, Error> {
        let arrivals = Arrivals { rate: options.rate.unwrap_or(Rate::ALL_AT_ONCE), burstiness: options.burstiness };
        let mut given = None;
        let source = match (&options.trace, &options.dataset) {
            (Some(path), _) => {
                let lines = lines(path, options.block_tokens.get())?;
                Source::Trace(lines.into_iter(), options.scales())
            }
            (_, Some(path)) => {
                let requests = requests(path)?;
                given = Some(requests.len() as u64);
                Source::Given(Arc::new(requests))
            }
            _ => Source::Drawn(Box::new(Draw::new(arrivals, options.shape(), options.seed))),
        };
        let recorded = matches!(source, Source::Trace(..)) && options.rate.is_none() && options.concurrency.is_none();
        let own = !recorded && !matches!(source, Source::Drawn(_));
        let most = match (options.jobs, options.duration_s, given) {
            (Some(jobs), ..) => (options.warmup + jobs) as u64,
            (None, None, Some(given)) => given,
            _ => u64::MAX,
        };
        let arrivals = own.then(|| (arrivals, stream(options.seed, GAPS)));
        Ok(Self { source, arrivals, at: 0.0, next: 0, most })
    }

    /// How many there are, if that is known.
    pub(crate) fn total(&self) -> Option<usize> {
        let left = match &self.source {
            Source::Trace(lines, _) => lines.len() as u64,
            _ => u64::MAX,
        };
        Some(self.most.min(left)).filter(|total| *total != u64::MAX).map(|total| total as usize)
    }
}

impl Iterator for Workload {
    type Item = Planned;

    fn next(&mut self) -> Option<Planned> {
        let index = self.next;
        if index >= self.most {
            return None;
        }
        let content = match &mut self.source {
            Source::Drawn(draw) => Content::Drawn(draw.next()?),
            Source::Trace(lines, scales) => Content::Drawn(scales.apply(lines.next()?)),
            Source::Given(requests) => Content::Given(requests.clone(), (index % requests.len() as u64) as usize),
        };
        self.next += 1;
        let at = match (&mut self.arrivals, &content) {
            (Some((arrivals, random)), _) => {
                self.at += arrivals.gap(random);
                Duration::try_from_secs_f64(self.at).unwrap_or(Duration::MAX)
            }
            (None, Content::Drawn(drawn)) => drawn.at,
            (None, Content::Given(..)) => Duration::ZERO,
        };
        Some(Planned { at, index, content })
    }
}

impl Maker {
    pub(crate) fn new(options: &Options) -> Self {
        let block = f64::from(options.block_tokens.get()) * options.length_scale;
        Self {
            seed: options.seed,
            vocabulary: options.vocabulary,
            model: options.model.as_deref().map(Into::into),
            block_tokens: block.round().clamp(1.0, f64::from(u32::MAX)) as u32,
        }
    }

    /// The request, which is made where it is sent, off the thread that keeps the time.
    pub(crate) fn make(&self, planned: &Planned, id: Option<&Arc<str>>) -> Request {
        let model = self.model.as_deref().map(str::to_owned);
        let id = id.map(|id| id.to_string());
        let ids = FIRST_TOKEN..self.vocabulary;
        match &planned.content {
            Content::Given(requests, place) => {
                let request = requests[*place].clone();
                Request { id, model: model.or(request.model), ..request }
            }
            Content::Drawn(drawn) => {
                let prompt = if drawn.blocks.is_empty() {
                    prompt::random(self.seed, planned.index, drawn.prompt_tokens, ids)
                } else {
                    prompt::of_blocks(self.seed, &drawn.blocks, self.block_tokens, drawn.prompt_tokens, ids)
                };
                Request {
                    id,
                    model,
                    prompt: Some(Prompt::Tokens(prompt)),
                    max_tokens: Some(drawn.max_tokens),
                    ..Request::default()
                }
            }
        }
    }
}

fn read(path: &Path, mut each: impl FnMut(usize, &str) -> Result<(), Error>) -> Result<(), Error> {
    let failed = |source| Error::Read { path: path.to_owned(), source };
    for (line, text) in (1..).zip(BufReader::new(File::open(path).map_err(failed)?).lines()) {
        each(line, &text.map_err(failed)?)?;
    }
    Ok(())
}

fn lines(path: &Path, block_tokens: u32) -> Result<Vec<Line>, Error> {
    let mut reader = trace::Reader::new(block_tokens);
    let mut lines = Vec::new();
    read(path, |_, text| {
        lines.extend(reader.read(text)?);
        Ok(())
    })?;
    if lines.is_empty() { Err(Error::Empty { path: path.to_owned() }) } else { Ok(lines) }
}

fn requests(path: &Path) -> Result<Vec<Request>, Error> {
    let mut requests = Vec::new();
    read(path, |line, text| {
        if !text.trim().is_empty() {
            requests.push(serde_json::from_str(text).map_err(|source| Error::Request { line, source })?);
        }
        Ok(())
    })?;
    if requests.is_empty() { Err(Error::Empty { path: path.to_owned() }) } else { Ok(requests) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn planned(options: &Options) -> Vec<Planned> {
        Workload::new(options).unwrap().collect()
    }

    #[test]
    fn a_dataset_is_repeated_as_far_as_asked_for_and_comes_at_the_rate() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "{\"prompt\": \"a\", \"id\": \"x\"}\n\n{\"prompt\": \"b\", \"model\": \"m\"}\n")
            .unwrap();
        let once = Options {
            dataset: Some(file.path().into()),
            jobs: None,
            burstiness: "inf".parse().unwrap(),
            ..Options::open_loop(10.0, 1).unwrap()
        };
        assert_eq!(planned(&once).len(), 2);
        let five = Options { jobs: Some(5), model: Some("other".into()), ..once };
        let all = planned(&five);
        let requests: Vec<Request> = all.iter().map(|planned| Maker::new(&five).make(planned, None)).collect();
        let prompts: Vec<_> = requests.iter().map(|request| request.prompt.clone().unwrap()).collect();
        let text = |text: &str| Prompt::Text(text.into());
        assert_eq!(prompts, [text("a"), text("b"), text("a"), text("b"), text("a")]);
        assert!(requests.iter().all(|request| request.id.is_none() && request.model.as_deref() == Some("other")));
        assert_eq!(all[4].at, Duration::from_millis(500));

        std::fs::write(file.path(), "{\"prompt\": \"a\"}\n{\"promt\": \"b\"}\n").unwrap();
        let error = baton_contract::causes(&Workload::new(&five).err().unwrap());
        assert!(error.contains("line 2") && error.contains("promt"), "{error}");
    }

    #[test]
    fn a_trace_comes_when_it_came_and_shares_what_it_shared() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let trace = "{\"timestamp\": 0, \"input_length\": 1000, \"output_length\": 40, \"hash_ids\": [1, 2]}\n\
                     {\"timestamp\": 2000, \"input_length\": 600, \"output_length\": 8, \"hash_ids\": [1, 3]}\n";
        std::fs::write(file.path(), trace).unwrap();
        let options = Options {
            rate: None,
            jobs: None,
            trace: Some(file.path().into()),
            time_scale: 0.5,
            length_scale: 0.25,
            ..Options::open_loop(1.0, 1).unwrap()
        };
        options.check().unwrap();
        let all = planned(&options);
        assert_eq!(all.iter().map(|planned| planned.at.as_millis()).collect::<Vec<_>>(), [0, 1000]);
        let tokens = |planned| match Maker::new(&options).make(planned, None).prompt {
            Some(Prompt::Tokens(tokens)) => tokens,
            other => panic!("not a list of tokens: {other:?}"),
        };
        let (first, second) = (tokens(&all[0]), tokens(&all[1]));
        assert_eq!((first.len(), second.len()), (250, 150));
        // A block of 512 tokens is one of 128 here.
        assert_eq!(first[..128], second[..128]);
        assert_ne!(first[128..150], second[128..150]);
        assert_eq!(Workload::new(&options).unwrap().total(), Some(2));
    }
}
