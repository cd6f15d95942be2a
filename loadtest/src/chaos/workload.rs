//! The jobs of a run, drawn beforehand: what they ask, when they are sent, and what else happens to them.

use std::time::Duration;

use baton_contract::{
    JobId,
    request::{Deadline, Prompt, Request},
};
use rand::{RngExt, seq::IndexedRandom};
use rand_chacha::ChaCha8Rng;

use baton_workload::stream;

const REQUESTS: u64 = 0;
const JOBS: u64 = 1;

/// Of the one large result: tokens of each of its answers, and answers.
const LARGE_TOKENS: u32 = 250;
const LARGE_ANSWERS: u32 = 8;
const FAR: Duration = Duration::from_secs(2 * 3600);

/// Prompts begin with one of as many texts, so that they share prefixes.
const BEGINNINGS: usize = 4;
const BEGINNING_WORDS: usize = 60;
const WORDS: [&str; 16] = [
    "the", "harbour", "was", "quiet", "when", "a", "letter", "came", "about", "seven", "ships", "that", "nobody",
    "had", "seen", "since",
];

/// A job.
#[derive(Clone, Debug, PartialEq)]
pub struct Planned {
    pub id: JobId,
    /// Which of the distinct requests it makes.
    pub request: usize,
    /// Whether it goes to the second lane.
    pub batch: bool,
    /// Since the run's start.
    pub at: Duration,
    /// When the same request is sent again under the same id.
    pub again: Vec<Duration>,
    /// Whether it is sent to a gateway, with its id as the Idempotency-Key.
    pub over_http: bool,
    /// When somebody asks for its cancellation.
    pub cancel: Option<Duration>,
}

/// What is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    pub jobs: usize,
    /// Requests that they make.
    pub distinct: usize,
    /// How long jobs come.
    pub lasts: Duration,
    /// Tokens of an answer, at most.
    pub max_tokens: u32,
    /// Every request is sent up to 8 times, and some go over HTTP; else one in seven is sent twice.
    pub copies: bool,
    /// One of the requests has a result of some megabytes.
    pub large: bool,
}

/// The jobs of a run, and the distinct requests that they make.
#[derive(Clone, Debug, PartialEq)]
pub struct Workload {
    requests: Vec<Request>,
    pub jobs: Vec<Planned>,
}

impl Workload {
    /// Draws requests and jobs.
    pub fn draw(seed: u64, shape: Shape) -> Result<Self, baton_contract::name::Error> {
        let requests = draw_requests(&mut stream(seed, REQUESTS), shape);
        let mut random = stream(seed, JOBS);
        let job = |index| draw_job(index, &mut random, shape, &requests);
        let jobs = (0..shape.jobs).map(job).collect::<Result<_, _>>()?;
        Ok(Self { requests, jobs })
    }

    pub fn distinct(&self) -> usize {
        self.requests.len()
    }

    /// Whether a job's result has some megabytes.
    pub fn is_large(&self, job: &Planned) -> bool {
        self.requests[job.request].logprobs.is_some()
    }

    /// A request's body under an id.
    pub fn body(&self, request: usize, id: &JobId) -> Result<Vec<u8>, serde_json::Error> {
        serde_json::to_vec(&Request { id: Some(id.to_string()), ..self.requests[request].clone() })
    }

    /// The same for a gateway, which knows neither ids nor deadlines in a body.
    pub fn completion(&self, request: usize) -> Result<Vec<u8>, serde_json::Error> {
        let request = &self.requests[request];
        // Without a temperature OpenAI's is 1.
        let temperature = request.temperature.or(Some(0.0));
        serde_json::to_vec(&Request { id: None, deadline: None, temperature, ..request.clone() })
    }

    /// What happens, in the order of time.
    pub fn events(&self) -> Vec<(Duration, Event)> {
        let mut events = Vec::new();
        for (index, job) in self.jobs.iter().enumerate() {
            events.push((job.at, Event::Submit { job: index, again: false }));
            events.extend(job.again.iter().map(|at| (*at, Event::Submit { job: index, again: true })));
            events.extend(job.cancel.map(|at| (at, Event::Cancel { job: index })));
        }
        events.sort_by_key(|(at, _)| *at);
        events
    }
}

fn draw_requests(random: &mut ChaCha8Rng, shape: Shape) -> Vec<Request> {
    let words = |random: &mut ChaCha8Rng, count: usize| {
        let word = |_| WORDS.choose(random).copied().unwrap_or_default();
        (0..count).map(word).collect::<Vec<_>>().join(" ")
    };
    let beginnings: Vec<String> = (0..BEGINNINGS).map(|_| words(random, BEGINNING_WORDS)).collect();
    let mut request = |index| {
        let beginning = beginnings.choose(random).cloned().unwrap_or_default();
        let rest = random.random_range(3..40);
        let usual = Request {
            prompt: Some(Prompt::Text(format!("{beginning}, {}", words(random, rest)))),
            max_tokens: Some(random.random_range(shape.max_tokens / 4..=shape.max_tokens).max(1)),
            temperature: random.random_bool(0.5).then_some(0.8),
            seed: Some(random.random_range(0..1 << 50)),
            n: random.random_bool(0.1).then_some(2),
            // So far away that only a wrong clock comes to it.
            deadline: random.random_bool(0.3).then_some(Deadline::After((FAR + shape.lasts).as_secs_f64())),
            ..Request::default()
        };
        if index > 0 || !shape.large {
            return usual;
        }
        // Some 1,200 bytes of JSON a token.
        let (max_tokens, n) = (Some(LARGE_TOKENS), Some(LARGE_ANSWERS));
        Request { logprobs: Some(true), top_logprobs: Some(20), max_tokens, n, ..usual }
    };
    (0..shape.distinct).map(&mut request).collect()
}

fn draw_job(
    index: usize,
    random: &mut ChaCha8Rng,
    shape: Shape,
    requests: &[Request],
) -> Result<Planned, baton_contract::name::Error> {
    // Uniform times, sorted, are the arrivals of a Poisson process.
    let at = shape.lasts.mul_f64(random.random());
    let later = |random: &mut ChaCha8Rng, ms| at + Duration::from_millis(random.random_range(0..ms));
    let request = random.random_range(0..shape.distinct);
    let batch = random.random_bool(0.5);
    let copies = match shape.copies {
        true => random.random_range(0..8),
        false => usize::from(random.random_bool(0.15)),
    };
    let again = (0..copies).map(|_| later(random, 3_000)).collect();
    // Mostly before it ends.
    let cancel = random.random_bool(0.06).then(|| later(random, 800));
    // OpenAI's completions have fewer log-probabilities.
    let over_http =
        shape.copies && random.random_bool(0.25) && cancel.is_none() && requests[request].logprobs.is_none();
    Ok(Planned { id: JobId::new(&format!("chaos-{index}"))?, request, batch, at, again, over_http, cancel })
}

/// Something that a client does to the job at an index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    Submit { job: usize, again: bool },
    Cancel { job: usize },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_decides_all_of_it() {
        let lasts = Duration::from_secs(10);
        let shape = Shape { jobs: 200, distinct: 30, lasts, max_tokens: 32, copies: true, large: true };
        let of = |seed| Workload::draw(seed, shape).unwrap();
        let drawn = of(5);
        assert_eq!(drawn, of(5));
        assert_ne!(drawn, of(6));
        let events = drawn.events();
        assert!(events.windows(2).all(|pair| pair[0].0 <= pair[1].0));
        let count = |wanted: fn(&Event) -> bool| events.iter().filter(|(_, event)| wanted(event)).count();
        assert_eq!(count(|event| matches!(event, Event::Submit { again: false, .. })), 200);
        assert!(count(|event| matches!(event, Event::Submit { again: true, .. })) > 600);
        assert!(drawn.jobs.iter().any(|job| job.over_http));
        assert!(count(|event| matches!(event, Event::Cancel { .. })) > 1);
        let few = Workload::draw(5, Shape { copies: false, large: false, ..shape }).unwrap();
        assert!(few.jobs.iter().all(|job| job.again.len() < 2 && !job.over_http));
        let job = &drawn.jobs[9];
        assert_eq!(drawn.body(job.request, &job.id).unwrap(), drawn.body(job.request, &job.id).unwrap());
    }
}
