//! The jobs of a run, drawn beforehand: what they ask, when they are sent, and what else happens to them.

use std::time::Duration;

use baton_contract::{
    JobId,
    request::{Prompt, Request},
};
use rand::{RngExt, seq::IndexedRandom};
use rand_chacha::ChaCha8Rng;

use baton_workload::stream;

const REQUESTS: u64 = 0;
const JOBS: u64 = 1;

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
    pub again: Option<Duration>,
    /// When somebody asks for its cancellation.
    pub cancel: Option<Duration>,
}

/// The jobs of a run, and the distinct requests that they make.
#[derive(Clone, Debug, PartialEq)]
pub struct Workload {
    requests: Vec<Request>,
    pub jobs: Vec<Planned>,
}

impl Workload {
    /// Draws `jobs` jobs over `lasts`, which make `distinct` requests for answers of up to `max_tokens` tokens.
    pub fn draw(
        seed: u64,
        jobs: usize,
        distinct: usize,
        lasts: Duration,
        max_tokens: u32,
    ) -> Result<Self, baton_contract::name::Error> {
        let mut random = stream(seed, REQUESTS);
        let words = |random: &mut ChaCha8Rng, count: usize| {
            let word = |_| WORDS.choose(random).copied().unwrap_or_default();
            (0..count).map(word).collect::<Vec<_>>().join(" ")
        };
        let beginnings: Vec<String> = (0..BEGINNINGS).map(|_| words(&mut random, BEGINNING_WORDS)).collect();
        let request = |_| {
            let beginning = beginnings.choose(&mut random).cloned().unwrap_or_default();
            let rest = random.random_range(3..40);
            Request {
                prompt: Some(Prompt::Text(format!("{beginning}, {}", words(&mut random, rest)))),
                max_tokens: Some(random.random_range(max_tokens / 4..=max_tokens).max(1)),
                temperature: random.random_bool(0.5).then_some(0.8),
                seed: Some(random.random_range(0..1 << 50)),
                n: random.random_bool(0.1).then_some(2),
                ..Request::default()
            }
        };
        let requests = (0..distinct).map(request).collect();

        let mut random = stream(seed, JOBS);
        let job = |index| {
            // Uniform times, sorted, are the arrivals of a Poisson process.
            let at = lasts.mul_f64(random.random());
            let later = |random: &mut ChaCha8Rng, ms| at + Duration::from_millis(random.random_range(0..ms));
            Ok(Planned {
                id: JobId::new(&format!("chaos-{index}"))?,
                request: random.random_range(0..distinct),
                batch: random.random_bool(0.5),
                at,
                again: random.random_bool(0.15).then(|| later(&mut random, 3_000)),
                // Mostly before it ends.
                cancel: random.random_bool(0.06).then(|| later(&mut random, 800)),
            })
        };
        let jobs = (0..jobs).map(job).collect::<Result<_, _>>()?;
        Ok(Self { requests, jobs })
    }

    pub fn distinct(&self) -> usize {
        self.requests.len()
    }

    /// A request's body under an id.
    pub fn body(&self, request: usize, id: &JobId) -> Result<Vec<u8>, serde_json::Error> {
        serde_json::to_vec(&Request { id: Some(id.to_string()), ..self.requests[request].clone() })
    }

    /// What happens, in the order of time.
    pub fn events(&self) -> Vec<(Duration, Event)> {
        let of_job = |(index, job): (usize, &Planned)| {
            let again = job.again.map(|at| (at, Event::Submit { job: index, again: true }));
            let cancel = job.cancel.map(|at| (at, Event::Cancel { job: index }));
            [Some((job.at, Event::Submit { job: index, again: false })), again, cancel].into_iter().flatten()
        };
        let mut events: Vec<_> = self.jobs.iter().enumerate().flat_map(of_job).collect();
        events.sort_by_key(|(at, _)| *at);
        events
    }
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
        let of = |seed| Workload::draw(seed, 200, 30, Duration::from_secs(10), 32).unwrap();
        let drawn = of(5);
        assert_eq!(drawn, of(5));
        assert_ne!(drawn, of(6));
        let events = drawn.events();
        assert!(events.windows(2).all(|pair| pair[0].0 <= pair[1].0));
        let count = |wanted: fn(&Event) -> bool| events.iter().filter(|(_, event)| wanted(event)).count();
        assert_eq!(count(|event| matches!(event, Event::Submit { again: false, .. })), 200);
        assert!(count(|event| matches!(event, Event::Submit { again: true, .. })) > 5);
        assert!(count(|event| matches!(event, Event::Cancel { .. })) > 1);
        let job = &drawn.jobs[9];
        assert_eq!(drawn.body(job.request, &job.id).unwrap(), drawn.body(job.request, &job.id).unwrap());
    }
}
