//! What is seen of one request, and when. All times are since the run's start.

use std::time::Duration;

/// One request from its intended send time to its end.
#[derive(Clone, Debug)]
pub(crate) struct Record {
    /// When it was to be sent.
    pub(crate) planned: Duration,
    /// When it really was.
    pub(crate) sent: Option<Duration>,
    pub(crate) first_token: Option<Duration>,
    /// Between each token and the one before it, where both were seen.
    pub(crate) gaps: Vec<Duration>,
    pub(crate) end: Option<End>,
    last_token: Option<(u32, Duration)>,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum End {
    Completed {
        at: Duration,
        prompt_tokens: u32,
        output_tokens: u32,
    },
    /// It has a result, but not the answer; or it could not be submitted.
    Failed {
        at: Duration,
        kind: String,
        message: String,
    },
    /// It has no result within the timeout.
    Lost,
}

impl Record {
    pub(crate) fn new(planned: Duration) -> Self {
        Self { planned, sent: None, first_token: None, gaps: Vec::new(), end: None, last_token: None }
    }

    /// A live token. One whose place in the answer was seen already is a repetition by a later attempt, and is no news to
    /// the reader.
    pub(crate) fn token(&mut self, index: u32, at: Duration) {
        match self.last_token {
            Some((last, _)) if index <= last => return,
            // Where tokens in between went missing, the time cannot be shared out among them.
            Some((last, before)) if index == last + 1 => self.gaps.push(at - before),
            Some(_) => {}
            None => self.first_token = Some(at),
        }
        self.last_token = Some((index, at));
    }

    /// The end; only the first one counts. Returns whether this was it.
    pub(crate) fn finish(&mut self, end: End) -> bool {
        let first = self.end.is_none();
        self.end.get_or_insert(end);
        first
    }

    /// Time to first token.
    pub(crate) fn ttft(&self) -> Option<Duration> {
        Some(self.first_token? - self.planned)
    }

    /// End-to-end latency of a completed request.
    pub(crate) fn e2el(&self) -> Option<Duration> {
        match self.end {
            Some(End::Completed { at, .. }) => Some(at - self.planned),
            _ => None,
        }
    }

    /// Time per output token after the first.
    pub(crate) fn tpot(&self) -> Option<Duration> {
        match self.end {
            Some(End::Completed { at, output_tokens, .. }) if output_tokens > 1 => {
                Some((at - self.first_token?) / (output_tokens - 1))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(value: u64) -> Duration {
        Duration::from_millis(value)
    }

    #[test]
    fn latencies_count_from_the_intended_time_and_repeated_tokens_not_at_all() {
        let mut record = Record::new(ms(1_000));
        record.sent = Some(ms(1_300));
        // A worker died after token 1; the next one repeats both, goes on, and token 4 gets lost on the way.
        for (index, at) in
            [(0, 1_500), (1, 1_510), (0, 3_000), (1, 3_010), (2, 3_020), (3, 3_030), (5, 3_090), (6, 3_100)]
        {
            record.token(index, ms(at));
        }
        assert!(record.finish(End::Completed { at: ms(3_100), prompt_tokens: 9, output_tokens: 9 }));
        assert_eq!(record.ttft(), Some(ms(500)));
        assert_eq!(record.gaps, [ms(10), ms(1_510), ms(10), ms(10)]);
        assert_eq!(record.tpot(), Some(ms(200)));
        assert_eq!(record.e2el(), Some(ms(2_100)));
        assert!(!record.finish(End::Lost));
        assert_eq!(record.e2el(), Some(ms(2_100)));
    }

    #[test]
    fn one_token_has_no_time_per_further_token() {
        let mut record = Record::new(ms(0));
        record.token(0, ms(5));
        record.finish(End::Completed { at: ms(6), prompt_tokens: 1, output_tokens: 1 });
        assert_eq!((record.tpot(), record.e2el()), (None, Some(ms(6))));
    }
}
