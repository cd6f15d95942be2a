//! How a device tells that it failed, for want of memory for example.
//!
//! Burn's devices work behind the caller's back. An operation that fails leaves tensors without contents, and so do all that
//! read these; it is told where a value of theirs is read. Whatever is written next gives a tensor contents again, and hides
//! the failure. So each pass ends with reading something that depends on all of its operations, and the operations
//! for such devices, `stock`, never write one tensor in several parts. What fails at once panics.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

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
    // What the work has left half done is the caller's to look at, see `recovery`.
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
        Err(Failure::new(text.unwrap_or_default()))
    })
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
