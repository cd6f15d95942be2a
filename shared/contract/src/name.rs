//! Names that become parts of subjects and keys, checked once and safe from then on.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// A tenant, lane or model: 1 to 64 of `a-z`, `0-9`, `_` and `-`.
#[derive(
    Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, bincode::Encode, bincode::Decode,
)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

/// A job's id: 1 to 64 of `A-Z`, `a-z`, `0-9`, `_` and `-`. Generated ones are UUIDs of version 7.
#[derive(
    Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, bincode::Encode, bincode::Decode,
)]
#[serde(try_from = "String", into = "String")]
pub struct JobId(String);

/// A text that is no name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected 1 to 64 of {allowed}, found {found:?}")]
pub struct Error {
    allowed: &'static str,
    found: String,
}

impl Error {
    fn new(allowed: &'static str, found: &str) -> Self {
        Self { allowed, found: found.chars().take(80).collect() }
    }
}

impl Name {
    /// Checks a text.
    pub fn new(text: &str) -> Result<Self, Error> {
        if well_formed(text, |c| c.is_ascii_lowercase()) {
            Ok(Self(text.into()))
        } else {
            Err(Error::new("a-z, 0-9, _ and -", text))
        }
    }

    /// The tenant of whoever names none.
    pub fn default_tenant() -> Self {
        Self("default".into())
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl JobId {
    /// Checks a text.
    pub fn new(text: &str) -> Result<Self, Error> {
        if well_formed(text, |c| c.is_ascii_alphabetic()) {
            Ok(Self(text.into()))
        } else {
            Err(Error::new("A-Z, a-z, 0-9, _ and -", text))
        }
    }

    /// A UUID of version 7 from a time in milliseconds since 1970 and ten bytes of entropy.
    pub fn generate(unix_ms: u64, entropy: [u8; 10]) -> Self {
        Self(uuid::Builder::from_unix_timestamp_millis(unix_ms, &entropy).into_uuid().to_string())
    }

    /// The id of a request that came without one: the same whenever the broker delivers that message again.
    pub fn for_message(unix_ms: u64, stream: &str, sequence: u64) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("baton job id of a message");
        hasher.update(stream.as_bytes());
        hasher.update(&sequence.to_le_bytes());
        let mut entropy = [0; 10];
        hasher.finalize_xof().fill(&mut entropy);
        Self::generate(unix_ms, entropy)
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A job of a tenant.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct JobKey {
    /// Whose job it is.
    pub tenant: Name,
    /// Its id.
    pub job: JobId,
}

impl JobKey {
    /// The job of a key in the buckets of records and checkpoints; nothing for a key that is no job's.
    pub fn parse(key: &str) -> Option<Self> {
        let (tenant, job) = key.split_once('.')?;
        Some(Self { tenant: Name::new(tenant).ok()?, job: JobId::new(job).ok()? })
    }
}

impl fmt::Display for JobKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.tenant, self.job)
    }
}

fn well_formed(text: &str, letter: impl Fn(char) -> bool) -> bool {
    (1..=64).contains(&text.len()) && text.chars().all(|c| letter(c) || c.is_ascii_digit() || c == '_' || c == '-')
}

macro_rules! text_like {
    ($type:ty) => {
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl FromStr for $type {
            type Err = Error;

            fn from_str(text: &str) -> Result<Self, Error> {
                Self::new(text)
            }
        }

        impl TryFrom<String> for $type {
            type Error = Error;

            fn try_from(text: String) -> Result<Self, Error> {
                Self::new(&text)
            }
        }

        impl From<$type> for String {
            fn from(value: $type) -> Self {
                value.0
            }
        }
    };
}

text_like!(Name);
text_like!(JobId);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_subject_safe_names_pass() {
        for bad in ["", "a.b", "a b", "a*", ">", "ä", "../x", "A", &"x".repeat(65)] {
            assert!(Name::new(bad).is_err(), "{bad:?}");
        }
        assert!(Name::new("smollm2-135m_q4").is_ok());
        for bad in ["", "a.b", "a/b", "a*", "\u{0}", &"x".repeat(65)] {
            assert!(JobId::new(bad).is_err(), "{bad:?}");
        }
        assert!(JobId::new("Run-7_b").is_ok());
    }

    #[test]
    fn keys_of_chores_are_no_jobs() {
        assert_eq!(JobKey::parse("acme.Run-7").unwrap().to_string(), "acme/Run-7");
        assert_eq!(JobKey::parse("gc"), None);
        assert_eq!(JobKey::parse("acme.a.b"), None);
    }

    #[test]
    fn a_message_always_gets_the_same_version_7_id() {
        let id = JobId::for_message(1_700_000_000_000, "baton_req", 7);
        assert_eq!(id, JobId::for_message(1_700_000_000_000, "baton_req", 7));
        assert_ne!(id, JobId::for_message(1_700_000_000_000, "baton_req", 8));
        let uuid: uuid::Uuid = id.as_str().parse().unwrap();
        assert_eq!(uuid.get_version_num(), 7);
    }
}
