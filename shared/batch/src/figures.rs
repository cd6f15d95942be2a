//! What a run of a batch has come to.

use baton_contract::outcome::Outcome;
use serde::Serialize;

/// What this run has done so far.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Figures {
    /// Lines of the input that were read.
    pub lines: u64,
    /// Answers that earlier runs wrote, errors among them.
    pub answered_before: u64,
    /// Errors among those.
    pub failed_before: u64,
    /// Jobs that completed.
    pub completed: u64,
    /// Lines that became errors.
    pub failed: u64,
    /// Jobs that had ended before this run asked.
    pub collected: u64,
    /// Requests that were published.
    pub sent: u64,
    /// Prompt tokens of the jobs that ended in this run.
    pub prompt_tokens: u64,
    /// Those of them whose KV cache was there.
    pub cached_tokens: u64,
    /// Tokens of their answers.
    pub completion_tokens: u64,
    /// Bytes of KV cache, before packing, that were there and not computed; as large a token as those that were.
    pub kv_saved_bytes: u64,
    /// Bytes of KV cache, before packing, that were computed.
    #[serde(skip)]
    pub kv_raw_bytes: u64,
    /// Lines that have their answer already.
    #[serde(skip)]
    pub skipped: u64,
}

impl Figures {
    /// Counts a job's end; `stored` if its result was there before.
    pub fn count(&mut self, outcome: &Outcome, stored: bool) {
        if stored {
            self.collected += 1;
            return;
        }
        let usage = &outcome.usage;
        self.prompt_tokens += u64::from(usage.prompt_tokens);
        self.cached_tokens += u64::from(usage.cached_tokens);
        self.completion_tokens += u64::from(usage.completion_tokens);
        self.kv_raw_bytes += outcome.timings.kv_raw_bytes;
        let computed = self.prompt_tokens - self.cached_tokens.min(self.prompt_tokens);
        let a_token = if computed == 0 { 0.0 } else { self.kv_raw_bytes as f64 / computed as f64 };
        self.kv_saved_bytes = (a_token * self.cached_tokens as f64) as u64;
    }

    /// Lines that are done with, of those read.
    pub fn done(&self) -> u64 {
        self.skipped + self.completed + self.failed
    }
}
