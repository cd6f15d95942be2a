//! A client's own requests, followed to their ends.

use std::collections::{HashMap, HashSet};

use baton_contract::{
    JobId, Name,
    outcome::{Delta, Outcome, Refusal},
};

use super::{
    follower::{Event, Follower},
    waits::Waits,
};
use crate::{Bus, Error};

/// Requests of a tenant that a client waits for.
pub struct Following {
    follower: Follower,
    waits: Waits,
    pending: HashSet<JobId>,
    /// Of the requests, by which their results are told from others' under the same id.
    digests: HashMap<JobId, String>,
    told: Told,
}

/// How much of each answer was told.
#[derive(Default)]
struct Told(HashMap<(JobId, u32), u32>);

/// What is heard of the requests.
#[derive(Debug)]
pub enum News {
    /// The next token of an answer. A job that is tried again repeats its tokens, which are no news.
    Token {
        /// The job that it is of.
        job: JobId,
        /// The token.
        delta: Delta,
    },
    /// An answer goes on in other words from a place before the last that was told: what was told of it from there on counts no
    /// more.
    Restarted {
        /// The job that it is of.
        job: JobId,
        /// The marker, whose index is that place.
        delta: Delta,
    },
    /// A job has ended.
    Ended(Box<Outcome>),
    /// A request became no job, or its id is another request's.
    Refused(Box<Refusal>),
    /// What a job waits for, as a sentence.
    Waits(String),
}

impl Following {
    /// Begins to listen; to be called before requests are submitted, so that no token is missed.
    pub async fn new(bus: &Bus, tenant: &Name) -> Result<Self, Error> {
        let waits = Waits::new(bus.jobs().await?, tenant.clone());
        let follower = bus.follow(tenant).await?;
        Ok(Self { follower, waits, pending: HashSet::new(), digests: HashMap::new(), told: Told::default() })
    }

    /// Follows a request that was submitted.
    pub fn add(&mut self, job: JobId, digest: String) {
        self.digests.insert(job.clone(), digest);
        self.pending.insert(job);
    }

    /// Requests whose ends were not heard yet.
    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    /// Looks for results that the requests have already, from an earlier time that they were submitted.
    pub async fn look_up(&mut self) -> Result<(), Error> {
        self.waits.heard();
        self.follower.look_up(&self.pending).await
    }

    /// What comes next; nothing once all requests have ended.
    pub async fn next(&mut self) -> Result<Option<News>, Error> {
        while !self.pending.is_empty() {
            let event = tokio::select! {
                event = self.follower.next(&self.pending) => event?,
                () = self.waits.silence() => {
                    if let Some(job) = self.pending.iter().min()
                        && let Some(news) = self.waits.look(job).await
                    {
                        return Ok(Some(News::Waits(news)));
                    }
                    continue;
                }
            };
            self.waits.heard();
            if let Some(news) = self.news(event) {
                return Ok(Some(news));
            }
        }
        Ok(None)
    }

    fn news(&mut self, event: Event) -> Option<News> {
        match event {
            Event::Delta { job, delta } => self.told.news(job, delta),
            Event::Result(outcome) => {
                self.pending.remove(&outcome.id);
                match self.digests.get(&outcome.id) {
                    Some(digest) if *digest != outcome.request_digest => {
                        let Outcome { tenant, id, .. } = *outcome;
                        Some(News::Refused(Box::new(Refusal::conflict(tenant, id, digest.clone()))))
                    }
                    _ => Some(News::Ended(outcome)),
                }
            }
            // Another client's, if the digest is another.
            Event::Refused(refusal) if self.digests.get(&refusal.id) == Some(&refusal.request_digest) => {
                self.pending.remove(&refusal.id);
                Some(News::Refused(refusal))
            }
            Event::Refused(_) => None,
        }
    }
}

impl Told {
    fn news(&mut self, job: JobId, delta: Delta) -> Option<News> {
        let next = self.0.entry((job.clone(), delta.choice)).or_default();
        if delta.restart {
            let told = delta.index < *next;
            *next = delta.index.min(*next);
            return told.then_some(News::Restarted { job, delta });
        }
        let news = delta.index == *next;
        *next += u32::from(news);
        news.then_some(News::Token { job, delta })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_token_is_news_once_and_again_after_the_answer_began_again_before_it() {
        let job = JobId::new("j").unwrap();
        let mut told = Told::default();
        let mut news = |index, restart| {
            let delta = Delta { index, restart, ..Delta::default() };
            told.news(job.clone(), delta).map(|news| matches!(news, News::Restarted { .. }))
        };
        let (token, restarted) = (Some(false), Some(true));
        assert_eq!([news(0, false), news(1, false), news(1, false), news(0, false)], [token, token, None, None]);
        assert_eq!([news(2, true), news(2, false)], [None, token], "nothing was told from there on");
        assert_eq!([news(1, true), news(2, false), news(1, false)], [restarted, None, token]);
        assert_eq!([news(0, true), news(0, true), news(0, false)], [restarted, None, token]);
        assert_eq!([news(9, true), news(9, false), news(1, false)], [None, None, token], "the reader missed some");
    }
}
