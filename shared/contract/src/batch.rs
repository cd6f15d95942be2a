//! A user's batch of requests as a pure state machine.
//!
//! ```text
//! validating ──▶ in_progress ──▶ finalizing ──▶ completed | expired | failed (its answers are too long)
//!     │              └─────▶ cancelling ─────▶ cancelled
//!     └──▶ failed
//! ```
//!
//! A gateway that drives a batch writes its `run` into it first, and each of its changes names that run. So a gateway that was
//! taken for dead changes nothing any more.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The state of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Its input file is being checked.
    Validating,
    /// Its input file does not hold, or its output is too large.
    Failed,
    /// Its requests are asked.
    InProgress,
    /// Its answers are being stored.
    Finalizing,
    /// All its requests have ended.
    Completed,
    /// Its completion window has passed.
    Expired,
    /// Its sender wants no more of it.
    Cancelling,
    /// It has ended at its sender's wish.
    Cancelled,
}

impl Status {
    /// As OpenAI's API spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Validating => "validating",
            Self::Failed => "failed",
            Self::InProgress => "in_progress",
            Self::Finalizing => "finalizing",
            Self::Completed => "completed",
            Self::Expired => "expired",
            Self::Cancelling => "cancelling",
            Self::Cancelled => "cancelled",
        }
    }

    /// Whether the batch has ended.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Failed | Self::Completed | Self::Expired | Self::Cancelled)
    }
}

/// What is wrong with a batch's input file, or its output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// What went wrong, for programs.
    pub code: String,
    /// From 1; none if it is about the file as a whole.
    pub line: Option<u64>,
    /// What went wrong, for people.
    pub message: String,
    /// The field that is wrong, if it is one.
    pub param: Option<String>,
}

/// Requests of a batch: all, and those that have ended well or badly.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// All requests.
    pub total: u64,
    /// Those that have ended well.
    pub completed: u64,
    /// Those that have ended badly.
    pub failed: u64,
}

/// Tokens of all requests of a batch that have ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Tokens of the prompts.
    pub prompt_tokens: u64,
    /// Those of them that were read from the store.
    pub cached_tokens: u64,
    /// Tokens of the answers.
    pub completion_tokens: u64,
}

/// What was asked for, which never changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// The batch's id.
    pub id: String,
    /// `/v1/chat/completions` or `/v1/completions`.
    pub endpoint: String,
    /// The file with the requests.
    pub input_file_id: String,
    /// As its sender wrote it, such as `24h`.
    pub completion_window: String,
    /// What its sender noted about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<BTreeMap<String, String>>,
    /// Seconds for which the output files are kept; without it until they are deleted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_expires_after: Option<u64>,
}

/// What is known about a batch. Times in seconds since 1970.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Batch {
    /// What was asked for.
    #[serde(flatten)]
    pub order: Order,
    /// Its state.
    pub status: Status,
    /// When it was accepted.
    pub created_at: u64,
    /// The end of its completion window.
    pub expires_at: u64,
    /// When it came to be in each of the other states that it was in.
    #[serde(default)]
    pub since: BTreeMap<String, u64>,
    /// What is wrong with it.
    #[serde(default)]
    pub problems: Vec<Problem>,
    /// How many of its requests have ended.
    #[serde(default)]
    pub counts: Counts,
    /// The tokens of those that have.
    #[serde(default)]
    pub usage: Usage,
    /// The file with the answers, once it has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_file_id: Option<String>,
    /// The file with the errors, once it has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error_file_id: Option<String>,
    /// Whether its tenant had a webhook when it was accepted, which so is to be called, whichever gateway drives it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub told: bool,
    /// Who drives it, or did last; also names the blobs that its answers are written to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<String>,
}

/// How far a run has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Requests that have ended well.
    pub completed: u64,
    /// Requests that have ended badly.
    pub failed: u64,
    /// The tokens of both.
    pub usage: Usage,
}

/// Why a batch came to its end with what was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// All requests have ended.
    Completed,
    /// The completion window has passed.
    Expired,
    /// Its sender wanted no more of it.
    Cancelled,
    /// Its answers, or its errors, have more bytes than a file of them may have.
    Overgrown {
        /// Bytes that a file may have.
        max_bytes: u64,
    },
}

impl Batch {
    /// A batch that was accepted. Times in seconds since 1970.
    pub fn new(order: Order, created_at: u64, expires_at: u64) -> Self {
        Self {
            order,
            status: Status::Validating,
            created_at,
            expires_at,
            since: BTreeMap::new(),
            problems: Vec::new(),
            counts: Counts::default(),
            usage: Usage::default(),
            output_file_id: None,
            error_file_id: None,
            told: false,
            run: None,
        }
    }

    /// When it came to be in a state, in seconds since 1970.
    pub fn since(&self, status: Status) -> Option<u64> {
        self.since.get(status.as_str()).copied()
    }

    /// The same batch in the hands of a run; nothing if it has ended.
    pub fn taken(&self, run: &str) -> Option<Self> {
        (!self.status.is_final()).then(|| Self { run: Some(run.into()), ..self.clone() })
    }

    /// Whether a run still drives it.
    pub fn is_of(&self, run: &str) -> bool {
        self.run.as_deref() == Some(run) && !self.status.is_final()
    }

    /// Its file holds: it has so many requests.
    pub fn validated(&self, run: &str, total: u64, now: u64) -> Option<Self> {
        let mut next = self.by(run)?;
        next.counts.total = total;
        Some(if next.status == Status::Validating { next.enter(Status::InProgress, now) } else { next })
    }

    /// Its file does not hold.
    pub fn refused(&self, run: &str, problems: Vec<Problem>, now: u64) -> Option<Self> {
        let next = self.by(run)?;
        let status = if next.status == Status::Cancelling { Status::Cancelled } else { Status::Failed };
        Some(Self { problems, ..next.enter(status, now) })
    }

    /// A run has come so far. One that goes over the requests again, after another that died, counts again from none, but
    /// what has ended has ended: nothing is taken back.
    pub fn progressed(&self, run: &str, progress: &Progress) -> Option<Self> {
        let mut next = self.by(run)?;
        if progress.completed + progress.failed > next.counts.completed + next.counts.failed {
            next.count(progress);
        }
        Some(next)
    }

    /// All requests have ended, and the answers are being stored.
    pub fn finalizing(&self, run: &str, progress: &Progress, now: u64) -> Option<Self> {
        let mut next = self.by(run)?;
        next.count(progress);
        Some(if next.status == Status::InProgress { next.enter(Status::Finalizing, now) } else { next })
    }

    /// The answers are stored.
    pub fn ended(
        &self,
        run: &str,
        end: End,
        progress: &Progress,
        (output_file_id, error_file_id): (Option<String>, Option<String>),
        now: u64,
    ) -> Option<Self> {
        let mut next = self.by(run)?;
        next.count(progress);
        let status = match end {
            End::Completed => Status::Completed,
            End::Expired => Status::Expired,
            End::Cancelled => Status::Cancelled,
            End::Overgrown { max_bytes } => {
                next.problems.push(overgrown(max_bytes));
                Status::Failed
            }
        };
        Some(Self { output_file_id, error_file_id, ..next.enter(status, now) })
    }

    /// Its sender wants no more of it. Nothing if it is too late for that.
    pub fn cancelled(&self, now: u64) -> Option<Self> {
        let open = matches!(self.status, Status::Validating | Status::InProgress);
        open.then(|| self.clone().enter(Status::Cancelling, now))
    }

    fn by(&self, run: &str) -> Option<Self> {
        self.is_of(run).then(|| self.clone())
    }

    fn enter(mut self, status: Status, now: u64) -> Self {
        self.status = status;
        self.since.insert(status.as_str().into(), now);
        self
    }

    fn count(&mut self, progress: &Progress) {
        self.counts = Counts { completed: progress.completed, failed: progress.failed, ..self.counts };
        self.usage = progress.usage;
    }
}

fn overgrown(max_bytes: u64) -> Problem {
    let message = format!(
        "the answers have more than the {max_bytes} bytes that a batch's output file and its error file may have each; what fits \
         is in these files: send the other requests in batches of fewer, or with a lower max_tokens"
    );
    Problem { code: "output_too_large".into(), line: None, message, param: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch() -> Batch {
        let order = Order {
            id: "batch_1".into(),
            endpoint: "/v1/completions".into(),
            input_file_id: "file-1".into(),
            completion_window: "24h".into(),
            metadata: None,
            output_expires_after: None,
        };
        Batch::new(order, 10, 100)
    }

    fn progress(completed: u64, failed: u64) -> Progress {
        Progress { completed, failed, usage: Usage { completion_tokens: completed, ..Usage::default() } }
    }

    #[test]
    fn only_the_last_run_changes_a_batch_and_nothing_that_was_counted_is_taken_back() {
        let first = batch().taken("one").unwrap().validated("one", 5, 11).unwrap();
        let first = first.progressed("one", &progress(3, 1)).unwrap();
        let second = first.taken("two").unwrap();
        assert_eq!(second.progressed("one", &progress(4, 1)), None);
        assert_eq!(second.ended("one", End::Completed, &progress(4, 1), (None, None), 12), None);
        let again = second.progressed("two", &progress(1, 0)).unwrap();
        assert_eq!(again.counts, Counts { total: 5, completed: 3, failed: 1 });
        let ended = again.finalizing("two", &progress(4, 1), 13).unwrap();
        let ended = ended.ended("two", End::Completed, &progress(4, 1), (Some("out".into()), None), 14).unwrap();
        assert_eq!((ended.status, ended.usage.completion_tokens), (Status::Completed, 4));
        assert_eq!((ended.since(Status::InProgress), ended.since(Status::Completed)), (Some(11), Some(14)));
        assert!(ended.taken("three").is_none() && ended.cancelled(15).is_none());
    }

    #[test]
    fn one_whose_answers_are_too_long_has_failed_and_keeps_what_fits() {
        let driven = batch().taken("one").unwrap().validated("one", 5, 11).unwrap();
        let driven = driven.finalizing("one", &progress(3, 1), 12).unwrap();
        let end = End::Overgrown { max_bytes: 7 };
        let ended = driven.ended("one", end, &progress(3, 1), (Some("out".into()), None), 13).unwrap();
        assert_eq!((ended.status, ended.output_file_id.as_deref()), (Status::Failed, Some("out")));
        assert_eq!(ended.counts, Counts { total: 5, completed: 3, failed: 1 });
        assert_eq!(ended.problems.len(), 1);
        assert!(ended.problems[0].message.contains("7 bytes"), "{:?}", ended.problems);
    }

    #[test]
    fn a_batch_that_is_cancelled_stays_so_whatever_its_driver_does_next() {
        let cancelling = batch().taken("one").unwrap().cancelled(12).unwrap();
        let validated = cancelling.validated("one", 5, 13).unwrap();
        assert_eq!(validated.status, Status::Cancelling);
        assert_eq!(validated.finalizing("one", &progress(2, 3), 14).unwrap().status, Status::Cancelling);
        assert_eq!(cancelling.refused("one", Vec::new(), 13).unwrap().status, Status::Cancelled);
        let read: Batch = serde_json::from_str(&serde_json::to_string(&validated).unwrap()).unwrap();
        assert_eq!(read, validated);
    }
}
