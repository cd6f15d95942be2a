//! What becomes of a model whose device failed, for want of memory for example.
//!
//! Burn's devices work behind the caller's back. An operation that fails leaves tensors without contents, and so do all that
//! read these; it is told where a value of theirs is read. Whatever is written next gives a tensor contents again, and hides
//! the failure. So each pass ends with reading something that depends on all of its operations, and the operations
//! for such devices, [`super::stock`], never write one tensor in several parts. What fails at once panics.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::cache::{self, Cache};
use super::ops::Operators;
use super::{Llama, SequenceId};
use crate::kernels::PAGE;
use crate::model;

/// Why a device did not compute.
#[derive(Debug)]
pub(super) struct Failure {
    cause: String,
}

impl Failure {
    /// From the text of an error of Burn's: the lines of its first cause, without the backtrace.
    pub(super) fn new(error: impl fmt::Display) -> Failure {
        let text = error.to_string();
        let cause = text.rsplit("Caused by:").next().unwrap_or_default();
        let lines = cause.lines().map(str::trim).filter(|line| !line.is_empty());
        let is_said = |line: &&str| {
            let ends = ["Backtrace:", "Asked at:", "No backtrace", "stack backtrace:"];
            !line.starts_with(|first: char| first.is_ascii_digit()) && !ends.iter().any(|end| line.starts_with(end))
        };
        Failure { cause: lines.take_while(is_said).take(3).collect::<Vec<_>>().join(": ") }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(to, "the device failed: {}", self.cause)
    }
}

/// Does work on a device whose failures may be panics.
pub(super) fn caught<T>(work: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
    // What the work has left half done is the caller's to look at: it does so in `fail`.
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
        Err(Failure::new(text.unwrap_or_default()))
    })
}

impl Llama {
    /// Refuses work for a device that is lost.
    pub(super) fn check_device(&self) -> Result<(), model::Error> {
        match &self.lost {
            Some(reason) => Err(model::Error::StepFailed(reason.clone())),
            None => Ok(()),
        }
    }

    /// Finds out what a failure has left, makes the best of it, and tells of it. Lengths of sequences are left alone.
    pub(super) fn fail(&mut self, failure: Failure) -> model::Error {
        let whole = caught(|| {
            self.device.memory_cleanup();
            cache::check(&self.caches)
        });
        let left = match whole {
            Ok(()) => "nothing is lost; give the model less to do at once".to_owned(),
            Err(_) => self.start_over(&failure),
        };
        model::Error::StepFailed(format!("{failure}; {left}"))
    }

    /// Closes all sequences and takes new memory for the KV cache.
    fn start_over(&mut self, failure: &Failure) -> String {
        self.sequences.clear();
        self.free_pages = (0..self.pages as u32).rev().collect();
        // The old memory goes before the new comes.
        self.caches.clear();
        let caches = caught(|| {
            self.device.memory_cleanup();
            let new = || Cache::new(self.operators, &self.device, self.config.heads, self.pages);
            let caches: Vec<Cache> = self.config.layers.iter().map(|_| new()).collect();
            cache::check(&caches)?;
            Ok(caches)
        });
        match caches {
            Ok(caches) => {
                self.caches = caches;
                "all sequences are closed, for their KV cache is lost; start them again with less to do at once"
                    .to_owned()
            }
            Err(_) => {
                let advice = "the model can't be used any more; load it again, or restart the worker";
                self.lost = Some(format!("{failure}; {advice}"));
                advice.to_owned()
            }
        }
    }

    /// Takes the tokens and pages beyond these lengths from sequences.
    pub(super) fn shrink(&mut self, lengths: &[(SequenceId, usize)]) {
        for (id, len) in lengths {
            if let Some(sequence) = self.sequences.get_mut(id) {
                sequence.len = *len;
                let freed = sequence.pages.split_off(len.div_ceil(PAGE));
                self.free_pages.extend(freed.into_iter().rev());
            }
        }
    }

    /// Runs one token through a freshly loaded model, whose memory is found to be there only so.
    pub(super) fn try_out(&mut self) -> Result<(), Failure> {
        match self.operators {
            Operators::Kernels(_) => Ok(()),
            Operators::Stock => self.compute(&super::first_token()).map(drop),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_tells_the_first_cause() {
        let text =
            "an error\nCaused by:\n  a skipped kernel\nCaused by:\n\n  no room\n  for 7 bytes\n   0: main\n  at it\n";
        assert_eq!(Failure::new(text).to_string(), "the device failed: no room: for 7 bytes");
        let caught = caught::<()>(|| panic!("out of {}", "memory")).unwrap_err();
        assert_eq!(caught.to_string(), "the device failed: out of memory");
    }
}
