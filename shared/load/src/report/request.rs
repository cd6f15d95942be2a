//! One request as a line of JSON.

use std::time::Duration;

use serde::Serialize;

use crate::record::{End, Record, Stages, milliseconds};

/// What was measured of one request. Times in milliseconds; `planned_ms` and `sent_ms` since the run's start.
#[derive(Clone, Debug, Serialize)]
pub struct RequestLine {
    /// When it was to be sent.
    pub planned_ms: f64,
    /// When it really was.
    pub sent_ms: Option<f64>,
    /// `completed`, `lost`, or why it failed.
    pub end: String,
    /// Tokens of the prompt, 0 unless it completed.
    pub prompt_tokens: u32,
    /// Those of them that were not computed for this request.
    pub cached_tokens: u32,
    /// Tokens of the answer, 0 unless it completed.
    pub output_tokens: u32,
    /// Time to first token.
    pub ttft_ms: Option<f64>,
    /// Time per output token after the first.
    pub tpot_ms: Option<f64>,
    /// End-to-end latency.
    pub e2el_ms: Option<f64>,
    /// Between two live tokens each.
    pub itl_ms: Vec<f64>,
    /// Where the time went, if the target tells.
    pub stages: Option<Stages>,
}

impl RequestLine {
    pub(crate) fn of(record: &Record) -> Self {
        let ms = |duration: Option<Duration>| duration.map(milliseconds);
        let (prompt_tokens, cached_tokens) = match record.end {
            Some(End::Completed { prompt_tokens, cached_tokens, .. }) => (prompt_tokens, cached_tokens),
            _ => (0, 0),
        };
        Self {
            planned_ms: milliseconds(record.planned),
            sent_ms: ms(record.sent),
            end: match &record.end {
                Some(End::Completed { .. }) => "completed".into(),
                Some(End::Failed { kind, .. }) => kind.clone(),
                Some(End::Lost) | None => "lost".into(),
            },
            prompt_tokens,
            cached_tokens,
            output_tokens: record.output_tokens(),
            ttft_ms: ms(record.ttft()),
            tpot_ms: ms(record.tpot()),
            e2el_ms: ms(record.e2el()),
            itl_ms: record.gaps.iter().copied().map(milliseconds).collect(),
            stages: record.stages().copied(),
        }
    }
}
