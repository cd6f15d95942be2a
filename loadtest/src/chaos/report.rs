//! What a run tells: faults, jobs, audit.

use std::fmt::Write;

use baton_load::table::aligned;
use clap::ValueEnum;
use serde::Serialize;

use super::{Options, audit::Audit, kind::LeftOut};

/// Violations that are shown in full; JSON has all.
const SHOWN: usize = 30;

/// The outcome of a run.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub seed: u64,
    pub options: Options,
    /// Seconds until the last request was sent and the last fault had ended.
    pub disturbed_s: f64,
    /// Seconds from then until every job had its result.
    pub settled_s: f64,
    pub faults: Vec<Faults>,
    /// Kinds of faults that were wanted and cannot happen here.
    pub left_out: Vec<LeftOut>,
    /// Requests that were sent again under their id.
    pub sent_again: usize,
    /// Requests that were sent again because the broker had lost what it knew.
    pub repeated: u64,
    /// Requests that were sent again because all workers of a stage were gone and the answer did not come.
    pub insisted: u64,
    /// Times that a request had to be sent once more for want of the broker's answer.
    pub resent: u64,
    /// Cancellations that were asked for and answered.
    pub cancellations: u64,
    /// Times that a worker ended by itself and was started again.
    pub crashes: u64,
    /// Chunks in the store before they were collected.
    pub stored_chunks: u64,
    pub audit: Audit,
    /// Where logs and streams lie, if they were to stay or something does not hold.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kept: Option<std::path::PathBuf>,
}

/// What was done of one kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Faults {
    pub fault: String,
    pub planned: usize,
    /// That had something to hit, and were undone again.
    pub done: usize,
}

impl Report {
    /// For people: two tables and what does not hold.
    pub fn plain(&self) -> String {
        let Self { audit, options, .. } = self;
        let mut text = String::new();
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "seed {}: {} jobs in {} min on the {} engine, {} workers a stage; disturbed for {:.1} s, settled {:.1} s later\n",
            self.seed, options.jobs, options.minutes, options.engine, options.workers, self.disturbed_s, self.settled_s
        );
        let row = |cells: [&dyn ToString; 3]| cells.iter().map(|cell| cell.to_string()).collect::<Vec<_>>();
        let faults = self.faults.iter().map(|faults| row([&faults.fault, &faults.planned, &faults.done]));
        text += &aligned(&[vec![row([&"fault", &"planned", &"done"])], faults.collect()].concat());
        for LeftOut { fault, why } in &self.left_out {
            let name = fault.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default();
            let _ = writeln!(text, "not done: {name}, for {why}");
        }
        text.push('\n');
        let counts: [(&str, u64); 21] = [
            ("submitted", audit.submitted as u64),
            ("completed", audit.completed as u64),
            ("cancelled", audit.cancelled as u64),
            ("failed", audit.failed as u64),
            ("failed by exhaustion", audit.exhausted as u64),
            ("expired", audit.expired as u64),
            ("lost", audit.lost as u64),
            ("duplicated", audit.duplicated as u64),
            ("changed", audit.changed as u64),
            ("answers compared", audit.compared as u64),
            ("requests sent again under their id", self.sent_again as u64),
            ("requests sent again after the broker's losses", self.repeated),
            ("requests sent again while a stage had no workers", self.insisted),
            ("requests sent once more for want of an answer", self.resent),
            ("cancellations answered", self.cancellations),
            ("jobs that another delivery ended", audit.taken_over as u64),
            ("prompt tokens decode computed again", audit.recomputed_tokens),
            ("answer tokens decode took over from another worker", audit.resumed_tokens),
            ("streamed tokens", audit.deltas),
            ("streamed tokens that came again", audit.repeated_deltas),
            ("workers that ended by themselves", self.crashes),
        ];
        let counts = counts.iter().map(|(what, count)| vec![(*what).to_owned(), count.to_string()]);
        text += &aligned(&[vec![vec!["audit".to_owned(), "count".to_owned()]], counts.collect()].concat());
        text.push('\n');
        for violation in audit.violations.iter().take(SHOWN) {
            let kind = serde_json::to_value(violation.kind).unwrap_or_default();
            let _ = writeln!(text, "{}: {}: {}", kind.as_str().unwrap_or_default(), violation.of, violation.what);
        }
        if audit.violations.len() > SHOWN {
            let _ = writeln!(text, "and {} more; --json lists all", audit.violations.len() - SHOWN);
        }
        text += match audit.holds() {
            true => "the audit holds: nothing lost, duplicated or changed\n",
            false => "the audit FAILED\n",
        };
        if let Some(kept) = &self.kept {
            let _ = writeln!(text, "logs and streams are in {}", kept.display());
        }
        text
    }
}
