//! The figures of one load on one split.

use baton_load::{Report, table::shares};
use baton_workload::Named;
use serde::Serialize;

use crate::error::Error;

/// One load on one split.
#[derive(Clone, Debug, Serialize)]
pub struct Cell {
    /// The load.
    pub workload: Named,
    /// Workers of prefill.
    pub prefill_workers: usize,
    /// Workers of decode.
    pub decode_workers: usize,
    /// Requests a second while the load was steady.
    pub request_throughput: f64,
    /// Tokens generated a second, likewise.
    pub output_throughput: f64,
    /// What prefill computed of the prompt tokens that it could, 0 to 1.
    pub prefill_utilisation: f64,
    /// Decode slots that generated, 0 to 1.
    pub decode_utilisation: f64,
    /// Shares of a mean job's time, 0 to 1: queue, prefill, hand-over, decode, rest.
    pub shares: [f64; 5],
    /// All figures of the load.
    pub report: Report,
}

impl Cell {
    /// As in `2:4`.
    pub fn ratio(&self) -> String {
        format!("{}:{}", self.prefill_workers, self.decode_workers)
    }
}

/// Workers of both roles, and what their engines take.
pub(super) struct Split {
    pub(super) prefill: usize,
    pub(super) decode: usize,
    /// Slots of a decode worker.
    pub(super) slots: usize,
    /// Seconds of a prompt's token.
    pub(super) token_s: f64,
    /// Seconds of a decode worker's step.
    pub(super) step_s: f64,
}

impl Split {
    /// What a load came to.
    pub(super) fn cell(&self, workload: Named, report: Report) -> Result<Cell, Error> {
        if report.failed + report.lost > 0 {
            let example = report.failures.values().next().map(|failures| failures.example.clone()).unwrap_or_default();
            return Err(Error::Requests { failed: report.failed, lost: report.lost, example });
        }
        let (Some(steady), Some(stages)) = (&report.steady, &report.stages_ms) else {
            return Err(Error::TooSlow { warm_up: report.options.warmup });
        };
        let computed = report.total_input_tokens - report.total_cached_tokens;
        let prompt_s = computed as f64 / report.completed.max(1) as f64 * self.token_s;
        Ok(Cell {
            workload,
            prefill_workers: self.prefill,
            decode_workers: self.decode,
            request_throughput: steady.request_throughput,
            output_throughput: steady.output_throughput,
            // A mean prompt by the whole run's requests, which in a short window may have been longer.
            prefill_utilisation: (steady.request_throughput * prompt_s / self.prefill as f64).min(1.0),
            decode_utilisation: steady.output_throughput * self.step_s / (self.decode * self.slots) as f64,
            shares: shares(stages).map(|(_, share)| share),
            report,
        })
    }
}
