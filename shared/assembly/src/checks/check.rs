//! What a check finds.

use baton_contract::causes;
use serde::Serialize;

/// What was looked at, and what was found.
#[derive(Serialize)]
pub struct Check {
    check: String,
    /// Whether it works.
    pub ok: bool,
    detail: String,
}

/// What is wrong, and what to do about it.
pub struct Fault(pub String);

impl<E: std::error::Error + 'static> From<E> for Fault {
    fn from(error: E) -> Self {
        Self(causes(&error))
    }
}

impl Check {
    /// What a check found.
    pub fn new(check: impl Into<String>, outcome: Result<String, Fault>) -> Self {
        let (ok, detail) = match outcome {
            Ok(detail) => (true, detail),
            Err(Fault(detail)) => (false, detail),
        };
        Self { check: check.into(), ok, detail }
    }
}

impl std::fmt::Display for Check {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}  {}: {}", if self.ok { "ok  " } else { "FAIL" }, self.check, self.detail)
    }
}
