//! What is seen of one request, and when. All times are since the run's start.

use std::time::Duration;

use baton_contract::outcome::Timings;
use serde::Serialize;

/// One request from its intended send time to its end.
#[derive(Clone, Debug)]
pub struct Record {
    /// When it was to be sent.
    pub planned: Duration,
    /// When it really was.
    pub sent: Option<Duration>,
    /// When its first token was seen.
    pub first_token: Option<Duration>,
    /// Between each token and the one before it, where both were seen.
    pub gaps: Vec<Duration>,
    /// How it ended, once it has.
    pub end: Option<End>,
    last_token: Option<(u32, Duration)>,
}

/// How a request ended.
#[derive(Clone, Debug, PartialEq)]
pub enum End {
    /// It has its answer.
    Completed {
        /// When the result was seen.
        at: Duration,
        /// Tokens of the prompt.
        prompt_tokens: u32,
        /// Tokens of the answer.
        output_tokens: u32,
        /// Prompt tokens that were not computed for this request.
        cached_tokens: u32,
        /// Where the time went, if the target tells.
        stages: Option<Stages>,
    },
    /// It has a result, but not the answer; or it could not be submitted.
    Failed {
        /// When that was seen.
        at: Duration,
        /// An error code, a status, or `submit`.
        kind: String,
        /// Why, for people.
        message: String,
    },
    /// It has no result within the timeout.
    Lost,
}

/// Where a job's time went, in milliseconds of the pipeline's own clocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Stages {
    /// Waiting for a worker, all stages, messages on their way included.
    pub queue_ms: f64,
    /// Reading the request, fetching a stored prefix and computing the rest.
    pub prefill_ms: f64,
    /// Passing on the KV cache: the part of putting and getting that nothing else hid.
    pub hand_over_ms: f64,
    /// From the first token to the last.
    pub decode_ms: f64,
    /// From acceptance to the result; what is in none of the others is the broker's and the stages' own.
    pub total_ms: f64,
}

impl Stages {
    pub(crate) fn of(timings: &Timings) -> Self {
        Self {
            queue_ms: timings.ingest_queue_ms + timings.prefill_queue_ms + timings.decode_queue_ms,
            prefill_ms: timings.ingest_ms + timings.prefix_get_ms + timings.prefill_ms,
            hand_over_ms: timings.kv_put_ms + timings.kv_wait_ms,
            decode_ms: timings.decode_ms,
            total_ms: timings.total_ms,
        }
    }
}

impl Record {
    pub(crate) fn new(planned: Duration) -> Self {
        Self { planned, sent: None, first_token: None, gaps: Vec::new(), end: None, last_token: None }
    }

    /// A live token; whether it is news. One whose place in the answer was seen already is a repetition by a later attempt,
    /// and is none to the reader.
    pub(crate) fn token(&mut self, index: u32, at: Duration) -> bool {
        match self.last_token {
            Some((last, _)) if index <= last => return false,
            // Where tokens in between went missing, the time cannot be shared out among them.
            Some((last, before)) if index == last + 1 => self.gaps.push(at.saturating_sub(before)),
            Some(_) => {}
            None => self.first_token = Some(at),
        }
        self.last_token = Some((index, at));
        true
    }

    /// The end; only the first one counts. Returns whether this was it.
    pub(crate) fn finish(&mut self, end: End) -> bool {
        let first = self.end.is_none();
        self.end.get_or_insert(end);
        first
    }

    /// When it ended, if it was not lost.
    pub fn ended(&self) -> Option<Duration> {
        match self.end {
            Some(End::Completed { at, .. } | End::Failed { at, .. }) => Some(at),
            _ => None,
        }
    }

    /// Tokens of the answer if it completed, else 0.
    pub fn output_tokens(&self) -> u32 {
        match self.end {
            Some(End::Completed { output_tokens, .. }) => output_tokens,
            _ => 0,
        }
    }

    /// Time to first token.
    pub fn ttft(&self) -> Option<Duration> {
        Some(self.first_token?.saturating_sub(self.planned))
    }

    /// End-to-end latency of a completed request.
    pub fn e2el(&self) -> Option<Duration> {
        match self.end {
            Some(End::Completed { at, .. }) => Some(at.saturating_sub(self.planned)),
            _ => None,
        }
    }

    /// Time per output token after the first.
    pub fn tpot(&self) -> Option<Duration> {
        match self.end {
            Some(End::Completed { at, output_tokens, .. }) if output_tokens > 1 => {
                Some(at.saturating_sub(self.first_token?) / (output_tokens - 1))
            }
            _ => None,
        }
    }

    /// Mean time between two tokens that were seen.
    pub fn mean_itl(&self) -> Option<Duration> {
        let count = u32::try_from(self.gaps.len()).ok().filter(|count| *count > 0)?;
        Some(self.gaps.iter().sum::<Duration>() / count)
    }

    /// Where the time went, if the target told.
    pub fn stages(&self) -> Option<&Stages> {
        match &self.end {
            Some(End::Completed { stages, .. }) => stages.as_ref(),
            _ => None,
        }
    }
}

/// A length of time in milliseconds.
pub(crate) fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(value: u64) -> Duration {
        Duration::from_millis(value)
    }

    fn completed(at: u64, output_tokens: u32) -> End {
        End::Completed { at: ms(at), prompt_tokens: 9, output_tokens, cached_tokens: 0, stages: None }
    }

    #[test]
    fn latencies_count_from_the_intended_time_and_repeated_tokens_not_at_all() {
        let mut record = Record::new(ms(1_000));
        record.sent = Some(ms(1_300));
        // A worker died after token 1; the next one repeats both, goes on, and token 4 gets lost on the way.
        let told = [(0, 1_500), (1, 1_510), (0, 3_000), (1, 3_010), (2, 3_020), (3, 3_030), (5, 3_090), (6, 3_100)];
        let news = told.map(|(index, at)| record.token(index, ms(at)));
        assert_eq!(news, [true, true, false, false, true, true, true, true]);
        assert!(record.finish(completed(3_100, 9)));
        assert_eq!(record.ttft(), Some(ms(500)));
        assert_eq!(record.gaps, [ms(10), ms(1_510), ms(10), ms(10)]);
        assert_eq!((record.tpot(), record.mean_itl()), (Some(ms(200)), Some(ms(385))));
        assert_eq!(record.e2el(), Some(ms(2_100)));
        assert!(!record.finish(End::Lost));
        assert_eq!(record.e2el(), Some(ms(2_100)));
    }

    #[test]
    fn one_token_has_no_time_per_further_token() {
        let mut record = Record::new(ms(0));
        record.token(0, ms(5));
        record.finish(completed(6, 1));
        assert_eq!((record.tpot(), record.mean_itl(), record.e2el()), (None, None, Some(ms(6))));
    }
}
